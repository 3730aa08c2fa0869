"""Measure regions of label maps of any type with the engine, which takes bytes and at most 64 classes at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunetv2_meddino.errors import ConfigurationError
from nnunetv2_meddino.evaluation.surface import engine
from nnunetv2_meddino.evaluation.surface.elements import ClassSurfaces
from nnunetv2_meddino.imaging.segmentation import check_whole_numbers

MAX_CLASSES = 64
"""Classes measured in one pass: one bit each in a 64-bit word."""

MAX_LABELS = 255
"""Labels that fit into a byte; 0 stands for everything that is in no class."""

Region = tuple[int, ...]
"""Labels that are evaluated as one."""


@dataclass(frozen=True)
class Measurement:
    """Overlap and surfaces of a pair of label maps."""

    counts: dict[Region, tuple[int, int, int, int]]
    """Voxels of each region: TP, FP, FN, TN; ignored voxels are in none."""
    surfaces: dict[Region, ClassSurfaces | None]
    """None where a region is absent from the reference or from the prediction."""
    undeclared_labels: tuple[int, ...]
    """Labels other than 0 in either volume and in no region, ascending; the ignore label is declared."""


def measure(
    reference: NDArray[Any],
    prediction: NDArray[Any],
    spacing_mm: tuple[float, float, float],
    regions: Sequence[Region],
    *,
    ignore_label: int | None = None,
    planar: bool = False,
) -> Measurement:
    """Measure all regions, in as few passes as bytes and 64-bit words allow.

    Voxels where the reference is ``ignore_label`` are background in both masks. An element whose neighbourhood (2x2x2
    voxels, or a voxel and its 6 neighbours) holds an ignored voxel is not measured from, but distances to it are: the
    edge of the ignored part is not an error of either.

    Args:
        reference: ``(z, y, x)`` label map of any integer type, or of whole numbers in a float type.
        prediction: Label map of the same shape.
        spacing_mm: Voxel size in ``(z, y, x)`` order.
        regions: Distinct regions, none with ``ignore_label``.
        ignore_label: Label of voxels of the reference that are ignored.
        planar: The volume is a single slice, measured by the 2D definitions.

    Raises:
        DataError: A value is not a whole number.
        ConfigurationError: A region has too many labels.
    """
    ignored = () if ignore_label is None else (ignore_label,)
    declared = {*ignored, *(label for region in regions for label in region)}
    counts: dict[Region, tuple[int, int, int, int]] = {}
    surfaces: dict[Region, ClassSurfaces | None] = {}
    undeclared: set[int] = set()
    # 0 is what lies outside the volume: where it is a class of its own, it needs another number
    as_they_are = None if 0 in declared else _as_bytes(reference, prediction)
    if as_they_are is None:
        check_whole_numbers(reference, "The reference")
        check_whole_numbers(prediction, "The prediction")
        undeclared = (_distinct_labels(reference) | _distinct_labels(prediction)) - declared - {0}
    for group in _batches(regions, MAX_LABELS - len(ignored)):
        labels = sorted({*ignored, *(label for region in group for label in region)})
        if as_they_are is None:
            volumes = [_renumber(reference, labels), _renumber(prediction, labels)]
            code = {label: i + 1 for i, label in enumerate(labels)}
        else:
            volumes = as_they_are
            code = {label: label for label in labels if 0 < label <= MAX_LABELS}
        coded = [tuple(code[label] for label in region if label in code) for region in group]
        ignored_code = code.get(ignore_label) if ignore_label is not None else None
        confusion, found = engine.measure_bytes(
            volumes[0], volumes[1], spacing_mm, coded, ignore_label=ignored_code, planar=planar
        )
        if as_they_are is not None:
            occurring = confusion.any(axis=0) | confusion.any(axis=1)
            undeclared = set(np.flatnonzero(occurring).tolist()) - declared - {0}
        counted = engine.without_ignored(confusion, ignored_code)
        for region, own, pair in zip(group, coded, found, strict=True):
            counts[region] = _counts(counted, own)
            surfaces[region] = pair
    return Measurement(counts, surfaces, tuple(sorted(undeclared)))


def _counts(confusion: NDArray[np.int64], labels: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Return TP, FP, FN and TN."""
    own = list(labels)
    tp = int(confusion[np.ix_(own, own)].sum())
    n_ref, n_pred = int(confusion[own].sum()), int(confusion[:, own].sum())
    return tp, n_pred - tp, n_ref - tp, int(confusion.sum()) - n_ref - n_pred + tp


def _distinct_labels(volume: NDArray[Any]) -> set[int]:
    """Return the labels that occur; all values must be whole numbers."""
    if volume.dtype == np.uint8:
        return set(np.flatnonzero(sum(np.bincount(part.ravel(), minlength=256) for part in volume)).tolist())
    found: set[int] = set()
    for part in volume:  # slice by slice, so that nothing as large as the volume is made
        found.update(int(v) for v in np.unique(part))
    return found


def _as_bytes(*volumes: NDArray[Any]) -> list[NDArray[np.uint8]] | None:
    """Return the volumes as uint8 if all their values are whole numbers of 0 to 255; uint8 ones are not copied."""
    results = []
    for volume in volumes:
        result = volume.view(np.uint8) if volume.dtype in (np.uint8, np.bool_) else _narrowed(volume)
        if result is None:
            return None
        results.append(result)
    return results


def _narrowed(volume: NDArray[Any]) -> NDArray[np.uint8] | None:
    result = np.empty(volume.shape, dtype=np.uint8)
    with np.errstate(invalid="ignore"):
        for source, target in zip(volume, result, strict=True):  # slice by slice, for the sake of memory
            np.copyto(target, source, casting="unsafe")
            if not np.array_equal(source, target):
                return None
    return result


def _renumber(volume: NDArray[Any], labels: Sequence[int]) -> NDArray[np.uint8]:
    """Return a uint8 volume with ``i + 1`` where ``labels[i]`` stands and 0 elsewhere; ``labels`` ascending."""
    values = np.asarray(labels, dtype=np.int64)
    result = np.empty(volume.shape, dtype=np.uint8)
    for source, target in zip(volume, result, strict=True):
        wide = source.astype(np.int64)
        place = np.minimum(np.searchsorted(values, wide), len(values) - 1)
        target[...] = np.where(values[place] == wide, place + 1, 0)
    return result


def _batches(regions: Sequence[Region], max_labels: int) -> list[list[Region]]:
    """Split regions, in order, into groups of at most ``MAX_CLASSES`` with at most ``max_labels`` distinct labels."""
    groups: list[list[Region]] = []
    used: set[int] = set()
    for labels in regions:
        if (count := len(set(labels))) > max_labels:
            raise ConfigurationError(f"A region of {count} labels is too large; at most {max_labels} are supported.")
        if not groups or len(groups[-1]) == MAX_CLASSES or len(used | set(labels)) > max_labels:
            groups.append([])
            used = set()
        groups[-1].append(labels)
        used |= set(labels)
    return groups
