"""What the manifest states of each slice: how much of it is body, and its intensities."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nnunetv2_meddino.imaging.slices import patient
from pretraining.modality import Modality

BODY_ABOVE_HU = -500
"""Half way between air and soft tissue."""

BODY_ABOVE_SHARE = 0.1
"""For images other than CT: tissue is above this share of the range from percentile 0.5 to 99.5 of the volume."""

_ASIDE_PX = 128
"""The body is found in a copy of about this side: many times faster than at 512, with nearly the same result."""

_LOWEST, _LEVELS = -32768, 65536
_COUNTED_AT_ONCE = 1 << 22


class SliceStatistics(NamedTuple):
    """Measurements of a slice as it is stored; percentiles are values that occur in it."""

    body_fraction: float
    hu_mean: float
    hu_std: float
    hu_p005: float
    hu_p50: float
    hu_p995: float


def body_threshold(voxels: NDArray[np.int16], modality: Modality) -> float:
    """Return the value above which a pixel of this volume ``(z, y, x)`` counts as tissue."""
    if modality == Modality.CT:
        return BODY_ABOVE_HU
    low, high = _percentiles(histogram(voxels), (0.5, 99.5))
    return low + BODY_ABOVE_SHARE * (high - low)


def slice_statistics(image: NDArray[np.int16], threshold: float) -> SliceStatistics:
    """Measure a slice ``(H, W)``.

    Args:
        image: The slice as it is stored.
        threshold: From ``body_threshold``.
    """
    counts = histogram(image)
    levels = np.flatnonzero(counts)
    weights, values = counts[levels], levels + float(_LOWEST)
    mean = float(np.dot(weights, values) / image.size)
    spread = float(np.sqrt(np.dot(weights, (values - mean) ** 2) / image.size))
    return SliceStatistics(body_fraction(image, threshold), mean, spread, *_percentiles(counts, (0.5, 50.0, 99.5)))


def body_fraction(image: NDArray[np.int16], threshold: float) -> float:
    """Return the share of a slice ``(H, W)`` that lies in the body, lungs and gas inside it included.

    In a copy of about 128 pixels a side: pixels above ``threshold``, and of these ``patient``.
    """
    step = max(1, round(max(image.shape) / _ASIDE_PX))
    tissue = image[step // 2 :: step, step // 2 :: step] > threshold
    return float(np.count_nonzero(patient(tissue)) / tissue.size)


def histogram(voxels: NDArray[np.int16]) -> NDArray[np.int64]:
    """Return how often each value from -32768 to 32767 occurs, ``(65536,)``; a slab at a time, to save memory."""
    counts = np.zeros(_LEVELS, np.int64)
    rows = max(1, _COUNTED_AT_ONCE // voxels[0].size)
    for start in range(0, len(voxels), rows):
        counts += np.bincount(voxels[start : start + rows].ravel().astype(np.int32) - _LOWEST, minlength=_LEVELS)
    return counts


def _percentiles(counts: NDArray[np.int64], percents: tuple[float, ...]) -> list[float]:
    """Return the smallest value that at least this share of the pixels does not exceed, for each percentile."""
    below = np.cumsum(counts)
    ranks = [max(1, int(np.ceil(below[-1] * percent / 100))) for percent in percents]
    return [float(np.searchsorted(below, rank) + _LOWEST) for rank in ranks]
