"""A trained model as the files of a repository, without a pickle, and put together again as nnU-Net reads it.

meddino.json                            folder in nnUNet_results, folds
plans.json, dataset.json                nnU-Net's; of the second what prediction reads
fold_0/checkpoint_final.safetensors     the network's tensors; the rest of the checkpoint as JSON in the header
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor

from nnunetv2_meddino.comparison.folders import FOLD_ALL, Method, fold_folders
from nnunetv2_meddino.errors import ConfigurationError, WeightsError
from nnunetv2_meddino.files import read_json, write_json
from nnunetv2_meddino.inference.model import FINAL_CHECKPOINT
from nnunetv2_meddino.sharing.disclosure import published_dataset, published_training
from nnunetv2_meddino.weights.files import read_file, write_safetensors, write_torch
from nnunetv2_meddino.weights.trained import PROVENANCE

MANIFEST, PLANS, DATASET = "meddino.json", "plans.json", "dataset.json"
CHECKPOINT = Path(FINAL_CHECKPOINT).with_suffix(".safetensors").name
FORMAT_VERSION = 1
_HEADER = "checkpoint"
"""The entry of a header that holds all of a checkpoint but its tensors."""

_NETWORKS = re.compile(r"(nnunetv2_meddino\.networks|dynamic_network_architectures\.architectures)\.\w+\.\w+")
_LAYERS = re.compile(r"torch\.nn\.(modules\.\w+\.)?\w+")
_DATASET_NAME = re.compile(r"Dataset\d{3}_[\w.+-]+")
_METHOD_PART = re.compile(r"[\w.+-]+")
_FOLD = re.compile(rf"\d+|{FOLD_ALL}")


@dataclass(frozen=True)
class Identity:
    """Which model it is, and so where it lies in ``nnUNet_results``."""

    dataset: str
    """``DatasetXXX_Name``."""
    method: Method
    folds: tuple[str, ...]
    """The trained ones."""

    @property
    def folder(self) -> Path:
        """Its folder below ``nnUNet_results``."""
        return Path(self.dataset, self.method.name)


@dataclass(frozen=True)
class SharedModel:
    """A trained model, as it is published."""

    identity: Identity
    plans: dict[str, Any]
    dataset_json: dict[str, Any]
    trainings: dict[str, dict[str, Any]]
    """By fold: all of its checkpoint but the tensors."""

    @property
    def configuration(self) -> ConfigurationManager:
        """The trained configuration."""
        return PlansManager(self.plans).get_configuration(self.identity.method.configuration)

    @property
    def predict_command(self) -> str:
        """The command that predicts with all folds once it is in nnUNet_results; IMAGES and OUT are to be replaced."""
        method = self.identity.method
        stock = ["--stock"] if len(self.configuration.patch_size) == 3 else []
        words = ["-d", self.identity.dataset, "-c", method.configuration, "-p", method.plans, "-tr", method.trainer]
        return shlex.join(
            ["meddino", "predict", *stock, *words, "-f", *self.identity.folds, "-i", "IMAGES", "-o", "OUT"]
        )


def train_command(repository: str) -> str:
    """Return the command that trains with a backbone of a repository; its words in capitals are to be replaced."""
    return f"MEDDINO_WEIGHTS={repository} meddino train DATASET CONFIGURATION FOLD -tr MedDINOv3Trainer"


def split_model(model_folder: Path, out: Path, *, with_cases: bool) -> SharedModel:
    """Write the files of a repository from the folder of a trained model.

    Args:
        model_folder: ``nnUNet_results/DatasetXXX_Name/Trainer__Plans__configuration``.
        out: Folder to write to.
        with_cases: Whether the ids of the cases are published that the weights, with which the training began, have
            seen.

    Raises:
        ConfigurationError: It is no such folder, has no finished fold, or its plans name a foreign network.
        WeightsError: A checkpoint cannot be read.
    """
    folder = model_folder.resolve()
    method = Method.from_name(folder.name)
    folds = tuple(fold for fold, path in fold_folders(folder).items() if (path / FINAL_CHECKPOINT).is_file())
    if method is None or not folds or not (folder / PLANS).is_file():
        msg = (
            f"{model_folder} is not a folder Trainer__Plans__configuration of nnUNet_results with a finished fold "
            f"({PLANS} and fold_*/{FINAL_CHECKPOINT}). Give the folder that nnUNetv2_train wrote."
        )
        raise ConfigurationError(msg)
    advice = "Restore it from a copy of the trained model."
    plans, dataset_json = (read_json(folder / name, ConfigurationError, advice) for name in (PLANS, DATASET))
    identity = Identity(str(plans.get("dataset_name")), method, folds)
    _check(identity, plans, str(model_folder))
    dataset_json = published_dataset(dataset_json)
    write_json(plans, out / PLANS)
    write_json(dataset_json, out / DATASET)
    trainings = {}
    for fold in folds:
        tensors, trainings[fold] = _divided(folder / f"fold_{fold}" / FINAL_CHECKPOINT, with_cases=with_cases)
        header = {_HEADER: json.dumps(trainings[fold], sort_keys=True)}
        write_safetensors(out / f"fold_{fold}" / CHECKPOINT, tensors, header)
    manifest = {"format_version": FORMAT_VERSION, "dataset": identity.dataset, "model": method.name, "folds": folds}
    write_json(manifest, out / MANIFEST)
    return SharedModel(identity, plans, dataset_json, trainings)


def _divided(checkpoint: Path, *, with_cases: bool) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a checkpoint's network, and what else of it is published, as JSON values."""
    content = read_file(checkpoint).content
    try:
        arguments, epochs = content["init_args"], content.get("current_epoch")
        mirrored = content.get("inference_allowed_mirroring_axes")
        return content["network_weights"], {
            "trainer_name": content["trainer_name"],
            "configuration": arguments["configuration"],
            "fold": arguments.get("fold", checkpoint.parent.name.removeprefix("fold_")),
            "current_epoch": None if epochs is None else int(epochs),
            "inference_allowed_mirroring_axes": None if mirrored is None else [int(axis) for axis in mirrored],
            PROVENANCE: published_training(arguments.get(PROVENANCE, {}), with_cases=with_cases),
        }
    except (KeyError, TypeError, AttributeError) as error:
        msg = f"{checkpoint} is no checkpoint of nnU-Net ({type(error).__name__}: {error})."
        raise WeightsError(f"{msg} Train the fold again, or move its folder away.") from error


def read_identity(manifest: Path, repository: str) -> Identity:
    """Return which model a repository holds.

    Raises:
        WeightsError: Its ``meddino.json`` is damaged, of a later version, or names a place outside of nnUNet_results.
    """
    content = read_json(manifest, WeightsError, f"The repository {repository} is damaged: have it pushed again.")
    if content.get("format_version") != FORMAT_VERSION:
        msg = (
            f"{repository} is in format version {content.get('format_version')}, this version reads {FORMAT_VERSION}."
            " Update the package: pip install -U nnunetv2-meddino"
        )
        raise WeightsError(msg)
    dataset, method = str(content.get("dataset")), Method.from_name(str(content.get("model")))
    folds = content.get("folds") or []
    names = (method.trainer, method.plans, method.configuration) if method else ()
    sound = _DATASET_NAME.fullmatch(dataset) and isinstance(folds, list)
    if method is None or not sound or not all(_METHOD_PART.fullmatch(name) for name in names):
        raise _unsound(repository, f"{MANIFEST} names no model of nnU-Net")
    if not folds or not all(isinstance(fold, str) and _FOLD.fullmatch(fold) for fold in folds):
        raise _unsound(repository, f"{MANIFEST} names folds that nnU-Net does not have")
    return Identity(dataset, method, tuple(folds))


def join_model(files: Path, identity: Identity, repository: str, out: Path) -> SharedModel:
    """Write the folder of a trained model from the files of a repository, whose author may be anyone.

    Nothing of them is executed. nnU-Net builds whatever class the plans name, so these name networks only.

    Args:
        files: As ``split_model`` wrote them.
        identity: Which model it is.
        repository: Its name, for messages.
        out: Folder to write.

    Returns:
        What was written.

    Raises:
        WeightsError: A file is missing or damaged, or the plans name a foreign network.
    """
    advice = f"The repository {repository} is damaged: have it pushed again."
    plans, dataset_json = (read_json(files / name, WeightsError, advice) for name in (PLANS, DATASET))
    _check(identity, plans, repository)
    write_json(plans, out / PLANS)
    write_json(dataset_json, out / DATASET)
    trainings = {}
    for fold in identity.folds:
        file = read_file(files / f"fold_{fold}" / CHECKPOINT)
        try:
            training = json.loads(file.metadata[_HEADER])
            mirrored = training["inference_allowed_mirroring_axes"]
            content = {
                "network_weights": file.content,
                "optimizer_state": None,
                "grad_scaler_state": None,
                "trainer_name": training["trainer_name"],
                "current_epoch": training["current_epoch"],
                "inference_allowed_mirroring_axes": None if mirrored is None else tuple(mirrored),
                "init_args": {
                    "plans": plans,
                    "configuration": training["configuration"],
                    "fold": training["fold"],
                    "dataset_json": dataset_json,
                    PROVENANCE: training[PROVENANCE],
                },
            }
        except (KeyError, TypeError, ValueError) as error:
            raise _unsound(repository, f"the header of fold_{fold}/{CHECKPOINT} says too little") from error
        write_torch(out / f"fold_{fold}" / FINAL_CHECKPOINT, content)
        trainings[fold] = training
    return SharedModel(identity, plans, dataset_json, trainings)


def _check(identity: Identity, plans: Mapping[str, Any], where: str) -> None:
    """Refuse plans that are of another model, or that name what no network consists of."""
    try:
        entries = plans["configurations"].values()
        foreign = [name for entry in entries for name in _foreign(entry.get("architecture") or {})]
        _ = PlansManager(dict(plans)).get_configuration(identity.method.configuration).patch_size
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        msg = f"{where}: {PLANS} holds no usable configuration {identity.method.configuration} ({error})."
        raise WeightsError(f"{msg} Restore the files of one training.") from error
    if foreign or not _DATASET_NAME.fullmatch(identity.dataset):
        what = f"the classes {', '.join(foreign)}" if foreign else f"the dataset {identity.dataset!r}"
        msg = (
            f"{where}: {PLANS} names {what}. Models are shared whose networks are of this package or of nnU-Net's "
            "dynamic_network_architectures, and whose dataset is called DatasetXXX_Name: prediction runs whatever "
            "class the plans name."
        )
        raise WeightsError(msg)


def _foreign(architecture: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names in an architecture that are none of a network or its layers."""
    network = architecture.get("network_class_name")
    if network is not None and not _NETWORKS.fullmatch(str(network)):
        yield str(network)
    arguments = architecture.get("arch_kwargs", {})
    for key in architecture.get("_kw_requires_import", ()):
        value = arguments.get(key)
        if value is not None and not _LAYERS.fullmatch(str(value)):
            yield str(value)


def _unsound(repository: str, what: str) -> WeightsError:
    return WeightsError(
        f"The repository {repository} holds no model that can be fetched: {what}. Have it pushed again."
    )
