"""One affine warp for an image and its labels: from the pixels of a patch to those of the slice it is taken from.

Coordinates are those of pixel centres, ``(row, column)``. Compiled with numba: one pass over the patch serves the image
and the labels, whatever the number of labels.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from nnunetv2_meddino.compiled import jit

OUTSIDE = -1
"""Label of what lies outside the slice, and that of nnU-Net's preprocessing for what is zero in every channel."""

MIXED = -(2**31)
"""What stands for four neighbours whose labels are not the same; no int16 label is as low."""

Interval = tuple[int, int]
"""The first pixel and the one after the last."""


def warp(
    image: NDArray[np.float32], labels: NDArray[np.int16], matrix: NDArray[np.float64], size: tuple[int, int]
) -> tuple[NDArray[np.float32], NDArray[np.int16]]:
    """Sample a patch from a slice bilinearly: the label is the one with most of the weight of the four neighbours.

    Outside of the slice the image is 0 and the label ``OUTSIDE``. A matrix that only shifts by whole pixels or mirrors
    copies the values as they are. So do torch's ``grid_sample`` (``padding_mode="zeros"``, ``align_corners=False``) and
    nnU-Net's maximum over the interpolated indicators of the labels.

    Args:
        image: ``(C, H, W)``.
        labels: ``(H, W)``.
        matrix: ``(2, 3)``: ``matrix @ (row, column, 1)`` of a pixel of the patch is its place in the slice.
        size: Rows and columns of the patch.

    Returns:
        The patch of the image, ``(C, rows, columns)``, and that of the labels, ``(rows, columns)``; new arrays.
    """
    sampled = np.zeros((len(image), *size), dtype=np.float32)
    sampled_labels = np.full(size, OUTSIDE, dtype=np.int16)
    if _copies_pixels(matrix):
        for source, out in ((image, sampled), (labels, sampled_labels)):
            _copy(source, matrix, out)
    else:
        given = (np.ascontiguousarray(array) for array in (image, labels, matrix))
        _sample(*given, sampled, sampled_labels)
    return sampled, sampled_labels


def source_box(matrix: NDArray[np.float64], size: tuple[int, int], margin: int = 0) -> tuple[Interval, Interval]:
    """Return the part of the slice that a warp looks at; it may reach beyond the slice.

    Args:
        matrix: As for ``warp``.
        size: Rows and columns of the patch.
        margin: Pixels around what bilinear interpolation needs.

    Returns:
        First row and the row after the last, first column and the column after the last.
    """
    corners = np.array([(row, column, 1) for row in (0, size[0] - 1) for column in (0, size[1] - 1)]).T
    rows, columns = (
        (math.floor(places.min()) - margin, math.ceil(places.max()) + 1 + margin) for places in matrix @ corners
    )
    return rows, columns


def _copies_pixels(matrix: NDArray[np.float64]) -> bool:
    """Whether a matrix takes pixels to pixels, row by row in either direction."""
    return bool(np.array_equal(np.abs(matrix[:, :2]), np.eye(2)) and np.array_equal(matrix[:, 2], matrix[:, 2].round()))


def _copy(source: NDArray, matrix: NDArray[np.float64], out: NDArray) -> None:
    """Copy what a matrix of whole pixels finds in ``(..., H, W)`` into ``(..., rows, columns)``."""
    forward = matrix[[0, 1], [0, 1]] > 0
    in_order = out[..., :: 1 if forward[0] else -1, :: 1 if forward[1] else -1]
    taken, filled = [], []
    for axis in (0, 1):
        length, size = source.shape[axis - 2], out.shape[axis - 2]
        start = int(matrix[axis, 2]) - (0 if forward[axis] else size - 1)
        first = max(start, 0)
        after = max(min(start + size, length), first)
        taken.append(slice(first, after))
        filled.append(slice(first - start, after - start))
    in_order[..., filled[0], filled[1]] = source[..., taken[0], taken[1]]


@jit
def _sample(
    image: NDArray[np.float32],
    labels: NDArray[np.int16],
    matrix: NDArray[np.float64],
    out: NDArray[np.float32],
    out_labels: NDArray[np.int16],
) -> None:
    """Fill a patch row by row: what has neighbours outside the slice pixel by pixel, what lies inside in short loops.

    The compiler turns the short loops into vector instructions.
    """
    channels, height, width = image.shape
    rows, columns = out_labels.shape
    flat_image, flat_labels = image.reshape(channels, height * width), labels.reshape(height * width)
    agreed = _agreed(labels).reshape(height * width)
    place, agreement = np.empty(columns, np.int32), np.empty(columns, np.int32)
    down, right = np.empty(columns, np.float32), np.empty(columns, np.float32)
    for row in range(rows):
        y, x = matrix[0, 0] * row + matrix[0, 2], matrix[1, 0] * row + matrix[1, 2]
        touches, leaves = _run(y, x, matrix, columns, height, width, 1)
        first, after = _run(y, x, matrix, columns, height, width, 0)
        for column in range(touches, min(first, leaves)):
            _sample_at_edge(image, labels, y, x, matrix, out, out_labels, row, column)
        for column in range(after, leaves):
            _sample_at_edge(image, labels, y, x, matrix, out, out_labels, row, column)
        length = after - first
        for i in range(length):
            at_y, at_x = y + matrix[0, 1] * (first + i), x + matrix[1, 1] * (first + i)
            above, left = np.int32(at_y), np.int32(at_x)
            place[i] = above * np.int32(width) + left
            down[i], right[i] = at_y - above, at_x - left
        for channel in range(channels):
            _interpolate(flat_image[channel], width, place[:length], down, right, out[channel, row, first:after])
        _take(agreed, place[:length], agreement)
        for i in range(length):
            label = agreement[i]
            if label == MIXED:
                k = place[i]
                corners = flat_labels[k], flat_labels[k + 1], flat_labels[k + width], flat_labels[k + width + 1]
                label = _heaviest(corners, down[i], right[i])
            out_labels[row, first + i] = label


@jit
def _agreed(labels: NDArray[np.int16]) -> NDArray[np.int32]:
    """Return the label of each pixel that its neighbours to the right, below and below right share, or ``MIXED``."""
    height, width = labels.shape
    agreed = np.full((height, width), np.int32(MIXED))
    for row in range(height - 1):
        for column in range(width - 1):
            label = labels[row, column]
            same = (
                (label == labels[row, column + 1])
                & (label == labels[row + 1, column])
                & (label == labels[row + 1, column + 1])
            )
            agreed[row, column] = label if same else MIXED
    return agreed


@jit
def _run(
    y: float, x: float, matrix: NDArray[np.float64], columns: int, height: int, width: int, margin: int
) -> tuple[int, int]:
    """Return the first column whose four neighbours are in the slice or ``margin`` away, and that after the last."""
    first, after = 0, columns
    while first < after and not _is_inside(y, x, matrix, first, height, width, margin):
        first += 1
    while after > first and not _is_inside(y, x, matrix, after - 1, height, width, margin):
        after -= 1
    return first, after


@jit
def _is_inside(
    y: float, x: float, matrix: NDArray[np.float64], column: int, height: int, width: int, margin: int
) -> bool:
    at_y, at_x = y + matrix[0, 1] * column, x + matrix[1, 1] * column
    return -margin <= at_y < height - 1 + margin and -margin <= at_x < width - 1 + margin


@jit
def _interpolate(
    source: NDArray[np.float32],
    width: int,
    place: NDArray[np.int32],
    down: NDArray[np.float32],
    right: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    for i in range(len(place)):
        k = place[i]
        upper = source[k] + (source[k + 1] - source[k]) * right[i]
        lower = source[k + width] + (source[k + width + 1] - source[k + width]) * right[i]
        out[i] = upper + (lower - upper) * down[i]


@jit
def _take(source: NDArray[np.int32], place: NDArray[np.int32], out: NDArray[np.int32]) -> None:
    for i in range(len(place)):
        out[i] = source[place[i]]


@jit
def corner_weights(down: float, right: float) -> tuple[float, float, float, float]:
    """Return the bilinear weights of what is above left, above right, below left and below right."""
    d, r = np.float64(down), np.float64(right)
    return (1 - d) * (1 - r), (1 - d) * r, d * (1 - r), d * r


@jit
def weight_of(label: int, corners: tuple[int, int, int, int], weights: tuple[float, float, float, float]) -> float:
    """Return the weight of the corners that have a label."""
    weight = 0.0
    for corner in range(4):
        if corners[corner] == label:
            weight += weights[corner]
    return weight


@jit
def _heaviest(corners: tuple[int, int, int, int], down: float, right: float) -> int:
    """Return the label with most weight of those above left, above right, below left and below right."""
    weights = corner_weights(down, right)
    best, most = corners[0], -1.0
    for candidate in range(4):
        weight = weight_of(corners[candidate], corners, weights)
        if weight > most:
            best, most = corners[candidate], weight
    return best


@jit
def _sample_at_edge(
    image: NDArray[np.float32],
    labels: NDArray[np.int16],
    y: float,
    x: float,
    matrix: NDArray[np.float64],
    out: NDArray[np.float32],
    out_labels: NDArray[np.int16],
    row: int,
    column: int,
) -> None:
    """Fill one pixel of a patch that has neighbours inside and outside the slice."""
    height, width = labels.shape
    at_y, at_x = y + matrix[0, 1] * column, x + matrix[1, 1] * column
    above, left = math.floor(at_y), math.floor(at_x)
    down, right = at_y - above, at_x - left
    weights = corner_weights(down, right)
    corners = [np.int16(OUTSIDE)] * 4
    for corner in range(4):
        i, j = above + corner // 2, left + corner % 2
        if 0 <= i < height and 0 <= j < width:
            corners[corner] = labels[i, j]
            for channel in range(len(image)):
                out[channel, row, column] += weights[corner] * image[channel, i, j]
    out_labels[row, column] = _heaviest((corners[0], corners[1], corners[2], corners[3]), down, right)
