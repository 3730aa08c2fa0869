"""What must be there before ``meddino train`` and ``meddino predict`` begin; else, the next command to type.

nnU-Net meets each lack somewhere on its way, with a traceback that names none of them.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import os
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nnunetv2_meddino.comparison.folders import (
    Method,
    close_name,
    dataset_name,
    dataset_names,
    has_checkpoint,
    is_trainer,
    known_trainers,
    listed,
    suggestion,
    trained_methods,
)
from nnunetv2_meddino.environment import NNUNET_PATHS, NNUNET_PREPROCESSED, NNUNET_RESULTS, nnunet_folders
from nnunetv2_meddino.errors import ConfigurationError, DataError, PlanError
from nnunetv2_meddino.files import read_json, read_json_value

_NOT_PLANS = {"dataset", "dataset_fingerprint", "splits_final"}
"""JSON files beside the plans."""


@dataclass(frozen=True)
class Command:
    """A command as it was typed."""

    words: tuple[str, ...]

    def __str__(self) -> str:
        return shlex.join(self.words)

    def with_option(self, option: str, *values: str) -> Command:
        """Return it with other values of an option, which is added where it is absent; of several the last counts."""
        start = max((at for at, word in enumerate(self.words) if word == option), default=len(self.words))
        end = start + 1
        while end < len(self.words) and not self.words[end].startswith("-"):
            end += 1
        return Command((*self.words[:start], option, *values, *self.words[end:]))

    def with_word(self, old: str, new: str) -> Command:
        """Return it with another first word of the words that are ``old``."""
        at = self.words.index(old)
        return Command((*self.words[:at], new, *self.words[at + 1 :]))

    def without(self, word: str) -> Command:
        """Return it without a word."""
        return Command(tuple(other for other in self.words if other != word))


@dataclass(frozen=True)
class Wanted:
    """The model that a command trains or predicts with."""

    dataset: str
    """As it was typed, or its full name."""
    method: Method
    command: Command

    @property
    def number(self) -> int:
        """Of the dataset, once it has its full name."""
        return int(self.dataset[7:10])

    def training(self, fold: str, *options: str) -> str:
        """Return the command that trains a fold of it."""
        method = self.method
        plans = () if method.plans == "nnUNetPlans" else ("-p", method.plans)
        words = (str(self.number), method.configuration, fold, "-tr", method.trainer, *plans, *options)
        return shlex.join(("meddino", "train", *words))


def check_training(wanted: Wanted, fold: str, device: str, *, gpus: int = 1, only_validates: bool = False) -> None:
    """Look for everything that ``nnUNetv2_train`` is going to read.

    Args:
        wanted: What it trains.
        fold: A number, or ``all``.
        device: ``cuda``, ``cpu`` or ``mps``.
        gpus: How many of them.
        only_validates: Whether it is called with ``--val``.

    Raises:
        ConfigurationError: A variable, the trainer, the device or the trained fold is not there.
        DataError: The dataset or its preprocessed data is not there.
        PlanError: The plans or the configuration is not there.
    """
    preprocessed, results = nnunet_folders(NNUNET_PREPROCESSED, NNUNET_RESULTS)
    wanted = _with_dataset(wanted)
    if not re.fullmatch(r"\d+|all", fold):
        right = wanted.command.with_word(fold, "0")
        raise ConfigurationError(_with_next(f"The fold must be a number or 'all', not {fold}.", right))
    plans = _planned(wanted, preprocessed / wanted.dataset)
    _check_trainer(wanted)
    if only_validates:
        folder = results / wanted.dataset / wanted.method.name / f"fold_{fold}"
        if not (folder / "checkpoint_final.pth").is_file():
            begun = has_checkpoint(folder)
            right = wanted.command.without("--val")
            msg = f"Fold {fold} is not trained{' to its end' if begun else ''}: {folder} holds no checkpoint_final.pth."
            raise ConfigurationError(_with_next(msg, f"{right} --c" if begun else right))
    folder = preprocessed / wanted.dataset
    cases = _cases(folder, fold, ("val",) if only_validates else ("train", "val"))
    _check_preprocessed(wanted, plans, cases, folder)
    check_device(wanted.command, device, gpus)


def check_model(wanted: Wanted) -> Path:
    """Return the folder of a trained model.

    Raises:
        ConfigurationError: A variable or the model is not there.
        DataError: There is no such dataset.
    """
    (results,) = nnunet_folders(NNUNET_RESULTS)
    wanted = _with_dataset(wanted)
    parent, method = results / wanted.dataset, wanted.method
    if (parent / method.name).is_dir():
        return parent / method.name
    msg = f"{parent / method.name} does not exist."
    trained = {m.name: m for m in trained_methods(parent) if any(map(has_checkpoint, (parent / m.name).glob("fold_*")))}
    if not trained:
        raise ConfigurationError(_with_next(f"{msg} Nothing is trained on {wanted.dataset}.", wanted.training("0")))
    if "-tr" not in wanted.command.words:
        msg += f" Without -tr nnU-Net's own trainer is meant, {method.trainer}."
    close, right = trained[_closest(method.name, trained)], wanted.command
    for option, own, other in (
        ("-tr", method.trainer, close.trainer),
        ("-p", method.plans, close.plans),
        ("-c", method.configuration, close.configuration),
    ):
        right = right if own == other else right.with_option(option, other)
    raise ConfigurationError(_with_next(f"{msg} Trained are: {listed(trained)}.", right))


def check_folds(wanted: Wanted | None, command: Command, folder: Path, folds: Sequence[str] | None, file: str) -> None:
    """Look for the checkpoints of the folds of a model.

    Args:
        wanted: What the model is called; None where its folder was named.
        command: That predicts.
        folder: Of the model.
        folds: Which to use; None: all that are trained.
        file: File name of a checkpoint.

    Raises:
        ConfigurationError: One is missing.
    """
    from nnunetv2_meddino.inference.model import FINAL_CHECKPOINT, chosen_folds

    if not (folder / "plans.json").is_file():
        msg = f"{folder} is no trained model: it holds no plans.json. Name a folder Trainer__Plans__configuration of"
        raise ConfigurationError(f"{msg} nnUNet_results.")
    try:
        chosen_folds(folder, folds, file)
    except ConfigurationError as error:
        trained = sorted(path.parent.name.removeprefix("fold_") for path in folder.glob(f"fold_*/{file}"))
        steps: list[object] = [command.with_option("-f", *trained)] if trained else []
        fold = next((fold for fold in folds or ("0",) if fold not in trained), "0")
        if (folder / f"fold_{fold}" / FINAL_CHECKPOINT).is_file():
            steps.append(command.with_option("-chk", FINAL_CHECKPOINT))
        elif wanted is not None:
            go_on = ("--c",) if has_checkpoint(folder / f"fold_{fold}") else ()
            steps.append(_with_dataset(wanted).training(fold, *go_on))
        raise ConfigurationError(_with_next(str(error), *steps)) from error


def check_device(command: Command, device: str, gpus: int = 1) -> None:
    """Look for a device.

    Raises:
        ConfigurationError: It is not there, or not as often.
    """
    import torch

    if device == "mps" and not torch.backends.mps.is_available():
        reason = "PyTorch finds no GPU of Apple's"
    elif device == "cuda" and not torch.cuda.is_available():
        if torch.version.cuda is None and torch.version.hip is None:
            reason = f"this PyTorch, {torch.__version__}, is built for the CPU alone; see https://pytorch.org"
        elif os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1"):
            reason = "CUDA_VISIBLE_DEVICES hides all GPUs"
        else:
            reason = "PyTorch finds no GPU here; nvidia-smi shows whether the driver does"
    elif device == "cuda" and gpus > (count := torch.cuda.device_count()):
        msg = f"-num_gpus is {gpus}, and there is one GPU." if count == 1 else f"-num_gpus is {gpus} of {count} GPUs."
        raise ConfigurationError(_with_next(msg, command.with_option("-num_gpus", str(count))))
    else:
        return
    msg = f"Device {device} cannot be used: {reason}. To use the CPU, slowly, add -device cpu."
    raise ConfigurationError(_with_next(msg, command.with_option("-device", "cpu")))


def _with_next(message: str, *commands: object) -> str:
    """Return a message that ends with commands, if any is not None."""
    known = [f"  {command}" for command in commands if command is not None]
    return "\n".join([f"{message} Next:", *known]) if known else message


def _with_dataset(wanted: Wanted) -> Wanted:
    """Return what is wanted with the full name of its dataset, which may be in any folder that is set.

    Raises:
        DataError: There is no such dataset, or several.
    """
    folders = [Path(value) for variable in NNUNET_PATHS if (value := variable.get()) is not None]
    try:
        return replace(wanted, dataset=dataset_name(wanted.dataset, folders))
    except DataError as error:
        names, command = dataset_names(folders), wanted.command
        known = {str(int(name[7:10])) for name in names} if wanted.dataset.isdecimal() else set(names)
        close = close_name(wanted.dataset, known - {wanted.dataset})
        if close is None:
            raise
        right = command.with_option("-d", close) if "-d" in command.words else command.with_word(wanted.dataset, close)
        raise DataError(_with_next(str(error), right)) from error


def _planned(wanted: Wanted, folder: Path) -> dict[str, Any]:
    """Return the plans that the configuration is in.

    Raises:
        PlanError: There are no such plans, or it is not in them.
    """
    number, method, command = wanted.number, wanted.method, wanted.command
    side = re.fullmatch(r"2d_(\d+)", method.configuration)
    file = folder / f"{method.plans}.json"
    if not file.is_file():
        if others := {path.stem for path in folder.glob("*.json")} - _NOT_PLANS:
            right = command.with_option("-p", _closest(method.plans, others))
            raise PlanError(_with_next(f"{file} does not exist. There are the plans {listed(others)}.", right))
        configuration = "2d" if side else method.configuration
        plan = f"nnUNetv2_plan_and_preprocess -d {number} -c {configuration} --verify_dataset_integrity"
        raise PlanError(_with_next(f"{wanted.dataset} is not planned: {file} does not exist.", plan))
    plans = read_json(file, PlanError, "Restore it, or plan the dataset anew.")
    known = plans["configurations"]
    if method.configuration not in known:
        msg = f"Configuration {method.configuration} is not in {file}, which holds {listed(known)}."
        if side:
            raise PlanError(_with_next(msg, f"meddino plan -d {number} --patch-size {side[1]} -p {method.plans}"))
        raise PlanError(_with_next(msg, command.with_word(method.configuration, _closest(method.configuration, known))))
    return plans


def _closest(name: str, known: Iterable[str]) -> str:
    return difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.0)[0]


def _check_trainer(wanted: Wanted) -> None:
    """Refuse a trainer that neither its source files nor nnU-Net's own lookup, which may find others, know."""
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    name, known = wanted.method.trainer, known_trainers()
    if is_trainer(name, known):
        return
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            recursive_find_trainer_class_by_name(name)
    except RuntimeError as error:
        close = close_name(name, known)
        msg = f"There is no trainer {name}.{suggestion(name, known)} nnUNet_extTrainer names the folders of trainers"
        right = None if close is None else wanted.command.with_option("-tr", close)
        raise ConfigurationError(_with_next(f"{msg} that nnU-Net does not ship.", right)) from error


def _check_preprocessed(wanted: Wanted, plans: dict[str, Any], cases: set[str], folder: Path) -> None:
    """Look for stored cases in the dataset's folder; what a loader resamples is looked for by the trainer."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunetv2_meddino.dataloading.resampled_cases import RESAMPLED_FROM

    name = wanted.method.configuration
    configuration = PlansManager(plans).get_configuration(name)
    if RESAMPLED_FROM in configuration.configuration:
        return
    data = folder / configuration.data_identifier
    stored = {path.stem for path in data.glob("*.pkl")}  # written last of a case
    missing = cases - stored
    if stored and not missing:
        return
    what = f"cases of the fold that are not in {data}: {len(missing)}" if stored else f"nothing is in {data}"
    msg = f"{wanted.dataset} is not preprocessed for {name}: {what}."
    command = f"nnUNetv2_preprocess -d {wanted.number} -plans_name {wanted.method.plans} -c {name}"
    raise DataError(_with_next(msg, command))


def _cases(folder: Path, fold: str, parts: Sequence[str]) -> set[str]:
    """Return the cases that parts of the split of a fold name; none where nnU-Net is going to divide what is stored."""
    file = folder / "splits_final.json"
    if fold == "all" or not file.is_file():
        return set()
    splits = read_json_value(file, DataError, "Restore it, or remove it, and nnU-Net divides the cases anew.")
    return {str(case) for part in parts for case in splits[int(fold)][part]} if int(fold) < len(splits) else set()
