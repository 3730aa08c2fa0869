"""From stored values to the int16 of a volume, and which values are rejected.

What a scanner gives: air at -1000 HU (its lowest value is -1024), fat near -100, soft tissue between 0 and 100, bone
above 300. The rules below ask for evidence against that scale, so that crops without air and phantoms pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pretraining.corpus.slice_statistics import BODY_ABOVE_HU
from pretraining.curation.volume import Rejected
from pretraining.modality import Modality

AIR_HU = -1024
"""What padding becomes: the lowest value of a scanner."""

PADDING_BELOW_HU = -1500
"""Values up to here are padding. In use are -1500, -2000, -2048, -3000, -3024 (-2000 - 1024) and -32768; streaks beside
metal do not come that low in a field of air."""

METAL_HU = 3071
"""Highest value of a 12-bit scanner. A header's padding value is believed if it lies above, or below air."""

FAT_BELOW_HU = -30
"""Fat is about -120 to -60 HU; an MR image, whose header may name no modality, has nothing below 0."""

EMPTY_SLICE_SHARE = 1e-3
"""A slice with fewer pixels above ``BODY_ABOVE_HU`` is air: 260 of 512 x 512, or a square of 13 mm at 0.8 mm."""

EMPTY_VOLUME_SHARE = 1e-4
"""A volume with fewer voxels above ``BODY_ABOVE_HU`` is air."""

SLAB = 16
"""Slices that are converted at once: enough for strided input to be read efficiently, little memory."""

_LOWEST, _HIGHEST = -32768, 32767


def slabs(array: NDArray[Any]) -> Iterator[tuple[slice, NDArray[Any]]]:
    """Yield ``SLAB`` slices of a ``(z, y, x)`` array at a time."""
    for start in range(0, array.shape[0], SLAB):
        part = slice(start, start + SLAB)
        yield part, array[part]


def check_type(dtype: np.dtype[Any]) -> None:
    """Reject types that hold no single real value a voxel: ``rgb``, ``complex``, or ``unreadable`` for others."""
    if dtype.names is not None:
        raise Rejected("rgb", f"every voxel holds {len(dtype.names)} values")
    if dtype.kind == "c":
        raise Rejected("complex", f"values of type {dtype}")
    if dtype.kind not in "iuf":
        raise Rejected("unreadable", f"values of type {dtype}")


def convert(
    stored: NDArray[Any], slope: NDArray[np.float64], intercept: NDArray[np.float64], modality: Modality
) -> tuple[NDArray[np.int16], set[str], float]:
    """Return stored values as int16.

    Args:
        stored: ``(z, y, x)`` of any real type, not necessarily contiguous.
        slope: ``(1, 1, 1)``, or as long as ``stored`` along one axis: value = slope * stored + intercept.
        intercept: The same shape.
        modality: Hounsfield units (CT) are rounded and clipped, others scaled if they are not whole or do not fit.

    Returns:
        Contiguous int16 ``(z, y, x)``; flags among ``rounded``, ``clipped``, ``rescaled``; and the factor by which
        values were multiplied (1 for CT). Zero stays zero.

    Raises:
        Rejected: ``rgb``, ``complex``, ``nonfinite`` or ``unreadable``.
    """
    check_type(stored.dtype)
    whole = stored.dtype.kind in "iu" and bool((slope == 1).all() and (intercept == np.rint(intercept)).all())
    flags: set[str] = set()
    scale = 1.0
    if modality != Modality.CT:
        scale = _scale(stored, slope, intercept, whole)
        flags |= {"rescaled"} if scale != 1.0 else set()
    voxels = np.empty(stored.shape, np.int16)
    for part, slab in slabs(stored):
        if whole and scale == 1.0 and slab.dtype == np.int16 and not intercept.any():
            voxels[part] = slab
            continue
        values = _values(slab, part, slope, intercept, whole) * (1 if scale == 1.0 else scale)
        if values.dtype.kind == "f":
            nearest = np.rint(values)
            if np.abs(nearest - values).max() > 1e-3:  # beyond what a float32 of a few thousand HU leaves
                flags.add("rounded")
            values = nearest
        if values.min() < _LOWEST or values.max() > _HIGHEST:
            flags.add("clipped")
            values = values.clip(_LOWEST, _HIGHEST)
        voxels[part] = values
    return voxels, flags - {"rounded"} if scale != 1.0 else flags, scale


def _values(
    slab: NDArray[Any], part: slice, slope: NDArray[np.float64], intercept: NDArray[np.float64], whole: bool
) -> NDArray[Any]:
    """Return true values as int64 or, where they may be broken, float64; reject those that are not finite."""
    times, plus = (factor[part] if factor.shape[0] > 1 else factor for factor in (slope, intercept))
    if whole:
        return slab.astype(np.int64) + plus.astype(np.int64)
    values = slab.astype(np.float64) * times + plus
    if not np.isfinite(values).all():
        count = int((~np.isfinite(values)).sum())
        raise Rejected("nonfinite", f"{count} values near slice {part.start + 1} are not finite")
    return values


def _scale(stored: NDArray[Any], slope: NDArray[np.float64], intercept: NDArray[np.float64], whole: bool) -> float:
    """Return 1 if all values are whole and fit into int16, else what makes the largest magnitude fit."""
    largest, fits = 0.0, True
    for part, slab in slabs(stored):
        values = _values(slab, part, slope, intercept, whole)
        largest = max(largest, float(np.abs(values).max()))
        fits = fits and bool((values == np.rint(values)).all())
    return 1.0 if (fits and largest <= _HIGHEST) or largest == 0 else _HIGHEST / largest


def check_grey_levels(counts: NDArray[np.int64], dtype: np.dtype[Any]) -> None:
    """Reject CT that went through an 8-bit picture (``8_bit``) or holds one value (``empty``).

    Signs: a type of one byte; values of 0 to 255 only; or 128 to 256 evenly spaced values over more than 600 HU.
    """
    values = np.flatnonzero(counts) + _LOWEST
    if len(values) == 1:
        raise Rejected("empty", f"every voxel is {values[0]}")
    if dtype.itemsize == 1 or (values[0] >= 0 and values[-1] <= 255):
        raise Rejected("8_bit", f"values of type {dtype}, from {values[0]} to {values[-1]}")
    if 128 <= len(values) <= 256 and values[-1] - values[0] > 600:
        steps = np.diff(values)
        if np.median(steps) >= 2 and (np.abs(steps - np.median(steps)) <= 1).mean() > 0.95:
            raise Rejected("8_bit", f"only {len(values)} grey values, {np.median(steps):g} HU apart")


def check_hounsfield(counts: NDArray[np.int64]) -> None:
    """Reject CT values that are not on the Hounsfield scale.

    Args:
        counts: ``histogram`` of the values as stored, before padding is replaced.

    Raises:
        Rejected: ``empty``: as good as nothing above -500 HU. ``not_hounsfield``: tissue near 1024 and nothing below
            -250 (stored unsigned, rescale lost); air near -2000 (rescaled twice, or a slope of 2); air near -500
            (wrong slope); neither fat nor air (MR); nothing near soft tissue; less than 150 HU between the darkest and
            the brightest; or many values above metal (unsigned 16 bit).
    """
    smooth = _without_spikes(counts)
    total = counts[PADDING_BELOW_HU + 1 - _LOWEST :].sum()

    def share(low: int, high: int, of: NDArray[np.int64] = counts) -> float:
        return float(of[low - _LOWEST : high + 1 - _LOWEST].sum() / max(total, 1))

    if share(-2100, -1900, smooth) > 0.01:
        raise Rejected("not_hounsfield", "air lies near -2000: rescaled twice, or with a wrong slope")
    if share(BODY_ABOVE_HU, _HIGHEST) < EMPTY_VOLUME_SHARE:
        raise Rejected("empty", "nothing but air")
    if share(10000, _HIGHEST) > 0.005:
        raise Rejected("not_hounsfield", "many values above 10000, as of negative numbers read without their sign")
    tissue, valley = share(874, 1224), share(500, 750)
    if tissue > 0.01 and tissue > 2 * valley and share(PADDING_BELOW_HU + 1, -251) < 1e-3:
        raise Rejected("not_hounsfield", "tissue lies near 1024 and air near 0: the offset of -1024 was not applied")
    if share(PADDING_BELOW_HU + 1, FAT_BELOW_HU) < 1e-3:
        raise Rejected("not_hounsfield", f"next to nothing lies below {FAT_BELOW_HU}: no CT is without fat and air")
    if share(-300, 300) < 0.005:
        raise Rejected("not_hounsfield", "next to nothing lies between -300 and 300, where soft tissue is")
    if share(-700, -350) > 0.1 and share(PADDING_BELOW_HU + 1, -800) < 1e-4:
        raise Rejected("not_hounsfield", "air lies near -500: a wrong slope")
    cumulative = np.cumsum(counts[PADDING_BELOW_HU + 1 - _LOWEST :])
    low, high = np.searchsorted(cumulative, (0.0005 * total, 0.9995 * total))
    if high - low < 150:
        raise Rejected("not_hounsfield", f"only {high - low} between the darkest and the brightest: scaled values")


def _without_spikes(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return counts without constant fills: values ten times as frequent as their neighbours on average."""
    around = ndimage.uniform_filter1d(counts.astype(np.float64), 7, mode="nearest") * 7 - counts
    return np.where(counts > 10 * np.maximum(around / 6, 1), 0, counts)


def replace_padding(voxels: NDArray[np.int16], counts: NDArray[np.int64], stated: frozenset[int]) -> bool:
    """Set padding to -1024 HU in place; return whether there was any.

    Args:
        voxels: ``(z, y, x)`` Hounsfield units.
        counts: Their histogram.
        stated: Padding values that a header names. They count where they lie outside [-1024, 3071]; inside, tissue
            may have the same value.
    """
    named = [v for v in sorted(stated) if v > METAL_HU or PADDING_BELOW_HU < v < AIR_HU]
    if not counts[: PADDING_BELOW_HU + 1 - _LOWEST].any() and not any(counts[v - _LOWEST] for v in named):
        return _replace_corner_fill(voxels, counts)
    for _, slab in slabs(voxels):
        slab[slab <= PADDING_BELOW_HU] = AIR_HU
        for value in named:
            slab[slab == value] = AIR_HU
    _replace_corner_fill(voxels, counts)
    return True


def _replace_corner_fill(voxels: NDArray[np.int16], counts: NDArray[np.int64]) -> bool:
    """Set a constant fill around the field of view, such as 0 HU, to -1024 in place; return whether there was one.

    It is one: nine of ten corners of slices have one value, well above air and above the lowest value (or else the
    grey scale was cut there), and on average 3 % of a slice are connected to the corners with exactly that value (the
    corners outside an inscribed circle are 21 %).
    """
    corners = voxels[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    values, frequency = np.unique(corners, return_counts=True)
    fill = int(values[frequency.argmax()])
    lowest = int(np.flatnonzero(counts)[0]) + _LOWEST
    if frequency.max() < 0.9 * corners.size or fill < BODY_ABOVE_HU or fill < lowest + 50:
        return False
    if counts[fill - _LOWEST] < 0.03 * voxels.size:
        return False
    masks = []
    for section in voxels:
        labels, _ = ndimage.label(section == fill)
        ends = {int(labels[y, x]) for y in (0, -1) for x in (0, -1)} - {0}
        masks.append(np.packbits(np.isin(labels, list(ends))))
    if np.mean([np.unpackbits(mask).sum() for mask in masks]) < 0.03 * voxels[0].size:
        return False
    for section, mask in zip(voxels, masks, strict=True):
        section[np.unpackbits(mask, count=section.size).reshape(section.shape).astype(bool)] = AIR_HU
    return True


def is_windowed(counts: NDArray[np.int64]) -> bool:
    """Tell whether the grey scale was cut off above air: a twentieth of all voxels has the lowest value, above -900."""
    lowest = int(np.flatnonzero(counts)[0])
    return lowest + _LOWEST > -900 and bool(counts[lowest] > 0.05 * counts.sum())


def empty_slices(voxels: NDArray[np.int16], modality: Modality) -> list[int]:
    """Return the indices along z of slices that show nothing: only air in CT, a single value in other modalities."""
    if modality != Modality.CT:
        return [i for i, section in enumerate(voxels) if section.min() == section.max()]
    needed = EMPTY_SLICE_SHARE * voxels[0].size
    return [i for i, section in enumerate(voxels) if np.count_nonzero(section > BODY_ABOVE_HU) < needed]
