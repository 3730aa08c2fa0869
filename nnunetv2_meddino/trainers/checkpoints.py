"""What a trainer reads back from plans and from nnU-Net's model folder, and the checks on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_meddino.errors import ConfigurationError, PlanError
from nnunetv2_meddino.files import read_json
from nnunetv2_meddino.trainers.fine_tuning import FINE_TUNING, FULL
from nnunetv2_meddino.trainers.training_input import LOADER, STOCK
from nnunetv2_meddino.weights.trained import PROVENANCE


def check_two_dimensional(plans: dict, configuration: str, trainer: str) -> None:
    """Refuse a configuration that these 2D networks cannot train.

    Raises:
        PlanError: The configuration is not in the plans.
        ConfigurationError: Its patches are not two-dimensional.
    """
    known = sorted(plans["configurations"])
    if configuration not in known:
        msg = (
            f"Configuration {configuration} is not in the plans {plans['plans_name']} of {plans['dataset_name']}, "
            f"which hold {', '.join(known)}. For a high-resolution one run: meddino plan -d {plans['dataset_name']}"
        )
        raise PlanError(msg)
    patch_size = PlansManager(plans).get_configuration(configuration).patch_size
    if len(patch_size) != 2:
        msg = (
            f"{trainer} segments slice by slice and cannot train {configuration}, whose patch is {list(patch_size)}. "
            "Train configuration 2d, or 2d_896 after 'meddino plan'."
        )
        raise ConfigurationError(msg)


class Beginning(NamedTuple):
    """What a training was begun with and keeps to."""

    architecture: dict[str, Any]
    """nnU-Net's entry of the network."""
    loader: str
    """Name of what makes its batches."""
    fine_tuning: dict[str, Any]
    """As ``choose_fine_tuning`` returned it."""


def read_beginning(checkpoint: Path, configuration: str) -> Beginning:
    """Return what the training of a checkpoint was begun with."""
    arguments = torch.load(checkpoint, map_location="cpu", mmap=True, weights_only=False)["init_args"]
    kept = arguments.get(PROVENANCE, {})
    return Beginning(
        PlansManager(arguments["plans"]).get_configuration(configuration).configuration["architecture"],
        kept.get(LOADER, {}).get("name", STOCK),
        kept.get(FINE_TUNING, {"name": FULL}),
    )


def check_other_folds(fold_folder: Path, configuration: str, architecture: dict[str, Any] | None) -> None:
    """Refuse to train a fold with another architecture than its sisters: all folds share one ``plans.json``.

    Raises:
        ConfigurationError: A trained sister fold has another architecture.
    """
    plans_file = fold_folder.parent / "plans.json"
    sisters = [f for f in fold_folder.parent.glob("fold_*") if f != fold_folder and any(f.glob("checkpoint_*.pth"))]
    if not sisters or not plans_file.is_file():
        return
    advice = "Restore it from a copy of the trained model, or move the model's folder away to start anew."
    plans = PlansManager(read_json(plans_file, ConfigurationError, advice))
    saved = plans.get_configuration(configuration).configuration["architecture"]
    if saved != json.loads(json.dumps(architecture)):
        msg = (
            f"{sisters[0].name} in {fold_folder.parent} was trained with another architecture than this fold would "
            "have (MEDDINO_BACKBONE, MEDDINO_WEIGHTS or MEDDINO_FINETUNE differ), and nnU-Net keeps one plans.json for "
            "all folds. Train this fold with the settings of the others, or move that folder away to start anew."
        )
        raise ConfigurationError(msg)
