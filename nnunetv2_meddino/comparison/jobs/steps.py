"""What is still to be done before methods can be compared, read off nnU-Net's folders; nothing is run here."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_meddino.comparison.folders import (
    Folders,
    Method,
    has_checkpoint,
    is_trainer,
    known_trainers,
    listed,
    suggestion,
)
from nnunetv2_meddino.comparison.results import Selection
from nnunetv2_meddino.errors import ConfigurationError, DataError, PlanError
from nnunetv2_meddino.files import read_json
from nnunetv2_meddino.planning.planner import COPY_OF_RAW

STOCK_PLANS = "nnUNetPlans"
STOCK_CONFIGURATIONS = ("2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres")


@dataclass(frozen=True)
class Fold:
    """One training: what it is called by, and where it is written."""

    dataset: str
    method: Method
    fold: str
    folder: Path


@dataclass(frozen=True)
class Step:
    """One command."""

    name: str
    """Unique, and a file name: of its log."""
    title: str
    """What it does, for the terminal."""
    command: tuple[str, ...]
    """A command that is installed beside Python, and its arguments; ``continuation`` adds those of a training."""
    needs: tuple[str, ...] = ()
    """Names of the steps that must have succeeded before."""
    training: Fold | None = None
    """What is trained or validated; None for plans and data."""


def plan_steps(selection: Selection, folders: Folders, *, device: str, processes: int) -> list[Step]:
    """Return the commands that make what is missing, in an order in which they can run; none for what is done.

    Args:
        selection: What shall be compared: datasets, trainers, configurations and folds must all be given.
        folders: nnU-Net's folders.
        device: ``-device`` of the trainings.
        processes: ``-np`` of the preprocessing.

    Raises:
        ConfigurationError: Something is not given, or a trainer or configuration is unknown.
        DataError: A dataset is unknown or has no ``dataset.json``.
        PlanError: Plans are missing that only the user can make.
    """
    for option, given in (
        ("--trainers", selection.trainers),
        ("--configurations", selection.configurations),
        ("--folds", selection.folds),
    ):
        if not given:
            raise ConfigurationError(f"Training needs {option}: without it nothing says what is to be trained.")
    known = known_trainers()
    for trainer in selection.trainers:
        if not is_trainer(trainer, known):
            msg = f"Trainer {trainer} is unknown.{suggestion(trainer, known)} nnUNet_extTrainer names the folders of "
            raise ConfigurationError(f"{msg}trainers that nnU-Net does not ship.")
    plans = selection.plans or STOCK_PLANS
    steps: list[Step] = []
    for identifier in dict.fromkeys(selection.datasets):
        dataset = folders.dataset(identifier)
        data = _data_steps(dataset, plans, selection.configurations, folders, processes)
        steps += data
        for method in selection.methods(plans):
            configuration = method.configuration
            needs = tuple(step.name for step in data if step.name == _preprocessing(dataset, plans, configuration))
            needs = needs or tuple(step.name for step in data if step.name == _planning(dataset, plans))
            for fold in selection.folds:
                folder = folders.model(dataset, method) / f"fold_{fold}"
                steps += _training(Fold(dataset, method, fold, folder), needs, device)
    return steps


def _data_steps(
    dataset: str, plans: str, configurations: Sequence[str], folders: Folders, processes: int
) -> list[Step]:
    """Return planning and preprocessing."""
    preprocessed = folders.preprocessed / dataset
    plans_file = preprocessed / f"{plans}.json"
    number = str(int(dataset[7:10]))
    if plans_file.is_file():
        return list(_with_plans(dataset, plans, configurations, folders, processes))
    if not (folders.raw / dataset / "dataset.json").is_file():
        msg = f"{dataset} has neither plans ({plans_file}) nor a dataset.json in {folders.raw / dataset}."
        raise DataError(f"{msg} Put the raw dataset there, or plan it.")
    finer = [c for c in configurations if _side_px(c)]
    stock = [c for c in configurations if not _side_px(c)]
    for configuration in stock:
        _check_configuration(configuration, STOCK_CONFIGURATIONS, f"nnU-Net's plans of {dataset}")
    if finer:  # makes the plans as well, with axial slices, which nnU-Net's own planner may not choose
        steps = [_finer(dataset, plans, c, ()) for c in finer]
        steps = [steps[0], *(_finer(dataset, plans, c, (steps[0].name,)) for c in finer[1:])]
        planned = {c: step.name for c, step in zip(finer, steps, strict=True)} | dict.fromkeys(stock, steps[0].name)
        return [*steps, *(_preprocess(dataset, plans, c, processes, (planned[c],)) for c in configurations)]
    if plans != STOCK_PLANS:
        msg = (
            f"{plans_file} does not exist. Make these plans with nnUNetv2_plan_experiment (-pl, -overwrite_plans_name)"
        )
        raise PlanError(f"{msg} or with: meddino plan -d {number} -p {plans}")
    command = ("nnUNetv2_plan_and_preprocess", "-d", number, "-c", *stock, "-np", *[str(processes)] * len(stock))
    command += ("-npfp", str(processes), "--verify_dataset_integrity")
    return [Step(_planning(dataset, plans), f"{dataset}: plan and preprocess {', '.join(stock)}", command)]


def _with_plans(
    dataset: str, plans: str, configurations: Sequence[str], folders: Folders, processes: int
) -> Iterator[Step]:
    """Yield what existing plans lack: a high-resolution configuration, and data."""
    preprocessed = folders.preprocessed / dataset
    content = read_json(preprocessed / f"{plans}.json", PlanError, "Restore the file, or move it away to plan anew.")
    planned = content.get("configurations", {})
    for configuration in configurations:
        if configuration not in planned:
            if not _side_px(configuration):
                _check_configuration(configuration, planned, f"plans {plans} of {dataset}")
            step = _finer(dataset, plans, configuration, ())
            yield step
            yield _preprocess(dataset, plans, configuration, processes, (step.name,))
        elif not _is_preprocessed(preprocessed, content, configuration):
            yield _preprocess(dataset, plans, configuration, processes, ())


def _is_preprocessed(preprocessed: Path, plans: dict[str, Any], configuration: str) -> bool:
    """Whether every training case has its data; nnU-Net writes a case's ``.pkl`` last."""
    identifier = PlansManager(plans).get_configuration(configuration).data_identifier
    cases = [path for path in (preprocessed / identifier).glob("*.pkl")]
    expected = read_json(preprocessed / "dataset.json", DataError, COPY_OF_RAW)["numTraining"]
    return len(cases) >= int(expected) and (preprocessed / "gt_segmentations").is_dir()


def continuation(fold_folder: Path) -> tuple[str, ...] | None:
    """Return the option of ``nnUNetv2_train`` that takes a training up where it stands; None if nothing is missing."""
    if not (fold_folder / "checkpoint_final.pth").is_file():
        return ("--c",) if has_checkpoint(fold_folder) else ()
    return None if (fold_folder / "validation" / "summary.json").is_file() else ("--val",)


def _training(fold: Fold, needs: tuple[str, ...], device: str) -> list[Step]:
    """Return the training with its validation, or the validation alone, or nothing."""
    missing = continuation(fold.folder)
    if missing is None:
        return []
    method = fold.method
    named = ("-tr", method.trainer, "-p", method.plans, "-device", device)
    command = ("nnUNetv2_train", fold.dataset, method.configuration, fold.fold, *named)
    what = "validate" if missing == ("--val",) else "train"
    title = f"{fold.dataset}: {what} {method.name}, fold {fold.fold}"
    name = f"{what}_{fold.dataset}_{method.name}_fold_{fold.fold}"
    return [Step(name, title, command, needs, fold)]


def _preprocess(dataset: str, plans: str, configuration: str, processes: int, needs: tuple[str, ...]) -> Step:
    number = str(int(dataset[7:10]))
    command = ("nnUNetv2_preprocess", "-d", number, "-plans_name", plans, "-c", configuration, "-np", str(processes))
    title = f"{dataset}: preprocess {configuration}"
    return Step(_preprocessing(dataset, plans, configuration), title, command, needs)


def _finer(dataset: str, plans: str, configuration: str, needs: tuple[str, ...]) -> Step:
    command = ("meddino", "plan", "-d", dataset, "--patch-size", str(_side_px(configuration)), "-p", plans)
    return Step(f"plan_{dataset}_{plans}_{configuration}", f"{dataset}: plan {configuration}", command, needs)


def _planning(dataset: str, plans: str) -> str:
    return f"plan_and_preprocess_{dataset}_{plans}"


def _preprocessing(dataset: str, plans: str, configuration: str) -> str:
    return f"preprocess_{dataset}_{plans}_{configuration}"


def _side_px(configuration: str) -> int:
    """Return the patch size of a ``2d_<px>`` configuration, or 0 for any other."""
    match = re.fullmatch(r"2d_(\d+)", configuration)
    return int(match[1]) if match else 0


def _check_configuration(configuration: str, known: Sequence[str] | dict[str, Any], where: str) -> None:
    if configuration not in known:
        msg = f"Configuration {configuration} is not in {where}.{suggestion(configuration, known)}"
        raise PlanError(f"{msg} There are: {listed(known)}; 2d_<pixels> is planned on demand.")
