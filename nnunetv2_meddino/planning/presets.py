"""Settings for benchmark datasets and recipes, laid over what the planning rules give (``plans/*.json``)."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunetv2.preprocessing.resampling.utils import recursive_find_resampling_fn_by_name
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunetv2_meddino.errors import DataError, PlanError
from nnunetv2_meddino.files import read_json

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

logger = logging.getLogger(__name__)

TOKEN_PX = 16
SAME_FIELD_OF_VIEW = "2d spacing x 2d patch size / patch size"
MEDIAN_IMAGE_FILLS_PATCH = "median field of view / patch size"
SPACING_RULES = (SAME_FIELD_OF_VIEW, MEDIAN_IMAGE_FILLS_PATCH)
SEG_RESAMPLING_KEYS = {"resampling_fn_seg", "resampling_fn_seg_kwargs"}
OVERLAY_KEYS = {"patch_size", "spacing", "batch_size", "normalization_schemes", *SEG_RESAMPLING_KEYS}


def overlays() -> dict[str, Traversable]:
    """Return the files of ``plans`` by name: of the installed package, or of the folder beside it in a checkout."""
    package = resources.files("nnunetv2_meddino")
    inside = package / "plans"
    folder = inside if inside.is_dir() else Path(str(package)).parent / "plans"
    return {file.name.removesuffix(".json"): file for file in folder.iterdir() if file.name.endswith(".json")}


@dataclass(frozen=True)
class BenchmarkDataset:
    """What is publicly known about a benchmark dataset, without its images."""

    name: str
    source: str
    licence: str
    modality: str
    labelled_cases: int
    labels: Mapping[str, int]
    note: str


@dataclass(frozen=True)
class Overlay:
    """Settings for one benchmark dataset, or for any dataset, laid over what the planning rules give."""

    name: str
    dataset: BenchmarkDataset | None
    """None: the settings fit any dataset."""
    configuration: Mapping[str, Mapping[str, Any]]
    """Configuration name (``2d_896``) -> nnU-Net configuration keys, out of ``OVERLAY_KEYS``."""


def load_overlay(name_or_path: str | Path) -> Overlay:
    """Read an overlay from a path, or by name (``amos22``) from the ``plans`` folder that comes with the package.

    Raises:
        PlanError: It does not exist, is not JSON, or does not follow the schema in plans/README.md.
    """
    given, known = Path(name_or_path), overlays()
    file = given if given.is_file() else known.get(str(name_or_path))
    if file is None:
        names = ", ".join(sorted(known))
        raise PlanError(f"Overlay {name_or_path} is neither a file nor one of: {names}. Correct its name.")
    content = read_json(file, PlanError, "Correct the file; plans/README.md says what it holds.")
    try:
        dataset = BenchmarkDataset(**content["dataset"]) if "dataset" in content else None
        overlay = Overlay(Path(file.name).stem, dataset, content["configuration"])
        fault = _overlay_fault(overlay)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        fault = f"{type(error).__name__}: {error}"
    if fault:
        raise PlanError(f"Overlay {file} does not follow plans/README.md: {fault}. Correct the file.")
    return overlay


def apply_overlay(
    configuration: Mapping[str, Any], settings: Mapping[str, Any], field_of_view_mm: Sequence[float]
) -> dict[str, Any]:
    """Return ``configuration`` with the settings of an overlay laid over it.

    Another spacing than the one that keeps the field of view of ``2d`` replaces it, and the median image size follows.

    Args:
        configuration: nnU-Net configuration that the planning rules give.
        settings: Out of ``OVERLAY_KEYS``. ``spacing`` is (y, x) in mm or one of ``SPACING_RULES``;
            ``MEDIAN_IMAGE_FILLS_PATCH`` makes the median image as large as the patch, per in-plane axis.
        field_of_view_mm: Median size (y, x) of the dataset's slices in mm.
    """
    result = {**configuration, **settings}
    spacing = settings.get("spacing", SAME_FIELD_OF_VIEW)
    if spacing == SAME_FIELD_OF_VIEW:
        return {**result, "spacing": configuration["spacing"]}
    if spacing == MEDIAN_IMAGE_FILLS_PATCH:
        spacing = [mm / px for mm, px in zip(field_of_view_mm, result["patch_size"], strict=True)]
    median = [round(extent / mm) for extent, mm in zip(field_of_view_mm, spacing, strict=True)]
    return {**result, "spacing": spacing, "median_image_size_in_voxels": median}


def _overlay_fault(overlay: Overlay) -> str | None:
    """Return what is wrong with an overlay, or None."""
    if overlay.dataset and list(overlay.dataset.labels.values()) != list(range(len(overlay.dataset.labels))):
        return "labels must be 0, 1, 2, ... in order"
    for name, settings in overlay.configuration.items():
        if unknown := set(settings) - OVERLAY_KEYS:
            return f"{name} has unknown settings: {', '.join(sorted(unknown))}"
        height, width = settings["patch_size"]
        if height != width or height <= 0 or height % TOKEN_PX or name != f"2d_{height}":
            return f"patch size {height} x {width} of {name} is not the square in its name, a multiple of 16"
        spacing = settings.get("spacing", SAME_FIELD_OF_VIEW)
        if spacing not in SPACING_RULES and not (len(spacing) == 2 and min(spacing) > 0):
            return f'spacing of {name} is neither (y, x) in mm nor "' + '" nor "'.join(SPACING_RULES) + '"'
        if given := SEG_RESAMPLING_KEYS & settings.keys():
            if given != SEG_RESAMPLING_KEYS:
                return f"{name} has {given.pop()} alone; {' and '.join(sorted(SEG_RESAMPLING_KEYS))} go together"
            function = recursive_find_resampling_fn_by_name(settings["resampling_fn_seg"])
            inspect.signature(function).bind_partial(**settings["resampling_fn_seg_kwargs"])
    return None


def check_overlay_fits(overlay: Overlay, name: str, labels: LabelManager, dataset_json: Mapping[str, Any]) -> None:
    """Refuse an overlay that is for another dataset or configuration."""
    if name not in overlay.configuration:
        has = ", ".join(overlay.configuration)
        raise PlanError(f"Overlay {overlay.name} has no configuration {name}, only: {has}. Choose its patch size.")
    if overlay.dataset is None:
        return
    expected = list(overlay.dataset.labels.values())
    if list(labels.all_labels) != expected:
        msg = f"Overlay {overlay.name} is for labels {expected}, but dataset.json declares {labels.all_labels}."
        raise DataError(f"{msg} Convert the labels to: {', '.join(overlay.dataset.labels)}; or plan without overlay.")
    if dataset_json["numTraining"] != overlay.dataset.labelled_cases:
        counts = (overlay.dataset.name, overlay.dataset.labelled_cases, dataset_json["numTraining"])
        logger.warning("%s has %d labelled cases, this dataset %d: results may not be comparable.", *counts)
