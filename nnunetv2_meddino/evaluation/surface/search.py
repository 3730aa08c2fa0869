"""Compiled search in the bit maps: distances from the elements of one surface to the nearest element of the other.

Rows of the other map are visited in order of their distance. Each is read as one window of 63 corners around the
element, in a few operations on words; elements whose nearest neighbour lies beyond the window or the table of rows are
returned, for a KD-tree.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from nnunetv2_meddino.compiled import jit
from nnunetv2_meddino.evaluation.surface.instructions import count_ones, leading_zeros, trailing_zeros

U = np.uint64

REACH = 31
"""Corners that a window shows on either side of its middle."""

COLUMNS = REACH + 1

SHALLOW, PATIENCE = 64, 256
"""Only the first ``SHALLOW`` rows are searched once more than ``PATIENCE`` elements, and more than half of all, were
too far for the whole table."""

WINDOW = U(2 ** (2 * REACH + 1) - 1)


@jit
def _label(volume: NDArray[np.uint8], z: int, y: int, x: int) -> Any:
    nz, ny, nx = volume.shape
    if 0 <= z < nz and 0 <= y < ny and 0 <= x < nx:
        return np.int64(volume[z, y, x])
    return np.int64(0)


@jit
def _corner_code(volume: NDArray[np.uint8], member: NDArray[np.uint8], z: int, y: int, x: int, below: int) -> Any:
    """Return the code at a corner of the volume, from a table of 1 for the labels of the class."""
    code = np.int64(0)
    nz, ny, nx = volume.shape
    if z >= below and 0 < y < ny and 0 < x < nx and z < nz:  # well inside: nothing to check
        for j in range(4):
            row = volume[U(z - below * (1 - (j >> 1))), U(y - 1 + (j & 1))]
            code |= np.int64(member[row[U(x - 1)]] | member[row[U(x)]] << 1) << (2 * j)
        return code
    for j in range(8):
        label = _label(volume, z - below * (1 - (j >> 2)), y - 1 + (j >> 1 & 1), x - 1 + (j & 1))
        code |= np.int64(member[label]) << j
    return code


@jit
def _touches(volume: NDArray[np.uint8], label: int, corner: bool, z: int, y: int, x: int, below: int) -> bool:
    """Return whether ``label`` is among the 8 voxels of a corner, or among the 6 neighbours of a voxel."""
    if corner:
        for j in range(8):
            dz, dy, dx = -below * (1 - (j >> 2)), (j >> 1 & 1) - 1, (j & 1) - 1
            if _label(volume, z + dz, y + dy, x + dx) == label:
                return True
        return False
    return (
        _label(volume, z - below, y, x) == label
        or _label(volume, z + below, y, x) == label
        or _label(volume, z, y - 1, x) == label
        or _label(volume, z, y + 1, x) == label
        or _label(volume, z, y, x - 1) == label
        or _label(volume, z, y, x + 1) == label
    )


@jit
def count_elements(source: NDArray[np.uint64], target: NDArray[np.uint64]) -> Any:
    """Return how many elements both maps have, how many only ``source`` has, and how many ``target`` has."""
    both, alone, there = np.int64(0), np.int64(0), np.int64(0)
    for i in range(len(source)):
        both += np.int64(count_ones(source[i] & target[i]))
        alone += np.int64(count_ones(source[i] & ~target[i]))
        there += np.int64(count_ones(target[i]))
    return both, alone, there


@jit
def _nearest_in_row(window: Any) -> Any:
    """Return how many corners lie between the middle of a window, bit ``REACH``, and its nearest set bit."""
    right = np.int64(trailing_zeros(window >> U(REACH)))
    left = np.int64(leading_zeros(window << U(63 - REACH)))
    return min(right, left)


@jit
def search(
    source: NDArray[np.uint64],
    target: NDArray[np.uint64],
    alone: int,
    layout: tuple[int, int, int],
    origin: tuple[int, int, int],
    offsets: NDArray[np.int64],
    row_squares: NDArray[np.float64],
    column_squares: NDArray[np.float64],
    limit: float,
    corner: bool,
    below: int,
    volume: NDArray[np.uint8],
    reference: NDArray[np.uint8],
    member: NDArray[np.uint8],
    ignore: int,
    sizes: NDArray[np.float64],
) -> Any:
    """Find the nearest element of ``target`` for every element that ``source`` alone has.

    Args:
        source: Flat map with an empty word at both ends of every row.
        target: The other map.
        alone: How many elements ``source`` alone has.
        layout: Layers, rows per layer and words per row of both maps.
        origin: Z, y, x of the maps' first corner in the volume.
        offsets: ``(k, 2)`` layers and rows from an element to the rows around it, nearest rows first.
        row_squares: ``(k,)`` squared distance in mm^2 to each of these rows.
        column_squares: ``(COLUMNS,)`` squared distance along a row.
        limit: Squared distance up to which table and windows miss nothing.
        corner: Elements are corners, of the size of their code; else voxels, of size 1.
        below: 0 where the volume is a single slice, else 1.
        volume: ``(z, y, x)`` labels behind ``source``.
        reference: Labels of the reference.
        member: ``(256,)`` 1 for the labels of the class.
        ignore: Label of the reference that no counted element touches, or -1.
        sizes: ``(256,)`` size of a corner by code.

    Returns:
        ``(k * COLUMNS,)`` summed sizes by row and column; and ``(n, 4)`` layer, row, column and code of the elements
        that are too far.
    """
    layers, rows, row_words = layout
    depth = len(row_squares)
    word_steps = (offsets[:, 0] * rows + offsets[:, 1]) * row_words
    tally = np.zeros(depth * COLUMNS)
    lost = np.zeros(depth * COLUMNS)
    far = np.empty((alone, 4), dtype=np.int64)
    searched = 0
    missing = 0
    code = 0
    size = 1.0
    for z in range(layers):
        for y in range(rows):
            start = (z * rows + y) * row_words
            for w in range(start + 1, start + row_words - 1):
                todo = source[w] & ~target[w]
                while todo:
                    bit = np.int64(trailing_zeros(todo))
                    todo &= todo - U(1)
                    x = (w - start) * 64 + bit
                    vz, vy, vx = origin[0] + z, origin[1] + y, origin[2] + x - 64
                    if ignore >= 0 and _touches(reference, ignore, corner, vz, vy, vx, below):
                        continue
                    if corner:
                        code = _corner_code(volume, member, vz, vy, vx, below)
                        size = sizes[code]
                    here, shift = start + ((x - REACH) >> 6), U((x - REACH) & 63)
                    best, where = np.inf, 0
                    for k in range(U(depth)):
                        if row_squares[k] >= best:
                            break
                        # negative indices are too large as unsigned numbers
                        if U(z + offsets[k, 0]) >= U(layers) or U(y + offsets[k, 1]) >= U(rows):
                            continue
                        i = U(here + word_steps[k])
                        # shifted twice, as a shift by 64 is undefined
                        window = (target[i] >> shift | target[i + U(1)] << U(1) << (U(63) - shift)) & WINDOW
                        if window:
                            column = _nearest_in_row(window)
                            square = row_squares[k] + column_squares[column]
                            if square < best:
                                best, where = square, np.int64(k) * COLUMNS + column
                    searched += 1
                    if best <= limit:
                        # Kahan summation: plain addition would lose digits over 10^5 elements
                        term = size - lost[where]
                        total = tally[where] + term
                        lost[where] = (total - tally[where]) - term
                        tally[where] = total
                    else:
                        far[missing, 0] = z
                        far[missing, 1] = y
                        far[missing, 2] = x
                        far[missing, 3] = code
                        missing += 1
                        if missing > PATIENCE and 2 * missing > searched and depth > SHALLOW:
                            # most elements go to the tree anyway: spend less on each
                            depth = SHALLOW
                            limit = min(limit, row_squares[depth])
    return tally, far[:missing]


@jit
def list_elements(source: NDArray[np.uint64], layout: tuple[int, int, int], count: int) -> Any:
    """Return layer, row and column of the ``count`` elements of a map, ``(count, 3)``; the first column is 64."""
    layers, rows, row_words = layout
    found = np.empty((count, 3), dtype=np.int64)
    n = 0
    for z in range(layers):
        for y in range(rows):
            start = (z * rows + y) * row_words
            for w in range(start + 1, start + row_words - 1):
                word = source[w]
                while word:
                    found[n, 0] = z
                    found[n, 1] = y
                    found[n, 2] = (w - start) * 64 + np.int64(trailing_zeros(word))
                    word &= word - U(1)
                    n += 1
    return found


@jit
def count_touching(
    elements: NDArray[np.int64], origin: tuple[int, int, int], below: int, reference: NDArray[np.uint8], ignore: int
) -> int:
    """Return how many boundary voxels, ``(n, 3)`` from ``list_elements``, touch ``ignore``."""
    touching = 0
    for i in range(len(elements)):
        z, y, x = origin[0] + elements[i, 0], origin[1] + elements[i, 1], origin[2] + elements[i, 2] - 64
        touching += _touches(reference, ignore, False, z, y, x, below)
    return touching


def distances_to_nearest(
    points: NDArray[np.integer], targets: NDArray[np.integer], spacing_mm: tuple[float, float, float]
) -> NDArray[np.float64]:
    """Return for each point the distance in mm to the nearest target.

    The tree finds the nearest target; the distance is computed again from the number of voxels between the two, with
    the order of operations of ``scipy.ndimage.distance_transform_edt``, so that it does not depend on where they lie.

    Args:
        points: ``(n, 3)`` grid indices.
        targets: ``(m, 3)`` grid indices, at least one unless there are no points.
        spacing_mm: Size of a grid step on each axis.
    """
    if not len(points):
        return np.zeros(0)
    tree = cKDTree(targets * np.asarray(spacing_mm), balanced_tree=False, compact_nodes=False)
    _, nearest = tree.query(points * np.asarray(spacing_mm))
    squares = ((points - targets[nearest]) * np.asarray(spacing_mm)) ** 2
    return np.sqrt((squares[:, 0] + squares[:, 1]) + squares[:, 2])
