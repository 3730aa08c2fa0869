"""Settings for benchmark data sets, laid over what the planning rules give (``plans/*.json``)."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunetv2_meddino.errors import DataError, PlanError
from nnunetv2_meddino.json_files import read_json

logger = logging.getLogger(__name__)

TOKEN_PX = 16
SAME_FIELD_OF_VIEW = "2d spacing x 2d patch size / patch size"
OVERLAY_KEYS = {"patch_size", "spacing", "batch_size", "normalization_schemes"}
OVERLAY_FOLDERS = (
    Path(__file__).resolve().parent.parent / "plans",  # checkout, editable installation
    Path(sys.prefix) / "share" / "nnunetv2_meddino" / "plans",  # installed wheel
)


@dataclass(frozen=True)
class BenchmarkDataset:
    """What is publicly known about a benchmark data set, without its images."""

    name: str
    source: str
    licence: str
    modality: str
    labelled_cases: int
    labels: Mapping[str, int]
    note: str


@dataclass(frozen=True)
class Overlay:
    """Settings for one benchmark data set, laid over what the planning rules give."""

    name: str
    dataset: BenchmarkDataset
    configuration: Mapping[str, Mapping[str, Any]]
    """Configuration name (``2d_896``) -> nnU-Net configuration keys, out of ``OVERLAY_KEYS``."""


def load_overlay(name_or_path: str | Path) -> Overlay:
    """Read an overlay from a path, or by name (``amos22``) from the ``plans`` folder that comes with the package.

    Raises:
        PlanError: it does not exist, is not JSON, or does not follow the schema in plans/README.md.
    """
    candidates = [Path(name_or_path), *(folder / f"{name_or_path}.json" for folder in OVERLAY_FOLDERS)]
    path = next((candidate for candidate in candidates if candidate.is_file()), None)
    if path is None:
        known = sorted({file.stem for folder in OVERLAY_FOLDERS for file in folder.glob("*.json")})
        raise PlanError(f"Overlay {name_or_path} is neither a file nor one of: {', '.join(known)}. Correct its name.")
    content = read_json(path, PlanError)
    try:
        overlay = Overlay(path.stem, BenchmarkDataset(**content["dataset"]), content["configuration"])
        fault = _overlay_fault(overlay)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        fault = f"{type(error).__name__}: {error}"
    if fault:
        raise PlanError(f"Overlay {path} does not follow plans/README.md: {fault}. Correct the file.")
    return overlay


def apply_overlay(configuration: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``configuration`` with the settings of an overlay laid over it.

    A spacing given in mm (y, x) replaces the one that keeps the field of view, and the median image size follows it.
    """
    fixed = {key: value for key, value in settings.items() if value != SAME_FIELD_OF_VIEW}
    result = {**configuration, **fixed}
    axes = zip(configuration["median_image_size_in_voxels"], configuration["spacing"], result["spacing"], strict=True)
    return {**result, "median_image_size_in_voxels": [round(size * old / new) for size, old, new in axes]}


def _overlay_fault(overlay: Overlay) -> str | None:
    """Return what is wrong with an overlay, or None."""
    if list(overlay.dataset.labels.values()) != list(range(len(overlay.dataset.labels))):
        return "labels must be 0, 1, 2, ... in order"
    for name, settings in overlay.configuration.items():
        if unknown := set(settings) - OVERLAY_KEYS:
            return f"{name} has unknown settings: {', '.join(sorted(unknown))}"
        height, width = settings["patch_size"]
        if height != width or height <= 0 or height % TOKEN_PX or name != f"2d_{height}":
            return f"patch size {height} x {width} of {name} is not the square in its name, a multiple of 16"
        spacing = settings.get("spacing", SAME_FIELD_OF_VIEW)
        if spacing != SAME_FIELD_OF_VIEW and not (len(spacing) == 2 and min(spacing) > 0):
            return f'spacing of {name} is neither (y, x) in mm nor "{SAME_FIELD_OF_VIEW}"'
    return None


def check_overlay_fits(overlay: Overlay, name: str, labels: LabelManager, dataset_json: Mapping[str, Any]) -> None:
    """Refuse an overlay that is for another data set or configuration."""
    if name not in overlay.configuration:
        has = ", ".join(overlay.configuration)
        raise PlanError(f"Overlay {overlay.name} has no configuration {name}, only: {has}. Choose its patch size.")
    expected = list(overlay.dataset.labels.values())
    if list(labels.all_labels) != expected:
        msg = f"Overlay {overlay.name} is for labels {expected}, but dataset.json declares {labels.all_labels}."
        raise DataError(f"{msg} Convert the labels to: {', '.join(overlay.dataset.labels)}; or plan without overlay.")
    if dataset_json["numTraining"] != overlay.dataset.labelled_cases:
        counts = (overlay.dataset.name, overlay.dataset.labelled_cases, dataset_json["numTraining"])
        logger.warning("%s has %d labelled cases, this data set %d: results may not be comparable.", *counts)
