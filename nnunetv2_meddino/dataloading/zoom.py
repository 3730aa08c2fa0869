"""Slices at another number of pixels, as nnU-Net's preprocessing resamples them: cubic images, the heaviest label.

nnU-Net calls ``skimage.transform.resize``: splines of order 3 through the pixel centres, edge values beyond the border,
clipped to the range of the input; and for label maps the label whose indicator is largest after linear interpolation.
Compiled with numba, so that a slice can be resampled each time it is read.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nnunetv2_meddino.compiled import jit
from nnunetv2_meddino.dataloading.warp import Interval, corner_weights, weight_of

POLE = 3**0.5 - 2
"""Of the filter that gives the coefficients of cubic splines (Unser, IEEE Signal Processing Magazine 16, 1999)."""

GAIN = (1 - POLE) * (1 - 1 / POLE)

BEYOND = 2
"""Coefficients beyond each border that a pixel within may need."""


@dataclass(frozen=True)
class Zoom:
    """From one slice size to another, and which part of the other is wanted."""

    source: tuple[int, int]
    """Rows and columns of the slice."""
    target: tuple[int, int]
    """Rows and columns that it is to have."""
    rows: Interval
    """Of the target."""
    columns: Interval
    """Of the target."""

    def image(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Interpolate a slice with cubic splines, clipped to the range of each channel.

        Args:
            image: ``(C, *source)``, the whole slice.

        Returns:
            ``(C, rows, columns)``.
        """
        (above, down), (left, right) = self._places()
        resampled = np.empty((len(image), len(above), len(left)), np.float32)
        for channel, out in zip(image, resampled, strict=True):
            coefficients = _spline_coefficients(np.ascontiguousarray(channel))
            _interpolate(coefficients, above, _cubic(down), left, _cubic(right), out)
            np.clip(out, channel.min(), channel.max(), out=out)
        return resampled

    def labels(self, labels: NDArray[np.int16], *, nearest: bool) -> NDArray[np.int16]:
        """Resample a label map.

        Args:
            labels: ``source`` size, the whole slice.
            nearest: Take the label of the nearest pixel instead of the one with most of the weight.

        Returns:
            ``(rows, columns)``.
        """
        (above, down), (left, right) = self._places()
        nearest_row, nearest_column = above + (down >= 0.5), left + (right >= 0.5)
        if nearest:
            rows, columns = (
                np.clip(places, 0, length - 1)
                for places, length in zip((nearest_row, nearest_column), self.source, strict=True)
            )
            return labels[np.ix_(rows, columns)]
        resampled = np.empty((len(above), len(left)), np.int16)
        _take_heaviest(np.pad(labels, 1, mode="edge"), above + 1, down, left + 1, right, resampled)
        return resampled

    def _places(self) -> list[tuple[NDArray[np.int64], NDArray[np.float64]]]:
        """Return for rows and columns of the target which pixel of the source is at or before, and how far it is."""
        places = []
        wanted = (self.rows, self.columns)
        for length, length_then, interval in zip(self.source, self.target, wanted, strict=True):
            centres = (np.arange(*interval) + 0.5) * (length / length_then) - 0.5
            before = np.floor(centres)
            places.append((before.astype(np.int64), centres - before))
        return places


def _cubic(t: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the weights ``(n, 4)`` of the coefficients from one before to two after, at ``t`` between 0 and 1."""
    weights = [(1 - t) ** 3, 4 - 6 * t**2 + 3 * t**3, 1 + 3 * t + 3 * t**2 - 3 * t**3, t**3]
    return np.stack(weights, axis=1).astype(np.float32) / np.float32(6)


@jit
def _spline_coefficients(channel: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return cubic coefficients ``(H + 4, W + 4)`` of a slice whose edge values go on for ever beyond its borders.

    Beyond a border the first, causal, filter tends to a constant geometrically, and the second one of that is a sum in
    closed form; so no border has to be added and filtered.
    """
    height, width = channel.shape
    pole, gain = np.float32(POLE), np.float32(GAIN)
    settled = np.float32(GAIN / (1 - POLE))
    constant, decaying = np.float32(-POLE / (1 - POLE)), np.float32(-POLE / (1 - POLE * POLE))
    whole = np.empty((height + 2 * BEYOND, width + 2 * BEYOND), np.float32)
    inner = whole[:, BEYOND : width + BEYOND]
    limit, excess = np.empty(width, np.float32), np.empty(width, np.float32)
    for x in range(width):
        inner[BEYOND, x] = settled * channel[0, x]
        limit[x] = settled * channel[height - 1, x]
    for y in range(1, height):
        for x in range(width):
            inner[BEYOND + y, x] = gain * channel[y, x] + pole * inner[BEYOND + y - 1, x]
    last = BEYOND + height - 1
    for x in range(width):
        excess[x] = inner[last, x] - limit[x]
        for k in range(BEYOND + 1):
            inner[last + k, x] = constant * limit[x] + decaying * excess[x] * pole**k
    for y in range(last - 1, BEYOND - 1, -1):
        for x in range(width):
            inner[y, x] = pole * (inner[y + 1, x] - inner[y, x])
    for y in range(BEYOND - 1, -1, -1):
        for x in range(width):
            inner[y, x] = pole * (inner[y + 1, x] - settled * channel[0, x])
    for y in range(len(whole)):
        _filter_row(whole[y], width)
    return whole


@jit
def _filter_row(row: NDArray[np.float32], width: int) -> None:
    """Turn values from ``BEYOND`` on into coefficients, in place, and fill what is beyond them."""
    pole, gain = np.float32(POLE), np.float32(GAIN)
    settled = np.float32(GAIN / (1 - POLE))
    constant, decaying = np.float32(-POLE / (1 - POLE)), np.float32(-POLE / (1 - POLE * POLE))
    first, last = BEYOND, BEYOND + width - 1
    before, limit = settled * row[first], settled * row[last]
    row[first] = before
    for x in range(first + 1, last + 1):
        row[x] = gain * row[x] + pole * row[x - 1]
    excess = row[last] - limit
    for k in range(BEYOND + 1):
        row[last + k] = constant * limit + decaying * excess * pole**k
    for x in range(last - 1, first - 1, -1):
        row[x] = pole * (row[x + 1] - row[x])
    for x in range(first - 1, -1, -1):
        row[x] = pole * (row[x + 1] - before)


@jit
def _interpolate(
    coefficients: NDArray[np.float32],
    above: NDArray[np.int64],
    down: NDArray[np.float32],
    left: NDArray[np.int64],
    right: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    """Sum coefficients along columns, then along rows, of which those that are needed again are kept."""
    rows, columns = out.shape
    first = above[0] + BEYOND - 1
    across = np.empty((above[-1] - above[0] + 4, columns), np.float32)
    for y in range(len(across)):
        source = coefficients[first + y]
        for x in range(columns):
            k = left[x] + (BEYOND - 1)
            across[y, x] = (
                right[x, 0] * source[k]
                + right[x, 1] * source[k + 1]
                + right[x, 2] * source[k + 2]
                + right[x, 3] * source[k + 3]
            )
    for y in range(rows):
        k = above[y] - above[0]
        a, b, c, d = down[y]
        for x in range(columns):
            out[y, x] = a * across[k, x] + b * across[k + 1, x] + c * across[k + 2, x] + d * across[k + 3, x]


@jit
def _take_heaviest(
    labels: NDArray[np.int16],
    above: NDArray[np.int64],
    down: NDArray[np.float64],
    left: NDArray[np.int64],
    right: NDArray[np.float64],
    out: NDArray[np.int16],
) -> None:
    """Take the label with most of the weight of the four pixels around each place."""
    for row in range(len(above)):
        upper, lower, d = labels[above[row]], labels[above[row] + 1], down[row]
        for column in range(len(left)):
            k = left[column]
            label = upper[k]
            if label == upper[k + 1] and label == lower[k] and label == lower[k + 1]:
                out[row, column] = label
            else:
                out[row, column] = _heaviest((label, upper[k + 1], lower[k], lower[k + 1]), d, right[column])


@jit
def _heaviest(corners: tuple[int, int, int, int], down: float, right: float) -> int:
    """Return the label with most weight; of several the nearest, which is one of them: no other pixel weighs more."""
    weights = corner_weights(down, right)
    best = corners[(2 if down >= 0.5 else 0) + (1 if right >= 0.5 else 0)]
    most = weight_of(best, corners, weights)
    for candidate in range(4):
        weight = weight_of(corners[candidate], corners, weights)
        if weight > most:
            best, most = corners[candidate], weight
    return best
