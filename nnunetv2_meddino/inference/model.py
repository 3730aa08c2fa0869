"""A trained model: its networks, one for each fold, with the plans that say how to use them."""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from contextlib import redirect_stdout
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.label_handling.label_handling import LabelManager, determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunetv2_meddino.environment import NNUNET_COMPILE, NNUNET_EXT_TRAINER, changed_environment, ext_trainer_value
from nnunetv2_meddino.errors import ConfigurationError, DataError
from nnunetv2_meddino.files import read_json
from nnunetv2_meddino.inference.plans import check_slicewise
from nnunetv2_meddino.weights.files import read_file

OURS = "nnunetv2_meddino."
"""Beginning of the names of this package's networks."""

STOCK_TRAINER = "nnUNetTrainer"

FINAL_CHECKPOINT = "checkpoint_final.pth"

Fold = int | str
"""A number, or ``all`` for the fold that is trained on all cases."""


@dataclass(frozen=True)
class Model:
    """A trained 2D model."""

    plans: PlansManager
    configuration: ConfigurationManager
    dataset_json: dict[str, Any]
    networks: list[nn.Module]
    """One for each fold; each maps ``(B, C, *patch_size)`` to logits ``(B, K, *patch_size)``."""
    mirror_axes: tuple[int, ...]
    """Axes of a slice (0: rows, 1: columns) along which its views may be mirrored."""

    @property
    def labels(self) -> LabelManager:
        """nnU-Net's knowledge of the classes."""
        return self.plans.get_label_manager(self.dataset_json)

    @property
    def regions(self) -> list[int] | None:
        """The label of each region, in the order in which later ones cover earlier ones; None: no regions."""
        labels = self.labels
        return [int(label) for label in labels.regions_class_order] if labels.has_regions else None

    @property
    def mirrorings(self) -> list[tuple[int, ...]]:
        """Every combination of ``mirror_axes``, the empty one first."""
        counts = range(len(self.mirror_axes) + 1)
        return [axes for count in counts for axes in itertools.combinations(self.mirror_axes, count)]


def read_model(folder: Path, folds: Sequence[Fold] | None, checkpoint: str = FINAL_CHECKPOINT) -> Model:
    """Read a folder that nnU-Net has trained, without executing anything in its checkpoints.

    Args:
        folder: ``Trainer__Plans__configuration`` of ``nnUNet_results``.
        folds: Which to use; None: all trained ones but ``all``, or that where there is no other.
        checkpoint: File name of the weights in each fold's folder.

    Raises:
        ConfigurationError: A fold is not trained, or its slices cannot be predicted one by one.
        DataError: ``plans.json`` or ``dataset.json`` cannot be used.
        WeightsError: A checkpoint cannot be read, or does not fit the network.
    """
    advice = f"Restore it: {folder} must be a folder Trainer__Plans__configuration of nnUNet_results."
    plans = PlansManager(read_json(folder / "plans.json", DataError, advice))
    dataset_json = read_json(folder / "dataset.json", DataError, advice)
    files = [folder / f"fold_{fold}" / checkpoint for fold in chosen_folds(folder, folds, checkpoint)]
    networks: list[nn.Module] = []
    mirror_axes: tuple[int, ...] = ()
    for file in files:
        content = read_file(file).content
        try:
            weights, arguments = content["network_weights"], content["init_args"]
            trainer, name = content["trainer_name"], arguments["configuration"]
        except (KeyError, TypeError) as error:
            msg = f"{file} is no checkpoint of nnU-Net ({error} is missing). Train the fold again, or choose others."
            raise ConfigurationError(msg) from error
        if not networks:
            configuration = plans.get_configuration(name)
            check_slicewise(configuration, folder)
            networks.append(build_network(trainer, plans, configuration, dataset_json))
            mirror_axes = tuple(int(axis) for axis in content.get("inference_allowed_mirroring_axes") or ())
        else:
            networks.append(deepcopy(networks[0]))
        try:
            networks[-1].load_state_dict(weights)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1].strip()
            msg = f"{file} does not fit the network that {folder / 'plans.json'} describes ({reason})."
            raise ConfigurationError(f"{msg} Restore the files of one training.") from error
        networks[-1].eval().requires_grad_(requires_grad=False)
    if NNUNET_COMPILE.get() in ("1", "t", "true", "True"):
        networks = [torch.compile(network) for network in networks]  # type: ignore[misc]
    return Model(plans, configuration, dataset_json, networks, mirror_axes)


def chosen_folds(folder: Path, folds: Sequence[Fold] | None, checkpoint: str = FINAL_CHECKPOINT) -> list[Fold]:
    """Return the folds to predict with.

    Raises:
        ConfigurationError: One that was asked for is not trained, or none is.
    """
    trained = [path.parent.name.removeprefix("fold_") for path in folder.glob(f"fold_*/{checkpoint}")]
    numbers = sorted(int(name) for name in trained if name.isdecimal())
    if folds is None:
        folds = numbers or [name for name in trained if name == "all"]
    missing = [str(fold) for fold in folds if str(fold) not in trained]
    if missing or not folds:
        have = ", ".join([*map(str, numbers), *(name for name in trained if name == "all")]) or "none"
        what = f"fold {', '.join(missing)}" if missing else "any fold"
        msg = (
            f"{folder} has no {checkpoint} of {what}; trained folds: {have}. Choose among them with -f, or train more."
        )
        raise ConfigurationError(msg)
    return list(folds)


def build_network(
    trainer: str, plans: PlansManager, configuration: ConfigurationManager, dataset_json: dict[str, Any]
) -> nn.Module:
    """Build the network as nnU-Net's prediction does.

    nnU-Net's basic trainer and ours build what the plans say; importing them, with all that a training needs, would
    take longer and more memory than everything else here.
    """
    channels = determine_num_input_channels(plans, configuration, dataset_json)
    heads = plans.get_label_manager(dataset_json).num_segmentation_heads
    if trainer == STOCK_TRAINER or configuration.network_arch_class_name.startswith(OURS):
        network: nn.Module = get_network_from_plans(
            configuration.network_arch_class_name,
            configuration.network_arch_init_kwargs,
            configuration.network_arch_init_kwargs_req_import,
            channels,
            heads,
            deep_supervision=False,
        )
        return network
    with changed_environment({NNUNET_EXT_TRAINER.name: ext_trainer_value()}), redirect_stdout(io.StringIO()):
        trainer_class: Any = recursive_find_trainer_class_by_name(trainer)
        return trainer_class.build_network_architecture(
            plans, configuration, channels, heads, enable_deep_supervision=False
        )
