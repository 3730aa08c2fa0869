"""What a trained model is and what it cost: network, resolution, length of the training, origin of its weights."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nnunetv2_meddino.comparison.folders import Method
from nnunetv2_meddino.errors import DataError
from nnunetv2_meddino.files import read_json
from nnunetv2_meddino.inference.model import build_network

logger = logging.getLogger(__name__)

CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_latest.pth", "checkpoint_best.pth")
"""In the order in which nnU-Net looks for one to continue from."""


@dataclass(frozen=True)
class Network:
    """Size of a network."""

    parameters: int
    trainable: int
    """Parameters with ``requires_grad`` once it is built."""
    gflops: float
    """10^9 floating point operations of one forward pass of one patch; a multiplication and an addition are two."""


@dataclass(frozen=True)
class ModelFacts:
    """What the plans of a model say, and its network."""

    patch_size: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    """In the order of the patch's axes."""
    batch_size: int
    network: Network | None
    fault: str = ""
    """Why there is no ``network``."""


@dataclass(frozen=True)
class Training:
    """How far the training of a fold got; None where nothing tells."""

    finished: bool
    """``checkpoint_final.pth`` is there."""
    epochs_done: int | None
    epochs_planned: int | None
    iterations_per_epoch: int | None
    seconds: float | None
    """Sum of the epochs' durations; pauses between resumed runs are in none."""
    ended: float | None
    """End of the last epoch in seconds since 1970."""
    device: str | None
    mirroring: tuple[int, ...] | None
    """Axes mirrored at test time."""
    weights: dict[str, Any] | None
    """Provenance of pretrained weights, where the trainer kept it."""
    loader: str | None = "stock"
    """What made its batches; where the checkpoint does not say, it was nnU-Net's own."""
    fine_tuning: str | None = None
    """How its pretrained encoder was fine-tuned, if another way than its trainer's was chosen."""


def read_model(model_folder: Path, method: Method) -> ModelFacts:
    """Read the plans of a model, build its network as nnU-Net's prediction does, and count.

    FLOPs are counted on tensors without data, so nothing is computed.

    Raises:
        DataError: ``plans.json`` or ``dataset.json`` in the folder cannot be used.
    """
    plans_file = model_folder / "plans.json"
    advice = f"Restore the file, or move {model_folder} away."
    plans = PlansManager(read_json(plans_file, DataError, advice))
    dataset_json = read_json(model_folder / "dataset.json", DataError, advice)
    try:
        configuration = plans.get_configuration(method.configuration)
        patch_size, spacing_mm = tuple(configuration.patch_size), tuple(configuration.spacing)
        batch_size = configuration.batch_size
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        msg = f"{plans_file} holds no usable configuration {method.configuration} ({error})."
        raise DataError(f"{msg} {advice}") from error
    try:
        network, fault = _count(plans, configuration, dataset_json, method.trainer), ""
    except Exception as error:  # code of any trainer runs here; the comparison of scores does not depend on it
        network, fault = None, f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
        logger.warning("The network of %s cannot be built here: %s", method.name, fault)
    return ModelFacts(patch_size, spacing_mm, batch_size, network, fault)


def _count(
    plans: PlansManager, configuration: ConfigurationManager, dataset_json: dict[str, Any], trainer: str
) -> Network:
    network = build_network(trainer, plans, configuration, dataset_json).eval()
    channels = determine_num_input_channels(plans, configuration, dataset_json)
    parameters = list(network.parameters())
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        torch.no_grad(),
        FlopCounterMode(display=False) as counter,
        sdpa_kernel(SDPBackend.MATH),  # as two products: torch 2.10 does not count the fused kernel of the CPU
    ):
        network(torch.empty(1, channels, *configuration.patch_size))
    return Network(
        parameters=sum(p.numel() for p in parameters),
        trainable=sum(p.numel() for p in parameters if p.requires_grad),
        gflops=counter.get_total_flops() / 1e9,
    )


def read_training(fold_folder: Path) -> Training:
    """Read the newest checkpoint of a fold and ``debug.json``; tensors in the checkpoint stay on the disk.

    Like nnU-Net, this trusts checkpoints: they are the user's own and hold numpy objects.

    Raises:
        DataError: The checkpoint cannot be read.
    """
    debug = _debug(fold_folder)
    path = next((fold_folder / name for name in CHECKPOINTS if (fold_folder / name).is_file()), None)
    content: dict[str, Any] = {}
    if path is not None:
        try:
            content = torch.load(path, map_location="cpu", mmap=True, weights_only=False)
        except Exception as error:  # damaged archives and pickles raise anything
            msg = f"{path} cannot be read ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})."
            raise DataError(f"{msg} Restore it, or remove it and train on from an older one.") from error
    log = content.get("logging", {})
    starts, ends = log.get("epoch_start_timestamps", []), log.get("epoch_end_timestamps", [])
    durations = [float(end) - float(start) for start, end in zip(starts, ends, strict=False)]
    kept = content.get("init_args", {}).get("meddino", {})
    mirroring = content.get("inference_allowed_mirroring_axes")
    return Training(
        finished=path is not None and path.name == CHECKPOINTS[0],
        epochs_done=_whole(content.get("current_epoch")),
        epochs_planned=_whole(debug.get("num_epochs")),
        iterations_per_epoch=_whole(debug.get("num_iterations_per_epoch")),
        seconds=math.fsum(durations) if durations else None,
        ended=float(ends[-1]) if len(ends) else None,
        device=_device(debug),
        mirroring=None if path is None else tuple(int(axis) for axis in mirroring or ()),
        weights=kept.get("weights"),
        loader=None if path is None else _loader(kept.get("loader", {})),
        fine_tuning=kept.get("fine_tuning", {}).get("name"),
    )


def _loader(kept: Mapping[str, Any]) -> str:
    name, source = kept.get("name", "stock"), kept.get("slices_of")
    return f"{name}, which resamples slices of {source}" if source else name


def _debug(fold_folder: Path) -> Mapping[str, str]:
    """Return nnU-Net's ``debug.json``, all of whose values are strings; empty where there is none."""
    try:
        content = json.loads((fold_folder / "debug.json").read_text())
    except FileNotFoundError:
        return {}
    except ValueError:
        logger.warning("%s is damaged; what it says is left out.", fold_folder / "debug.json")
        return {}
    return content if isinstance(content, dict) else {}


def _device(debug: Mapping[str, str]) -> str | None:
    return debug.get("gpu_name") or debug.get("device")


def _whole(value: Any) -> int | None:
    try:
        return int(value)
    except (TypeError, ValueError):
        return None
