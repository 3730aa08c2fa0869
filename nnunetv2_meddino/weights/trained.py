"""Checkpoints that nnU-Net's trainers write: the encoder in one, its architecture, and what it has been through."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from nnunetv2_meddino.errors import WeightsError
from nnunetv2_meddino.networks.lora import merge_adapters
from nnunetv2_meddino.weights.catalog import InputStatistics
from nnunetv2_meddino.weights.formats import unwrapped

FORMAT = "nnunet"
ENCODER = "encoder."
PROVENANCE = "meddino"
"""Key of ``init_args`` in a checkpoint under which our trainers keep the provenance of the weights that they began
with, and their random state; nnU-Net ignores it."""

FAMILIES = {"vit": "DINOv3 ViT", "mit": "Mix Transformer, for SegFormerTrainer alone"}
"""Argument of a network of ours that holds its encoder's architecture -> what the encoder is."""


@dataclass(frozen=True)
class TrainedModel:
    """The encoder of a trained segmentation network."""

    architecture: dict[str, Any]
    """Of the encoder, as JSON values."""
    tensors: dict[str, Tensor]
    """The encoder's state dict, adapters merged into its weights."""
    dropped: dict[str, str]
    """Other tensors of the network -> why they were left behind."""
    provenance: dict[str, Any]
    """As ``PretrainedWeights.provenance`` of weights that were made from others, and how they were trained."""


def trained_model(content: Mapping[str, Any], path: Path, family: str) -> TrainedModel | None:
    """Read what a file of nnU-Net's trainers holds; None where it is none.

    Args:
        content: As ``read_file`` returns it.
        path: Its file, for messages.
        family: The encoder that is wanted: a key of ``FAMILIES``.

    Raises:
        WeightsError: The network is not one of this package, or has another encoder.
    """
    if not {"network_weights", "init_args", "trainer_name"} <= content.keys():
        return None
    try:
        return _read(content, path, family)
    except (AttributeError, KeyError, TypeError) as error:
        msg = (
            f"{path} looks like a checkpoint of nnU-Net but is not as nnU-Net 2.8 writes it ({type(error).__name__}: "
            f"{error}). Use one that this version of nnU-Net has written, or pretrained weights."
        )
        raise WeightsError(msg) from error


def _read(content: Mapping[str, Any], path: Path, family: str) -> TrainedModel:
    arguments, trainer = content["init_args"], content["trainer_name"]
    where = f"{arguments['plans']['dataset_name']}, {arguments['configuration']}, fold {arguments['fold']}"
    entry = _setting(arguments, "architecture") or {}
    options = entry.get("arch_kwargs", {})
    network = entry.get("network_class_name", "which its plans do not name")
    ours = network.startswith("nnunetv2_meddino.")
    if not ours or family not in options:
        kinds = [f"another encoder ({FAMILIES[name]})" for name in FAMILIES if ours and name in options]
        msg = (
            f"{path} is a checkpoint of nnU-Net's {trainer} ({where}). Its network, {network}, has "
            f"{kinds[0] if kinds else 'no encoder of this package'}; needed is a {FAMILIES[family]}. Name a checkpoint "
            "of a trainer that has one, or pretrained weights (`meddino weights list`)."
        )
        raise WeightsError(msg)
    network_weights = {unwrapped(name): tensor for name, tensor in content["network_weights"].items()}
    tensors = {n.removeprefix(ENCODER): t for n, t in network_weights.items() if n.startswith(ENCODER)}
    if lora := options.get("lora"):
        tensors = merge_adapters(tensors, lora["alpha"])
    others = [name for name in network_weights if not name.startswith(ENCODER)]
    return TrainedModel(
        architecture=options[family],
        tensors=tensors,
        dropped=dict.fromkeys(others, "of the segmentation network, not of its encoder"),
        provenance=_provenance(content, f"{trainer} on {where}"),
    )


def _provenance(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    arguments = content["init_args"]
    kept = arguments.get(PROVENANCE, {})
    origin = kept.get("weights") or {"name": "weights that the checkpoint does not name"}
    random = origin.get("name") == "none"
    return {
        "name": name,
        "trainer": content["trainer_name"],
        "dataset": arguments["plans"]["dataset_name"],
        "configuration": arguments["configuration"],
        "fold": arguments["fold"],
        "epochs": content["current_epoch"],
        "licence": origin.get("licence"),
        "licence_url": origin.get("licence_url"),
        "input_statistics": _input_statistics(arguments) or origin.get("input_statistics"),
        "derived_from": None if random else origin,
    } | {key: kept[key] for key in ("fine_tuning",) if key in kept}


def _input_statistics(arguments: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return how nnU-Net normalised the images where that does not depend on the image: grey CT."""
    if _setting(arguments, "normalization_schemes") != ["CTNormalization"]:
        return None
    measured = arguments["plans"]["foreground_intensity_properties_per_channel"]["0"]
    return asdict(
        InputStatistics(
            mean=(float(measured["mean"]),),
            std=(float(measured["std"]),),
            clip_hu=(float(measured["percentile_00_5"]), float(measured["percentile_99_5"])),
            note=f"Hounsfield units; nnU-Net's normalisation of {arguments['plans']['dataset_name']}",
        )
    )


def _setting(arguments: Mapping[str, Any], key: str) -> Any:
    """Return a value of the trained configuration, or of the one that it inherits it from; None where there is none."""
    configurations, name = arguments["plans"]["configurations"], arguments["configuration"]
    while name and key not in configurations[name]:
        name = configurations[name].get("inherits_from")
    return configurations[name][key] if name else None
