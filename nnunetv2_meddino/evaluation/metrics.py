"""Dice, normalised surface distance and surface distances of one case, per class, in both boundary definitions.

The definitions, each named in every key:

- ``voxel``: boundary voxels, each of weight 1. NSD counts them in one fraction over both surfaces; HD95 is the larger
  of the two directed 95th percentiles, interpolated linearly. Equal to MONAI, in float64; the definition behind the
  MedDINOv3 tables (there at 1 mm).
- ``surfel``: surface elements weighted by area. HD95 is the larger of the two directed distances within which 95 % of
  the area lies, not interpolated. Equal to DeepMind's surface-distance; the definition of KiTS and FLARE.

They differ by several points of NSD on the same masks and must never be compared with one another. In both, ASSD pools
the elements of both surfaces, and a distance counts as within a tolerance when ``distance <= tolerance`` in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunetv2_meddino.errors import ConfigurationError, DataError
from nnunetv2_meddino.evaluation.classes import DEFAULT_TOLERANCES_MM, Tolerances, tolerances_by_class
from nnunetv2_meddino.evaluation.results import BoundaryMetrics, CaseMetrics, ClassMetrics
from nnunetv2_meddino.evaluation.surface import ClassSurfaces, DirectedDistances, SurfacePair, measure


def evaluate_case(
    reference: NDArray[Any],
    prediction: NDArray[Any],
    spacing_mm: Sequence[float],
    classes: Mapping[str, int | Sequence[int]],
    *,
    tolerances_mm: Tolerances = DEFAULT_TOLERANCES_MM,
    ignore_label: int | None = None,
    planar: bool | None = None,
) -> CaseMetrics:
    """Compare two label maps of the same grid.

    Empty masks: where the reference lacks a class, all its metrics are NaN, whatever was predicted, so that all methods
    are averaged over the same cases; ``fp`` and ``only_predicted`` show false positives. Where only the prediction
    lacks it, Dice and NSD are 0, distances are NaN and ``missed`` is True.

    Ignored voxels are left out of all counts and are background in both masks; no distance is measured from a surface
    element that touches them, but distances to it are.

    Args:
        reference: ``(z, y, x)`` label map of any integer type, or of whole numbers in a float type. A uint8 volume is
            not copied; others are, to one byte per voxel.
        prediction: Label map of the same shape.
        spacing_mm: Voxel size in ``(z, y, x)`` order, from the reference's header. Headers store float32: round to 6
            decimals on reading, or a distance of exactly the tolerance may fall outside.
        classes: What to evaluate, by name: a label, or the labels of a region.
        tolerances_mm: One or several tolerances of NSD, the same for all classes or by name of the class.
        ignore_label: Label of voxels of the reference that are ignored.
        planar: Use the 2D definitions, whose surface is a contour. By default where an axis has one voxel.

    Raises:
        DataError: The shapes differ or are not 3D, a value is not a whole number, or the spacing is invalid.
        ConfigurationError: A class or a tolerance is invalid.
    """
    spacing = _checked_spacing(spacing_mm)
    if reference.shape != prediction.shape or reference.ndim != 3 or 0 in reference.shape:
        msg = f"Reference {reference.shape} and prediction {prediction.shape} must be 3D volumes of the same shape."
        raise DataError(msg)
    if not classes:
        raise ConfigurationError("There are no classes to evaluate.")
    regions = {name: _checked_region(name, labels, ignore_label) for name, labels in classes.items()}
    tolerances = tolerances_by_class(tolerances_mm, list(classes))
    if planar is None:
        planar = 1 in reference.shape
    if planar:
        if 1 not in reference.shape:
            raise DataError(f"The 2D definitions need a single slice; this volume is {reference.shape}.")
        axis = reference.shape.index(1)
        reference, prediction = np.moveaxis(reference, axis, 0), np.moveaxis(prediction, axis, 0)
        spacing = _checked_spacing((spacing[axis], *spacing[:axis], *spacing[axis + 1 :]))
    measured = measure(
        reference,
        prediction,
        spacing,
        list(dict.fromkeys(regions.values())),
        ignore_label=ignore_label,
        planar=planar,
    )
    volume_ml = math.prod(spacing) / 1000
    results = {
        name: _class_metrics(labels, measured.counts[labels], measured.surfaces[labels], volume_ml, tolerances[name])
        for name, labels in regions.items()
    }
    return CaseMetrics(results, dimensions=2 if planar else 3, undeclared_labels=measured.undeclared_labels)


def _checked_spacing(spacing_mm: Sequence[float]) -> tuple[float, float, float]:
    values = tuple(float(s) for s in spacing_mm)
    if len(values) != 3 or not all(math.isfinite(s) and s > 0 for s in values):
        raise DataError(f"The spacing must be three positive numbers of millimetres (z, y, x), not {values}.")
    return values[0], values[1], values[2]


def _checked_region(name: str, labels: int | Sequence[int], ignore_label: int | None) -> tuple[int, ...]:
    region = (labels,) if isinstance(labels, (int, np.integer)) else tuple(labels)
    if not region:
        raise ConfigurationError(f"Class {name!r} has no labels.")
    if ignore_label in region:
        raise ConfigurationError(f"Class {name!r} contains the ignore label {ignore_label}.")
    return tuple(sorted({int(label) for label in region}))


def _class_metrics(
    labels: tuple[int, ...],
    counts: tuple[int, int, int, int],
    surfaces: ClassSurfaces | None,
    voxel_volume_ml: float,
    tolerances_mm: tuple[float, ...],
) -> ClassMetrics:
    tp, fp, fn, tn = counts
    if tp + fn:
        dsc, iou = 2 * tp / (2 * tp + fp + fn), tp / (tp + fp + fn)
    else:
        dsc = iou = math.nan
    if surfaces is not None:
        voxel = _boundary_metrics(surfaces.voxel, tolerances_mm, _linear_percentile)
        surfel = _boundary_metrics(surfaces.surfel, tolerances_mm, _covering_percentile)
    else:  # a mask is empty: overlap of surfaces follows that of volumes (0 or NaN), distances are undefined
        voxel = surfel = BoundaryMetrics(dict.fromkeys(tolerances_mm, dsc))
    return ClassMetrics(labels, tp, fp, fn, tn, dsc, iou, voxel, surfel, voxel_volume_ml)


def _boundary_metrics(
    pair: SurfacePair,
    tolerances_mm: tuple[float, ...],
    percentile: Callable[[DirectedDistances, float], float],
) -> BoundaryMetrics:
    directions = (pair.reference_to_prediction, pair.prediction_to_reference)
    total = directions[0].size + directions[1].size
    if not all(len(d.distances_mm) for d in directions):  # every element touches ignored voxels
        return BoundaryMetrics(dict.fromkeys(tolerances_mm, math.nan))
    moments = [math.fsum(d.distances_mm * d.sizes) for d in directions]
    nsd = {t: math.fsum(math.fsum(d.sizes[d.distances_mm <= t]) for d in directions) / total for t in tolerances_mm}
    return BoundaryMetrics(
        nsd=nsd,
        assd_mm=(moments[0] + moments[1]) / total,
        reference_to_prediction_mm=moments[0] / directions[0].size,
        prediction_to_reference_mm=moments[1] / directions[1].size,
        hd95_mm=max(percentile(d, 0.95) for d in directions),
        hd_mm=float(max(d.distances_mm[-1] for d in directions)),
    )


def _linear_percentile(directed: DirectedDistances, fraction: float) -> float:
    """Interpolate between the two elements, in order of distance, around ``fraction * (n - 1)`` (MONAI, numpy)."""
    last = np.cumsum(directed.sizes) - 1  # place of the last element at each distance
    position = fraction * last[-1]
    low, high = directed.distances_mm[np.searchsorted(last, [math.floor(position), math.ceil(position)])]
    part = position - math.floor(position)
    return float(low + (high - low) * part if part < 0.5 else high - (high - low) * (1 - part))


def _covering_percentile(directed: DirectedDistances, fraction: float) -> float:
    """Return the smallest distance within which at least ``fraction`` of the surface lies (DeepMind)."""
    covered = np.cumsum(directed.sizes) / directed.size
    place = min(int(np.searchsorted(covered, fraction)), len(covered) - 1)
    return float(directed.distances_mm[place])
