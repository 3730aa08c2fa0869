"""Overlap and surface distances of many classes in two passes over the volumes, compiled with numba.

The first pass counts label pairs and finds boxes. The second draws the surfaces of all classes into bit maps, one bit
per corner of each class's box. From then on only the maps are read: elements that both surfaces have are at distance
zero and need a count, the others look for the nearest one in the other map. Memory is that of the maps, a few bits per
voxel of the boxes, never that of a distance field.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nnunetv2_meddino.evaluation.surface import bitmaps, search
from nnunetv2_meddino.evaluation.surface.elements import (
    ClassSurfaces,
    DirectedDistances,
    SurfacePair,
    distribution,
    element_sizes,
)

MAP_BYTES = 64 * 2**20
"""Bit maps drawn at a time. 15 organs of a 200x512x512 scan take 40 MiB; more classes are drawn in several passes."""

TABLE_ROWS = 800
"""Rows searched before an element goes to the KD-tree: a radius of about 16 voxels."""


@dataclass(frozen=True)
class Measurement:
    """Overlap and surfaces of one pair of volumes."""

    confusion: NDArray[np.int64]
    """``(256, 256)`` voxels by ``[reference label, prediction label]``, ignored voxels included."""
    surfaces: list[ClassSurfaces | None]
    """One entry per class; None where the class is absent from the reference or from the prediction."""


def measure(
    reference: NDArray[np.uint8],
    prediction: NDArray[np.uint8],
    spacing_mm: tuple[float, float, float],
    classes: Sequence[tuple[int, ...]],
    *,
    ignore_label: int | None = None,
    planar: bool = False,
) -> Measurement:
    """Measure overlap, and the surfaces of the classes that both volumes hold.

    Voxels where the reference is ``ignore_label`` are background in both masks. An element whose neighbourhood (2x2x2
    voxels, or a voxel and its 6 neighbours) holds an ignored voxel is not measured from, but distances to it are: the
    border of the ignored part is no error of either.

    Args:
        reference: ``(z, y, x)`` labels.
        prediction: Labels of the same shape.
        spacing_mm: Voxel size in ``(z, y, x)`` order.
        classes: The labels of each class: whole numbers of 1 to 255, none of them ``ignore_label``; at most 64 classes.
        ignore_label: Reference label of voxels that are ignored.
        planar: The volume is a single slice, measured by the 2D definitions.
    """
    reference, prediction = np.ascontiguousarray(reference), np.ascontiguousarray(prediction)
    scanned = _scan(reference, prediction, ignore_label)
    present = present_in_both(scanned.confusion, classes, ignore_label)
    found = _class_surfaces(reference, prediction, spacing_mm, present, scanned, ignore_label, planar)
    by_class = dict(zip(present, found, strict=True))
    return Measurement(scanned.confusion, [by_class.get(labels) for labels in classes])


def present_in_both(
    confusion: NDArray[np.int64], classes: Sequence[tuple[int, ...]], ignore_label: int | None
) -> list[tuple[int, ...]]:
    """Return the distinct classes that occur in both volumes outside the ignored voxels."""
    counted = without_ignored(confusion, ignore_label)
    in_reference, in_prediction = counted.sum(axis=1), counted.sum(axis=0)
    return [c for c in dict.fromkeys(classes) if in_reference[list(c)].any() and in_prediction[list(c)].any()]


def without_ignored(confusion: NDArray[np.int64], ignore_label: int | None) -> NDArray[np.int64]:
    """Return the counts of the voxels that are not ignored."""
    if ignore_label is None:
        return confusion
    counted = confusion.copy()
    counted[ignore_label] = 0
    return counted


@dataclass(frozen=True)
class _Scan:
    """What the first pass found."""

    confusion: NDArray[np.int64]
    """``(256, 256)`` voxels by ``[reference label, prediction label]``."""
    boxes: NDArray[np.int64]
    """``(256, 6)`` of each label in either volume: z, y, x minima and maxima."""
    occupied: NDArray[np.uint8]
    """``(z * y,)``, rows that hold a label other than 0."""


@dataclass(frozen=True)
class _Rows:
    """The rows around an element in order of distance, and how far they reach."""

    steps_z: NDArray[np.int64]
    steps_y: NDArray[np.int64]
    squares: NDArray[np.float64]
    columns: NDArray[np.float64]
    limit: float


def _scan(reference: NDArray[np.uint8], prediction: NDArray[np.uint8], ignore_label: int | None) -> _Scan:
    """Read both volumes ``(z, y, x)`` once, for counts and boxes."""
    shape = reference.shape
    confusion = np.zeros((256, 256), dtype=np.int64)
    boxes = np.empty((256, 6), dtype=np.int64)
    boxes[:, :3], boxes[:, 3:] = max(shape), -1
    occupied = np.zeros(shape[0] * shape[1], dtype=np.uint8)
    ignore = -1 if ignore_label is None else ignore_label
    bitmaps.scan_volumes(reference.ravel(), prediction.ravel(), shape, ignore, confusion, boxes, occupied)
    return _Scan(confusion, boxes, occupied)


def _class_surfaces(
    reference: NDArray[np.uint8],
    prediction: NDArray[np.uint8],
    spacing_mm: tuple[float, float, float],
    classes: Sequence[tuple[int, ...]],
    scanned: _Scan,
    ignore_label: int | None,
    planar: bool,
) -> list[ClassSurfaces]:
    """Measure the surfaces of classes that are present in both volumes."""
    if ignore_label is not None:
        prediction = np.where(reference == ignore_label, np.uint8(0), prediction)
    sizes = element_sizes(spacing_mm, planar=planar)
    rows = _rows(spacing_mm, reference.shape, planar)
    surfaces: list[ClassSurfaces] = []
    for drawn in _drawings(reference, prediction, classes, scanned, ignore_label, planar):
        for c, labels in enumerate(drawn.classes):
            member = np.zeros(256, dtype=np.uint8)
            member[list(labels)] = 1
            pairs = []
            for corner in (False, True):
                directed = [
                    _directed(
                        drawn, c, side, corner, (reference, prediction), member, ignore_label, spacing_mm, rows, sizes
                    )
                    for side in range(2)
                ]
                pairs.append(SurfacePair(*directed))
            surfaces.append(ClassSurfaces(*pairs))
    return surfaces


@dataclass(frozen=True)
class _Drawing:
    """Bit maps of some classes."""

    classes: Sequence[tuple[int, ...]]
    """Labels of each class."""
    grids: NDArray[np.int64]
    """``(classes, 8)``; see ``bitmaps.draw_surfaces``."""
    maps: NDArray[np.uint64]
    """All maps, one after another."""
    coincident: NDArray[np.int64]
    """``(classes, 2, 256)`` codes of the corners that both surfaces have."""
    below: int
    """0 where the volume is a single slice, else 1."""

    def map(self, c: int, side: int, corner: bool) -> NDArray[np.uint64]:
        """Return the map of class ``c``, of the reference (side 0) or the prediction, of corners or boundary voxels."""
        first, words = int(self.grids[c, 5]), int(self.grids[c, 6])
        first += words * (side if corner else 2 + side)
        return self.maps[first : first + words]


def _drawings(
    reference: NDArray[np.uint8],
    prediction: NDArray[np.uint8],
    classes: Sequence[tuple[int, ...]],
    scanned: _Scan,
    ignore_label: int | None,
    planar: bool,
) -> Iterator[_Drawing]:
    """Draw the maps of as many classes at a time as ``MAP_BYTES`` hold, at least one."""
    below = 0 if planar else 1
    grids = np.zeros((len(classes), 8), dtype=np.int64)
    boxes = np.empty((len(classes), 6), dtype=np.int64)
    for c, labels in enumerate(classes):
        own = scanned.boxes[list(labels)]
        boxes[c, :3], boxes[c, 3:] = own[:, :3].min(axis=0), own[:, 3:].max(axis=0)
        corners = boxes[c, 3:] - boxes[c, :3] + [1 + below, 2, 2]
        row_words = -(-int(corners[2]) // 64) + 2
        grids[c] = [*boxes[c, :3], corners[1], row_words, 0, corners[0] * corners[1] * row_words, corners[0]]
    first = 0
    while first < len(classes):
        ends = 4 * np.cumsum(grids[first:, 6])
        count = max(1, int(np.searchsorted(ends * 8, MAP_BYTES, side="right")))
        part = slice(first, first + count)
        grids[part, 5] = np.concatenate([[0], ends[: count - 1]])
        yield _draw(reference, prediction, classes[part], grids[part], boxes[part], scanned, ignore_label, below)
        first += count


def _draw(
    reference: NDArray[np.uint8],
    prediction: NDArray[np.uint8],
    classes: Sequence[tuple[int, ...]],
    grids: NDArray[np.int64],
    boxes: NDArray[np.int64],
    scanned: _Scan,
    ignore_label: int | None,
    below: int,
) -> _Drawing:
    _, ny, nx = reference.shape
    pitch = bitmaps.CHUNK * (nx // bitmaps.CHUNK + 2)
    words = np.zeros(2 * 2 * (ny + 2) * pitch // 8, dtype=np.uint64)
    members = np.zeros(256, dtype=np.uint64)
    for c, labels in enumerate(classes):
        members[list(labels)] |= np.uint64(1 << c)
    maps = np.zeros(4 * int(grids[:, 6].sum()), dtype=np.uint64)
    coincident = np.zeros((len(classes), 2, 256), dtype=np.int64)
    bitmaps.draw_surfaces(
        reference.ravel(),
        prediction.ravel(),
        reference.shape,
        not below,
        -1 if ignore_label is None else ignore_label,
        scanned.occupied,
        np.concatenate([boxes[:, :3].min(axis=0), boxes[:, 3:].max(axis=0)]),
        members,
        grids,
        _boundary_sides(),
        words.view(np.uint8),
        words,
        np.zeros(2 * 2 * ny, dtype=np.uint8),
        maps,
        coincident,
    )
    return _Drawing(classes, grids, maps, coincident, below)


def _boundary_sides() -> NDArray[np.uint8]:
    """Say for each code which of its two extreme voxels is a boundary voxel by the three neighbours that it shows."""
    codes = np.arange(256)
    high = (codes >> 7 & 1) & ~((codes >> 3) & (codes >> 5) & (codes >> 6)) & 1
    low = (codes & 1) & ~((codes >> 4) & (codes >> 2) & (codes >> 1)) & 1
    return (high | low << 1).astype(np.uint8)


def _rows(spacing_mm: tuple[float, float, float], shape: tuple[int, ...], planar: bool) -> _Rows:
    """Return the ``TABLE_ROWS`` nearest rows that fit into the volume."""
    sz, sy, sx = spacing_mm
    radius = math.sqrt(TABLE_ROWS * sz * sy / math.pi) * 1.2 if not planar else TABLE_ROWS * sy
    far_z = 0 if planar else min(shape[0], int(radius / sz) + 1)
    far_y = min(shape[1], int(radius / sy) + 1)
    steps_z, steps_y = (a.ravel() for a in np.mgrid[-far_z : far_z + 1, -far_y : far_y + 1])
    squares = (steps_z * sz) ** 2 + (steps_y * sy) ** 2
    order = np.argsort(squares, kind="stable")
    order = order[squares[order] <= radius**2]
    # rows beyond the volume hold nothing: where the table ends because the volume does, nothing is missed there
    limit = (search.COLUMNS * sx) ** 2
    if len(order) > TABLE_ROWS:
        limit = min(limit, float(squares[order[TABLE_ROWS]]))
        order = order[:TABLE_ROWS]
    if far_z < shape[0] - 1 and not planar or far_y < shape[1] - 1:
        limit = min(limit, radius**2)
    columns = (np.arange(search.COLUMNS, dtype=np.float64) * sx) ** 2
    return _Rows(steps_z[order], steps_y[order], squares[order], columns, limit)


def _directed(
    drawn: _Drawing,
    c: int,
    side: int,
    corner: bool,
    volumes: tuple[NDArray[np.uint8], NDArray[np.uint8]],
    member: NDArray[np.uint8],
    ignore_label: int | None,
    spacing_mm: tuple[float, float, float],
    rows: _Rows,
    sizes: NDArray[np.float64],
) -> DirectedDistances:
    """Measure from one surface of a class to the other."""
    ignore = -1 if ignore_label is None else ignore_label
    shape, (reference, volume) = volumes[0].shape, (volumes[0].ravel(), volumes[side].ravel())
    source, target = drawn.map(c, side, corner), drawn.map(c, 1 - side, corner)
    grid = [int(g) for g in drawn.grids[c]]
    origin, layout = (grid[0], grid[1], grid[2]), (grid[7], grid[3], grid[4])
    both, alone, there = search.count_elements(source, target)
    if corner:
        at_zero = math.fsum(drawn.coincident[c, side] * sizes)
    elif ignore_label is not None:
        at_zero = both - search.count_touching(source, target, layout, origin, drawn.below, reference, shape, ignore)
    else:
        at_zero = both
    words = (rows.steps_z * layout[1] + rows.steps_y) * layout[2]
    steps = np.stack([rows.steps_z, rows.steps_y, words], axis=1)
    tally = np.zeros((2, len(rows.squares) * search.COLUMNS))
    far = np.empty((alone, 4), dtype=np.int64)
    missing = search.search(
        source, target, layout, steps, rows.squares, rows.columns, rows.limit,
        corner, origin, drawn.below, volume, reference, shape, member, ignore, sizes, tally, far,
    )  # fmt: skip
    where = np.flatnonzero(tally[0])
    squares = rows.squares[where // search.COLUMNS] + rows.columns[where % search.COLUMNS]
    distances, weights = [np.sqrt(squares)], [tally[0, where]]
    if at_zero:
        distances.append(np.zeros(1))
        weights.append(np.array([float(at_zero)]))
    if missing:
        targets = np.empty((there, 3), dtype=np.int64)
        search.list_elements(target, layout, targets)
        far = far[:missing]
        distances.append(search.distances_to_nearest(far[:, :3], targets, spacing_mm))
        weights.append(sizes[far[:, 3]] if corner else np.ones(missing))
    return distribution(np.concatenate(distances), np.concatenate(weights))
