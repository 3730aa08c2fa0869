"""A trained model as a folder that stock nnU-Net predicts with, without an environment variable."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path
from typing import Any

import torch

from nnunetv2_meddino.environment import NNUNET_PATHS
from nnunetv2_meddino.errors import ConfigurationError
from nnunetv2_meddino.files import naming, read_json, whole_folder, write_json
from nnunetv2_meddino.weights.files import write_torch

STOCK_TRAINER = "nnUNetTrainer"
COPIED = ("dataset.json", "dataset_fingerprint.json")
FOLDS_WITHOUT_F = ["0", "1", "2", "3", "4"]
"""The folds that nnU-Net predicts with if no ``-f`` is given; it fails if one is missing."""


def export_stock(model_folder: Path, out: Path | None = None) -> Path:
    """Write a copy of a model folder whose trainer is nnU-Net's own.

    The plans of our models hold the whole architecture, and nnU-Net's default trainer builds whatever network class
    the plans name, so only the trainer's name has to change. This package must be installed where the copy is used.
    Optimizer states, over two thirds of a checkpoint, are left out.

    Args:
        model_folder: ``nnUNet_results/DatasetXXX_Name/Trainer__Plans__configuration`` with at least one trained fold.
        out: Folder to write; must not exist. Default: beside ``model_folder``, under plans named after the trainer, so
            that ``nnUNetv2_predict -d XXX -c CONFIGURATION -p PlansTrainer`` finds it.

    Returns:
        The folder written.

    Raises:
        ConfigurationError: ``model_folder`` is not a trained model of this package, or ``out`` exists.
    """
    parts = model_folder.resolve().name.split("__")
    folds = sorted(model_folder.glob("fold_*/checkpoint_final.pth"))
    if len(parts) != 3 or not folds or not (model_folder / "plans.json").is_file():
        msg = (
            f"{model_folder} is not a folder Trainer__Plans__configuration of nnUNet_results with a finished fold "
            "(plans.json and fold_*/checkpoint_final.pth). Give the folder that nnUNetv2_train wrote."
        )
        raise ConfigurationError(msg)
    trainer, plans_name, configuration = parts
    exported_name = f"{plans_name}{trainer}"
    out = out or model_folder.resolve().parent / f"{STOCK_TRAINER}__{exported_name}__{configuration}"
    if out.exists():
        raise ConfigurationError(f"{out} exists already. Remove it, or choose another folder with -o.")
    plans = read_json(model_folder / "plans.json", ConfigurationError, "Restore it from a copy of the trained model.")
    _check_architecture(plans, configuration, model_folder)
    plans["plans_name"] = exported_name

    with whole_folder(out) as unfinished:
        write_json(plans, unfinished / "plans.json")
        for name in COPIED:
            if (model_folder / name).is_file():
                with naming(unfinished / name):
                    shutil.copyfile(model_folder / name, unfinished / name)
        for checkpoint in folds:
            content = torch.load(checkpoint, map_location="cpu", weights_only=False)
            content.update(trainer_name=STOCK_TRAINER, optimizer_state=None, grad_scaler_state=None)
            target = unfinished / checkpoint.parent.name
            target.mkdir()
            write_torch(target / checkpoint.name, content)
    return out


def predict_command(exported: Path) -> str:
    """Return the stock command that predicts with all folds of an exported model; IMAGES and OUT are to be replaced."""
    folds = [path.parent.name.removeprefix("fold_") for path in exported.glob("fold_*/checkpoint_final.pth")]
    chosen = [] if sorted(folds) == FOLDS_WITHOUT_F else ["-f", *sorted(folds, key=lambda fold: (len(fold), fold))]
    place, parts = exported.resolve(), exported.resolve().name.split("__")
    _, _, results = (variable.get() for variable in NNUNET_PATHS)
    found_by_name = results and place.parent.parent == Path(results).resolve() and parts[0] == STOCK_TRAINER
    if found_by_name and len(parts) == 3:
        command = ["nnUNetv2_predict", "-d", place.parent.name, "-c", parts[2], "-p", parts[1]]
    else:
        command = ["nnUNetv2_predict_from_modelfolder", "-m", str(exported)]
    return shlex.join([*command, "-i", "IMAGES", "-o", "OUT", *chosen])


def _check_architecture(plans: dict[str, Any], configuration: str, model_folder: Path) -> None:
    """Refuse a model whose network class is not one of this package's."""
    entry = plans["configurations"].get(configuration, {}).get("architecture", {})
    if not entry.get("network_class_name", "").startswith("nnunetv2_meddino."):
        msg = (
            f"The plans in {model_folder} do not describe a network of this package. Models of other trainers need no "
            "such export; a model of ours must be trained to the end of its first epoch."
        )
        raise ConfigurationError(msg)
