"""What the manifest states of each slice: how much of it is body, and its intensities."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

BODY_ABOVE_HU = -500.0
"""Half way between air and soft tissue."""

BODY_ABOVE_SHARE = 0.1
"""For images other than CT: tissue is above this share of the range from percentile 0.5 to 99.5 of the volume."""

_ASIDE_PX = 128
"""The body is found in a copy of about this side: many times faster than at 512, with nearly the same result."""

_SMALLEST_PIECE = 0.1
"""Pieces smaller than this share of the largest are table, tubes and clothes; two legs are two pieces."""

_LOWEST, _LEVELS = -32768, 65536


class SliceStatistics(NamedTuple):
    """Measurements of a slice as it is stored; percentiles are values that occur in it."""

    body_fraction: float
    hu_mean: float
    hu_std: float
    hu_p005: float
    hu_p50: float
    hu_p995: float


def body_threshold(voxels: NDArray[np.int16], modality: str) -> float:
    """Return the value above which a pixel of this volume ``(z, y, x)`` counts as tissue."""
    if modality == "CT":
        return BODY_ABOVE_HU
    low, high = _percentiles(_histogram(voxels), (0.5, 99.5))
    return low + BODY_ABOVE_SHARE * (high - low)


def slice_statistics(image: NDArray[np.int16], threshold: float) -> SliceStatistics:
    """Measure a slice ``(H, W)``.

    Args:
        image: The slice as it is stored.
        threshold: From ``body_threshold``.
    """
    counts = _histogram(image)
    levels = np.flatnonzero(counts)
    weights, values = counts[levels], levels + float(_LOWEST)
    mean = float(np.dot(weights, values) / image.size)
    spread = float(np.sqrt(np.dot(weights, (values - mean) ** 2) / image.size))
    return SliceStatistics(body_fraction(image, threshold), mean, spread, *_percentiles(counts, (0.5, 50.0, 99.5)))


def body_fraction(image: NDArray[np.int16], threshold: float) -> float:
    """Return the share of a slice ``(H, W)`` that lies in the body, lungs and gas inside it included.

    In a copy of about 128 pixels a side: pixels above ``threshold``, opened by a 3x3 cross (which takes the table
    away), holes filled, and all pieces that have at least a tenth of the size of the largest.
    """
    step = max(1, round(max(image.shape) / _ASIDE_PX))
    tissue = image[step // 2 :: step, step // 2 :: step] > threshold
    filled = ndimage.binary_fill_holes(ndimage.binary_opening(tissue))
    pieces, count = ndimage.label(filled)
    if not count:
        return 0.0
    sizes = np.bincount(pieces.ravel())[1:]
    return float(sizes[sizes >= _SMALLEST_PIECE * sizes.max()].sum() / tissue.size)


def _histogram(image: NDArray[np.int16]) -> NDArray[np.intp]:
    return np.bincount(image.ravel().astype(np.intp) - _LOWEST, minlength=_LEVELS)


def _percentiles(counts: NDArray[np.intp], percents: tuple[float, ...]) -> list[float]:
    """Return the smallest value that at least this share of the pixels does not exceed, for each percentile."""
    below = np.cumsum(counts)
    ranks = [max(1, int(np.ceil(below[-1] * percent / 100))) for percent in percents]
    return [float(np.searchsorted(below, rank) + _LOWEST) for rank in ranks]
