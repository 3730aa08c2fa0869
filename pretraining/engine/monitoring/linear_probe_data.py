"""Labelled slices for the probe, from a dataset in nnU-Net's raw format."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnunetv2_meddino.errors import DataError
from nnunetv2_meddino.evaluation.classes import LabelSet
from nnunetv2_meddino.files import read_json
from pretraining.curation.readers.read import candidates_of, read_volume
from pretraining.curation.volume import Rejected, Volume
from pretraining.engine.monitoring.fixed_slices import WholeSlice, whole_slice
from pretraining.modality import Modality
from pretraining.views import IntensityConfig

logger = logging.getLogger(__name__)

IGNORED = 255
"""Index of pixels that count for nothing."""

VALIDATION_SHARE = 4
"""One case, and one slice, in this many is for validation."""


@dataclass(frozen=True)
class LabelledSlice:
    """A slice and its labels."""

    case: str
    """Its case."""
    image: WholeSlice
    """As the network sees it."""
    classes: Tensor
    """``(H, W)`` uint8 on the slice's own pixels: 0 background, i + 1 the class i, or ``IGNORED``."""


@dataclass(frozen=True)
class ProbeData:
    """What a probe is fitted to and judged on; no case is in both."""

    names: tuple[str, ...]
    """Of the classes, without background."""
    train: tuple[LabelledSlice, ...]
    """Slices to fit."""
    validation: tuple[LabelledSlice, ...]
    """Slices to judge."""


def read_probe_data(
    folder: Path, *, slices: int, seed: int, intensity: IntensityConfig, size: int, patch_size: int = 16
) -> ProbeData:
    """Read slices with foreground, spread over the cases and over the foreground of each.

    A quarter of the cases, drawn by the seed, gives a quarter of the slices for validation. Of several channels the
    first is taken. Volumes are read up to the number of slices.

    Args:
        folder: ``DatasetXXX_Name`` with dataset.json, imagesTr and labelsTr.
        slices: How many, at least 2.
        seed: Of the split.
        intensity: Of the run.
        size: Longer side of the network's input in pixels.
        patch_size: Side of a patch.

    Raises:
        ConfigurationError: dataset.json declares no usable classes.
        DataError: The folder is no such dataset, has fewer than two labelled cases or no foreground, or a file of it
            cannot be read.
    """
    content = _described(folder)
    labels = LabelSet.from_json(content, str(folder / "dataset.json"))
    lookup = _lookup(labels, folder)
    ending = content["file_ending"]
    cases = _cases(folder, ending)
    order = [cases[i] for i in np.random.default_rng(seed).permutation(len(cases))]
    held_out = max(len(cases) // VALIDATION_SHARE, 1)
    wanted = max(slices // VALIDATION_SHARE, 1)
    parts = []
    for names, number in ((order[held_out:], slices - wanted), (order[:held_out], wanted)):
        found: list[LabelledSlice] = []
        for case, count in _shares(sorted(names), number):
            pixels, classes = _read_case(folder, case, ending, lookup, intensity)
            for z in _spread(classes, count):
                name = f"{case} {z + 1}/{len(pixels)}"
                image = whole_slice(name, torch.from_numpy(pixels[z]), intensity, size=size, patch_size=patch_size)
                found.append(LabelledSlice(case, image, torch.from_numpy(classes[z])))
        if not found:
            msg = f"{folder}: cases {', '.join(sorted(names))} show no foreground. Give the probe another dataset."
            raise DataError(msg)
        parts.append(tuple(found))
    return ProbeData(tuple(labels.classes), *parts)


def _described(folder: Path) -> dict[str, Any]:
    if not (folder / "dataset.json").is_file():
        msg = (
            f"{folder} is no dataset for the probe: it has no dataset.json. Name a folder in nnU-Net's raw format, "
            "such as nnUNet_raw/Dataset001_Name."
        )
        raise DataError(msg)
    content = read_json(folder / "dataset.json", DataError, "Correct it, or name another dataset for the probe.")
    if not isinstance(content.get("file_ending"), str):
        raise DataError(f"{folder / 'dataset.json'} names no file_ending. Write it in nnU-Net's raw format, version 2.")
    return content


def _lookup(labels: LabelSet, folder: Path) -> NDArray[np.uint8]:
    """Return the index of the class of each label: 0 for labels of no class."""
    lookup = np.zeros(256, np.uint8)
    taken: set[int] = set()
    for index, (name, own) in enumerate(labels.classes.items()):
        if taken & set(own) or max(own) > IGNORED:
            msg = f"{folder}: class {name!r} shares a label with another or has one above 255; the probe needs neither."
            raise DataError(msg)
        taken |= set(own)
        lookup[list(own)] = index + 1
    if labels.ignore_label is not None:
        lookup[labels.ignore_label] = IGNORED
    return lookup


def _cases(folder: Path, ending: str) -> list[str]:
    images = {path.name.removesuffix(f"_0000{ending}") for path in (folder / "imagesTr").glob(f"*_0000{ending}")}
    labelled = {path.name.removesuffix(ending) for path in (folder / "labelsTr").glob(f"*{ending}")}
    cases = sorted(images & labelled)
    if len(cases) < 2:
        msg = (
            f"{folder} has {len(cases)} cases with an image (imagesTr/CASE_0000{ending}) and a label map "
            f"(labelsTr/CASE{ending}); the probe needs at least 2, one to fit and one to judge."
        )
        raise DataError(msg)
    return cases


def _shares(cases: Sequence[str], number: int) -> list[tuple[str, int]]:
    """Spread a number of slices over cases as evenly as possible; with more cases than slices, take some of them."""
    count = min(len(cases), number)
    taken = [cases[i * len(cases) // count] for i in range(count)]
    return [(case, number * (i + 1) // count - number * i // count) for i, case in enumerate(taken)]


def _read_case(
    folder: Path, case: str, ending: str, lookup: NDArray[np.uint8], intensity: IntensityConfig
) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """Return the voxels as a corpus stores them and the indices of their classes, both ``(z, y, x)``, axial."""
    image_path, label_path = folder / "imagesTr" / f"{case}_0000{ending}", folder / "labelsTr" / f"{case}{ending}"
    try:
        image = _read(image_path, Modality.CT if intensity.rule in ("ct", "window") else Modality.MR)
        labels = _read_labels(label_path, image)
    except Rejected as refused:
        msg = f"The probe cannot use {case} of {folder}: {refused}. Restore the file, or take the case out."
        raise DataError(msg) from refused
    if image.voxels.shape != labels.voxels.shape or not np.allclose(image.spacing_mm, labels.spacing_mm, rtol=1e-3):
        msg = (
            f"{label_path} does not lie on its image: shape (z, y, x) {labels.voxels.shape} and {image.voxels.shape}, "
            f"spacing {labels.spacing_mm} and {image.spacing_mm} mm. Resample it."
        )
        raise DataError(msg)
    if "rescaled" in labels.flags or labels.voxels.min() < 0 or labels.voxels.max() > IGNORED:
        raise DataError(f"{label_path} holds values that are no labels from 0 to 255. Is it an image?")
    return image.voxels, lookup[labels.voxels]


def _read_labels(path: Path, image: Volume) -> Volume:
    """Read a label map by the same rules of orientation as its image, so that both lie on one another."""
    try:
        return _read(path, Modality.MR)
    except Rejected as refused:
        if refused.reason != "empty":
            raise
        logger.warning("%s has the same value everywhere: the probe finds nothing labelled there.", path)
        return replace(image, voxels=np.zeros_like(image.voxels))


def _read(path: Path, modality: Modality) -> Volume:
    candidates = candidates_of(path)
    if len(candidates) != 1:
        raise Rejected("unreadable", f"{path}: the probe reads NIfTI, NRRD and MetaImage")
    return read_volume(candidates[0], modality)


def _spread(classes: NDArray[np.uint8], number: int) -> list[int]:
    """Return up to ``number`` slices with foreground, evenly spaced among them."""
    shown = ((classes > 0) & (classes != IGNORED)).any(axis=(1, 2))
    z = np.flatnonzero(shown)
    number = min(number, len(z))
    return [int(z[(2 * i + 1) * len(z) // (2 * number)]) for i in range(number)]
