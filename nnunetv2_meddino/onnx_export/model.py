"""A trained model as a folder: an ONNX file for each fold, and one JSON file with what prediction needs besides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from nnunetv2_meddino.environment import NNUNET_COMPILE, changed_environment
from nnunetv2_meddino.errors import ConfigurationError
from nnunetv2_meddino.files import whole_folder, write_json
from nnunetv2_meddino.inference.model import OURS, Fold, Model, chosen_folds, read_model
from nnunetv2_meddino.onnx_export.network import INPUT, OPSET, OUTPUT, Size, check_network, write_network

DESCRIPTION = "model.json"
"""Name of the JSON file."""

OnFold = Callable[[int, int], None]
"""Called with the number of finished folds, and of all."""


def export_onnx(
    model_folder: Path,
    out: Path | None = None,
    folds: Sequence[Fold] | None = None,
    *,
    half: bool = False,
    on_fold: OnFold | None = None,
) -> Path:
    """Write the networks of a trained model as ONNX files, each run and compared with torch before it is kept.

    Args:
        model_folder: ``nnUNet_results/DatasetXXX_Name/Trainer__Plans__configuration``, of our trainers or nnU-Net's 2D.
        out: Folder to write; must not exist. Default: beside ``model_folder``, with ``__onnx`` or ``__onnx_float16``
            after its name.
        folds: Which; None: as ``meddino predict``, all trained ones.
        half: Weights and arithmetic in float16.
        on_fold: See ``OnFold``.

    Returns:
        The folder written.

    Raises:
        ConfigurationError: ``out`` exists, a fold is not trained, the network cannot be exported or computes something
            else in the file than in torch, or a package is missing.
    """
    precision = "float16" if half else "float32"
    out = out or model_folder.resolve().with_name(f"{model_folder.resolve().name}__onnx{'_float16' if half else ''}")
    if out.exists():
        raise ConfigurationError(f"{out} exists already. Remove it, or choose another folder with -o.")
    with changed_environment({NNUNET_COMPILE.name: None}):  # compiled networks cannot be traced
        model = read_model(model_folder, folds)
    names = [f"fold_{fold}" for fold in chosen_folds(model_folder, folds)]
    multiple, channels = size_multiple(model), len(model.configuration.normalization_schemes)
    rows, columns = (int(side) for side in model.configuration.patch_size)
    sizes = [(rows, columns), (multiple[0] * 8, multiple[1] * 11) if multiple != (1, 1) else (130, 70)]
    with whole_folder(out) as folder:
        for done, (name, network) in enumerate(zip(names, model.networks, strict=True)):
            if on_fold is not None:
                on_fold(done, len(names))
            file = folder / f"{name}.onnx"
            facts = {"meddino.fold": name, "meddino.precision": precision}
            write_network(network, file, channels, half=half, multiple=multiple, metadata=facts)
            check_network(file, network, channels, sizes, precision)
        write_json(description(model, names, precision), folder / DESCRIPTION)
    return out


def size_multiple(model: Model) -> Size:
    """Return of which numbers rows and columns of an image must be multiples: 1 for our networks, which pad.

    Those of nnU-Net must be divisible by the product of their strides.
    """
    if model.configuration.network_arch_class_name.startswith(OURS):
        return 1, 1
    rows, columns = np.prod(model.configuration.network_arch_init_kwargs["strides"], axis=0).tolist()
    return rows, columns


def description(model: Model, names: Sequence[str], precision: str) -> dict[str, Any]:
    """Return what prediction needs besides the networks: the contents of ``model.json``.

    Rows come before columns, ``spacing_mm`` and ``patch_size`` are of the axes that ``transpose_forward`` puts last,
    and ``mirrored_axes`` are those of ``(B, C, H, W)``.
    """
    plans, configuration, dataset = model.plans, model.configuration, model.dataset_json
    intensities = plans.foreground_intensity_properties_per_channel
    schemes = zip(configuration.normalization_schemes, configuration.use_mask_for_norm, strict=True)
    return {
        "written_by": f"nnunetv2-meddino {version('nnunetv2-meddino')}",
        "dataset": plans.dataset_name,
        "networks": [f"{name}.onnx" for name in names],
        "input": INPUT,
        "output": OUTPUT,
        "opset": OPSET,
        "precision": precision,
        "patch_size": [int(side) for side in configuration.patch_size],
        "size_multiple": list(size_multiple(model)),
        "mirrored_axes": [[axis + 2 for axis in axes] for axes in model.mirrorings],
        "spacing_mm": list(configuration.spacing),
        "transpose_forward": list(plans.transpose_forward),
        "transpose_backward": list(plans.transpose_backward),
        "channels": [
            {"name": name, "normalization": scheme, "use_mask_for_norm": masked, **intensities[str(i)]}
            for i, (name, (scheme, masked)) in enumerate(zip(_channel_names(dataset), schemes, strict=True))
        ],
        "resampling": {
            what: {
                "function": configuration.configuration[f"resampling_fn_{what}"],
                **configuration.configuration[f"resampling_fn_{what}_kwargs"],
            }
            for what in ("data", "probabilities")
        },
        "labels": dataset["labels"],
        "regions_class_order": model.regions,
        "file_ending": dataset["file_ending"],
    }


def _channel_names(dataset: dict[str, Any]) -> list[str]:
    names = dataset.get("channel_names") or dataset["modality"]  # the latter in datasets of nnU-Net v1
    return [names[key] for key in sorted(names, key=int)]
