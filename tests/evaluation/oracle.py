"""Surface distances with numpy and scipy alone, which the compiled engine must equal.

Class by class: crop to both masks, codes by adding eight shifted masks, and a KD-tree for the elements of one surface
that do not coincide with an element of the other.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

from nnunetv2_meddino.evaluation.surface.elements import (
    ClassSurfaces,
    DirectedDistances,
    SurfacePair,
    distribution,
    element_sizes,
)
from nnunetv2_meddino.evaluation.surface.engine import present_in_both

Mask = NDArray[np.bool_]


def confusion_matrix(reference: NDArray[np.uint8], prediction: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Count voxels by ``[reference label, prediction label]``: ``(256, 256)`` int64."""
    matrix = np.zeros(256 * 256, dtype=np.int64)
    for a, b in zip(reference, prediction, strict=True):  # slice by slice: bincount needs wide integers
        matrix += np.bincount(a.ravel().astype(np.intp) * 256 + b.ravel(), minlength=256 * 256)
    return matrix.reshape(256, 256)


def measure_bytes(
    reference: NDArray[np.uint8],
    prediction: NDArray[np.uint8],
    spacing_mm: tuple[float, float, float],
    classes: Sequence[tuple[int, ...]],
    *,
    ignore_label: int | None = None,
    planar: bool = False,
) -> tuple[NDArray[np.int64], list[ClassSurfaces | None]]:
    """Measure as that of the engine does."""
    confusion = confusion_matrix(reference, prediction)
    present = present_in_both(confusion, classes, ignore_label)
    found = class_surfaces(reference, prediction, spacing_mm, present, ignore_label=ignore_label, planar=planar)
    by_class = dict(zip(present, found, strict=True))
    return confusion, [by_class.get(labels) for labels in classes]


def class_surfaces(
    reference: NDArray[np.uint8],
    prediction: NDArray[np.uint8],
    spacing_mm: tuple[float, float, float],
    classes: Sequence[tuple[int, ...]],
    *,
    ignore_label: int | None,
    planar: bool,
) -> list[ClassSurfaces]:
    """Measure the surfaces of classes that are present in both volumes.

    Args:
        reference: ``(z, y, x)`` labels.
        prediction: Labels of the same shape.
        spacing_mm: Voxel size in ``(z, y, x)`` order.
        classes: The labels of each class, without 0.
        ignore_label: Reference label of ignored voxels.
        planar: The volume is one slice, measured by the 2D definitions.
    """
    ignored = None if ignore_label is None else reference == ignore_label
    if ignored is not None:
        prediction = np.where(ignored, np.uint8(0), prediction)
    boxes = [ndimage.find_objects(reference, 255), ndimage.find_objects(prediction, 255)]
    surfaces = []
    for labels in classes:
        own = [box[label - 1] for box in boxes for label in labels if box[label - 1] is not None]
        crop = tuple(slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in zip(*own, strict=True))
        lookup = np.zeros(256, dtype=bool)
        lookup[list(labels)] = True
        masks = [_padded(lookup[volume[crop]], planar) for volume in (reference, prediction)]
        skip = None if ignored is None else _padded_view(ignored, crop, planar)
        surfaces.append(_surfaces(masks, skip, spacing_mm, planar))
    return surfaces


def _padded(mask: Mask, planar: bool) -> Mask:
    """Put one voxel of background around a mask; above and below a single slice, the slice itself."""
    mask = np.pad(mask, ((0, 0), (1, 1), (1, 1)))
    return np.pad(mask, ((1, 1), (0, 0), (0, 0)), mode="edge" if planar else "constant")


def _padded_view(ignored: Mask, crop: tuple[slice, ...], planar: bool) -> Mask:
    """Cut out ``crop`` and one voxel around it, which may be ignored too where it lies inside the volume."""
    return _padded(ignored, planar)[tuple(slice(s.start, s.stop + 2) for s in crop)]


def _surfaces(
    masks: Sequence[Mask], skip: Mask | None, spacing_mm: tuple[float, float, float], planar: bool
) -> ClassSurfaces:
    codes = [_codes(mask, planar) for mask in masks]
    surfels = [(code != 0) & (code != 255) for code in codes]
    touched = None if skip is None else _codes(skip, planar) != 0
    sizes = element_sizes(spacing_mm, planar=planar)
    surfel = [_directed(surfels[i], surfels[1 - i], sizes[codes[i]], touched, spacing_mm) for i in range(2)]
    shells = [_inner(mask) & ~_cross(mask, np.logical_and) for mask in masks]
    touched = None if skip is None else _cross(skip, np.logical_or) | _inner(skip)
    voxel = [_directed(shells[i], shells[1 - i], np.ones(shells[i].shape), touched, spacing_mm) for i in range(2)]
    return ClassSurfaces(SurfacePair(*voxel), SurfacePair(*surfel))


def _codes(mask: Mask, planar: bool) -> NDArray[np.uint8]:
    """Return the code of every corner of a padded mask; a single slice has one layer of corners."""
    if planar:
        mask = mask[:2]
    shape = tuple(n - 1 for n in mask.shape)
    codes = np.zeros(shape, dtype=np.uint8)
    for bit in range(8):
        offset = bit >> 2 & 1, bit >> 1 & 1, bit & 1
        shifted = mask[tuple(slice(o, o + n) for o, n in zip(offset, shape, strict=True))]
        codes += shifted.view(np.uint8) << np.uint8(bit)
    return codes


def _inner(mask: Mask) -> Mask:
    return mask[1:-1, 1:-1, 1:-1]


def _cross(mask: Mask, combine: np.ufunc) -> Mask:
    """Combine the 6 neighbours of every voxel but those of the padding."""
    inner = slice(1, -1)
    neighbours = [
        mask[tuple(side if axis == i else inner for i in range(3))]
        for axis in range(3)
        for side in (slice(None, -2), slice(2, None))
    ]
    return combine.reduce(neighbours)


def _directed(
    source: Mask,
    target: Mask,
    sizes: NDArray[np.float64],
    touched: Mask | None,
    spacing_mm: tuple[float, float, float],
) -> DirectedDistances:
    """Measure from the elements of ``source``, but those in ``touched``, to the nearest of ``target``."""
    if touched is not None:
        source = source & ~touched
    distances = np.zeros(source.shape)
    apart = source & ~target
    distances[apart] = _to_nearest(np.argwhere(apart), np.argwhere(target), np.asarray(spacing_mm))
    return distribution(distances[source], sizes[source])


def _to_nearest(
    points: NDArray[np.integer], targets: NDArray[np.integer], spacing_mm: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return for each point the distance to the nearest target, from the whole number of voxels between them."""
    if not len(points):
        return np.zeros(0)
    _, nearest = cKDTree(targets * spacing_mm).query(points * spacing_mm)
    squares = ((points - targets[nearest]) * spacing_mm) ** 2
    return np.sqrt((squares[:, 0] + squares[:, 1]) + squares[:, 2])
