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


def measure_bytes(
    reference: NDArray[np.uint8],
    prediction: NDArray[np.uint8],
    spacing_mm: tuple[float, float, float],
    classes: Sequence[tuple[int, ...]],
    *,
    ignore_label: int | None = None,
    planar: bool = False,
) -> tuple[NDArray[np.int64], list[ClassSurfaces | None]]:
    """Measure overlap, and the surfaces of the classes that both volumes hold.

    Args:
        reference: ``(z, y, x)`` labels.
        prediction: Labels of the same shape.
        spacing_mm: Voxel size in ``(z, y, x)`` order.
        classes: The labels of each class: whole numbers of 1 to 255, none of them ``ignore_label``; at most 64 classes.
        ignore_label: Reference label of voxels that are ignored.
        planar: The volume is a single slice, measured by the 2D definitions.

    Returns:
        ``(256, 256)`` voxels by ``[reference label, prediction label]``, ignored voxels included; and the surfaces of
        each class, None where the class is absent from the reference or from the prediction.
    """
    reference, prediction = np.ascontiguousarray(reference), np.ascontiguousarray(prediction)
    ignore = -1 if ignore_label is None else ignore_label
    confusion, label_boxes, occupied = bitmaps.scan_volumes(reference, prediction, ignore)
    present = present_in_both(confusion, classes, ignore_label)
    if ignore_label is not None:
        prediction = np.where(reference == ignore_label, np.uint8(0), prediction)
    volumes = _Volumes(reference, prediction, spacing_mm, ignore, 0 if planar else 1)
    boxes = np.empty((len(present), 6), dtype=np.int64)
    for c, labels in enumerate(present):
        own = label_boxes[list(labels)]
        boxes[c, :3], boxes[c, 3:] = own[:, :3].min(axis=0), own[:, 3:].max(axis=0)
    found: dict[tuple[int, ...], ClassSurfaces] = {}
    rows, sizes = _nearest_rows(volumes), element_sizes(spacing_mm, planar=planar)
    for drawing in _drawings(volumes, present, boxes, occupied):
        for c, labels in enumerate(drawing.classes):
            pairs = []
            for corner in (False, True):
                directed = [_directed(volumes, drawing, c, side, corner, rows, sizes) for side in range(2)]
                pairs.append(SurfacePair(*directed))
            found[labels] = ClassSurfaces(*pairs)
    return confusion, [found.get(labels) for labels in classes]


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
class _Volumes:
    """A pair of volumes and how it is measured."""

    reference: NDArray[np.uint8]
    prediction: NDArray[np.uint8]
    """0 where the reference is ``ignore``."""
    spacing_mm: tuple[float, float, float]
    ignore: int
    """Reference label of voxels that are ignored, or -1."""
    below: int
    """Slices that a corner sees below its own: 1, or 0 where the volume is a single slice."""


@dataclass(frozen=True)
class _Rows:
    """The rows around an element in order of distance, and how far they reach."""

    offsets: NDArray[np.int64]
    """``(k, 2)`` in z and y."""
    squares: NDArray[np.float64]
    """``(k,)`` squared distance in mm^2."""
    columns: NDArray[np.float64]
    """``(COLUMNS,)`` squared distance along a row."""
    limit: float
    """Squared distance up to which no element is missed."""


@dataclass(frozen=True)
class _Drawing:
    """Bit maps of some classes."""

    classes: Sequence[tuple[int, ...]]
    """Labels of each class."""
    grids: NDArray[np.int64]
    """``(classes, 8)``; see ``bitmaps.Z0`` and so on."""
    maps: NDArray[np.uint64]
    """All maps, one after another."""
    coincident: NDArray[np.int64]
    """``(classes, 2, 256)`` codes of the corners that both surfaces have."""

    def map(self, c: int, side: int, corner: bool) -> NDArray[np.uint64]:
        """Return the map of class ``c``, of the reference (side 0) or the prediction, of corners or boundary voxels."""
        words = int(self.grids[c, bitmaps.MAP_WORDS])
        first = int(self.grids[c, bitmaps.FIRST_WORD]) + words * (side if corner else 2 + side)
        return self.maps[first : first + words]


def _drawings(
    volumes: _Volumes, classes: Sequence[tuple[int, ...]], boxes: NDArray[np.int64], occupied: NDArray[np.uint8]
) -> Iterator[_Drawing]:
    """Draw the maps of as many classes at a time as ``MAP_BYTES`` hold, at least one."""
    grids = np.zeros((len(classes), 8), dtype=np.int64)
    layers, rows, columns = (boxes[:, 3:] - boxes[:, :3] + [1 + volumes.below, 2, 2]).T
    row_words = -(-columns // 64) + 2  # an empty one at both ends
    grids[:, bitmaps.Z0 : bitmaps.X0 + 1] = boxes[:, :3]
    grids[:, bitmaps.LAYERS], grids[:, bitmaps.ROWS], grids[:, bitmaps.ROW_WORDS] = layers, rows, row_words
    grids[:, bitmaps.MAP_WORDS] = layers * rows * row_words
    first = 0
    while first < len(classes):
        ends = 4 * np.cumsum(grids[first:, bitmaps.MAP_WORDS])
        count = max(1, int(np.searchsorted(ends * 8, MAP_BYTES, side="right")))
        part = slice(first, first + count)
        grids[part, bitmaps.FIRST_WORD] = np.concatenate([[0], ends[: count - 1]])
        members = np.zeros(256, dtype=np.uint64)
        for c, labels in enumerate(classes[part]):
            members[list(labels)] |= np.uint64(1 << c)
        maps = np.zeros(int(ends[:count][-1]), dtype=np.uint64)
        box = np.concatenate([boxes[part, :3].min(axis=0), boxes[part, 3:].max(axis=0)])
        coincident = bitmaps.draw_surfaces(
            volumes.reference, volumes.prediction, not volumes.below, volumes.ignore, occupied, box, members,
            grids[part], maps,
        )  # fmt: skip
        yield _Drawing(classes[part], grids[part], maps, coincident)
        first += count


def _nearest_rows(volumes: _Volumes) -> _Rows:
    """Return the ``TABLE_ROWS`` nearest rows that fit into the volume."""
    sz, sy, sx = volumes.spacing_mm
    nz, ny, _ = volumes.reference.shape
    planar = not volumes.below
    radius = TABLE_ROWS * sy if planar else math.sqrt(TABLE_ROWS * sz * sy / math.pi) * 1.2
    far_z = 0 if planar else min(nz, int(radius / sz) + 1)
    far_y = min(ny, int(radius / sy) + 1)
    offsets = np.mgrid[-far_z : far_z + 1, -far_y : far_y + 1].reshape(2, -1).T
    squares = (offsets[:, 0] * sz) ** 2 + (offsets[:, 1] * sy) ** 2
    order = np.argsort(squares, kind="stable")
    order = order[squares[order] <= radius**2]
    # rows beyond the volume hold nothing: where the table ends because the volume does, nothing is missed there
    limit = (search.COLUMNS * sx) ** 2
    if len(order) > TABLE_ROWS:
        limit = min(limit, float(squares[order[TABLE_ROWS]]))
        order = order[:TABLE_ROWS]
    if (far_z < nz - 1 and not planar) or far_y < ny - 1:
        limit = min(limit, radius**2)
    columns = (np.arange(search.COLUMNS, dtype=np.float64) * sx) ** 2
    return _Rows(np.ascontiguousarray(offsets[order]), squares[order], columns, limit)


def _directed(
    volumes: _Volumes,
    drawing: _Drawing,
    c: int,
    side: int,
    corner: bool,
    rows: _Rows,
    sizes: NDArray[np.float64],
) -> DirectedDistances:
    """Measure from one surface of a class to the other."""
    source, target = drawing.map(c, side, corner), drawing.map(c, 1 - side, corner)
    grid = drawing.grids[c].tolist()
    origin, layout = tuple(grid[: bitmaps.X0 + 1]), tuple(grid[bitmaps.LAYERS : bitmaps.ROW_WORDS + 1])
    member = np.zeros(256, dtype=np.uint8)
    member[list(drawing.classes[c])] = 1
    both, alone, there = search.count_elements(source, target)
    if corner:
        at_zero = math.fsum(drawing.coincident[c, side] * sizes)
    else:
        at_zero = float(both)
        if volumes.ignore >= 0:
            shared = search.list_elements(source & target, layout, both)
            at_zero -= search.count_touching(shared, origin, volumes.below, volumes.reference, volumes.ignore)
    volume = volumes.prediction if side else volumes.reference
    tally, far = search.search(
        source, target, alone, layout, origin, rows.offsets, rows.squares, rows.columns, rows.limit, corner,
        volumes.below, volume, volumes.reference, member, volumes.ignore, sizes,
    )  # fmt: skip
    where = np.flatnonzero(tally)
    squares = rows.squares[where // search.COLUMNS] + rows.columns[where % search.COLUMNS]
    distances, weights = [np.sqrt(squares)], [tally[where]]
    if at_zero:
        distances.append(np.zeros(1))
        weights.append(np.array([at_zero]))
    if len(far):
        targets = search.list_elements(target, layout, there)
        distances.append(search.distances_to_nearest(far[:, :3], targets, volumes.spacing_mm))
        weights.append(sizes[far[:, 3]] if corner else np.ones(len(far)))
    return distribution(np.concatenate(distances), np.concatenate(weights))
