"""One slice of an image for dense features: of a file in any format, or of an array; with its pixel size and kind."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunetv2_meddino.errors import DataError
from nnunetv2_meddino.imaging.grid import to_axial
from nnunetv2_meddino.imaging.io import check_finite, read_picture
from nnunetv2_meddino.imaging.slices import centre_of, patient, richest_slice

CT_BELOW_HU = -100
"""A volume with a value as low as this counts as CT in HU: fat and air are, and other modalities are not negative."""

BODY_ABOVE_HU, BODY_ABOVE_FRACTION = -300, 0.1
"""What counts as body when slice and point are chosen: of CT in HU, else as a fraction of the stretched intensities."""

STRETCH_PERCENTILES = (0.5, 99.5)
_ASIDE_PX = 128


@dataclass(frozen=True)
class ImageSlice:
    """One axial slice, or a flat picture."""

    pixels: NDArray[np.float32]
    """``(C, H, W)`` float32; C is 3 for colour, else 1."""
    spacing_mm: tuple[float, float]
    """Pixel size (y, x); 1 for formats without a unit."""
    name: str
    """File name and, of a volume, the slice, counted from 1."""
    in_hu: bool
    """The values are Hounsfield units."""
    eight_bit: bool
    """The values are 0 to 255, as in photographs."""
    in_mm: bool = True
    """``spacing_mm`` is known."""


def read_slice(path: Path | str, index: int | None = None, channel: int | None = None) -> ImageSlice:
    """Read one axial slice of a volume, or a flat picture, in any format that ``read_image`` knows.

    Args:
        path: The file.
        index: Of the slice, from 0 at the patient's feet; names and messages, which people read, count slices from 1.
            None: the slice with the largest body area.
        channel: Which channel to take, from 0. None: all of a colour picture, the first of anything else.

    Raises:
        DataError: The file is missing or unreadable, or has no such slice or channel.
    """
    path = Path(path)
    image = read_picture(path)
    volumes, (_, y, x) = to_axial(image.channels, image.grid)  # (C, z, y, x)
    if channel is not None and not 0 <= channel < len(volumes):
        raise DataError(f"{path} has {len(volumes)} channels, 0 to {len(volumes) - 1}; there is no channel {channel}.")
    colour = channel is None and len(volumes) in (3, 4) and volumes.dtype == np.uint8 and image.vector
    taken = volumes[:3] if colour else volumes[channel or 0][np.newaxis]  # a fourth channel of a picture is its opacity
    return _slice(taken, (y, x), index, None, path, in_mm=image.in_mm)


def slice_of_array(
    voxels: NDArray[Any], spacing_mm: Sequence[float], index: int | None = None, *, in_hu: bool | None = None
) -> ImageSlice:
    """Take a grey picture, or one slice of a volume, as it lies in an array.

    Args:
        voxels: ``(y, x)``, or ``(z, y, x)`` whose slices are axial.
        spacing_mm: Voxel size along the same axes.
        index: Slice of a volume, from 0. None: the one with the largest body area.
        in_hu: Whether the values are Hounsfield units. None: they are if any is ``CT_BELOW_HU`` or less, as of a file.

    Raises:
        DataError: The array has another number of axes or no voxels, a value is not a finite number, the spacing is not
            a length for every axis, or there is no such slice.
    """
    if voxels.ndim not in (2, 3) or 0 in voxels.shape:
        raise DataError(f"An array of shape {voxels.shape} is no picture (y, x) and no volume (z, y, x).")
    spacing = tuple(float(s) for s in spacing_mm)
    if len(spacing) != voxels.ndim or not all(math.isfinite(s) and s > 0 for s in spacing):
        axes = "(y, x)" if voxels.ndim == 2 else "(z, y, x)"
        raise DataError(f"The spacing must be {voxels.ndim} positive numbers of millimetres {axes}, not {spacing}.")
    volumes = voxels.reshape(1, -1, *voxels.shape[-2:])
    check_finite(volumes, "the array")
    return _slice(volumes, (spacing[-2], spacing[-1]), index, in_hu, "the array")


def _slice(
    volumes: NDArray[Any],
    spacing_mm: tuple[float, float],
    index: int | None,
    in_hu: bool | None,
    source: Path | str,
    *,
    in_mm: bool = True,
) -> ImageSlice:
    """Take a slice of ``(C, z, y, x)``: the one asked for, or the one with most body."""
    voxels = volumes.astype(np.float32)
    if in_hu is None:
        in_hu = bool(voxels.min() <= CT_BELOW_HU)
    depth = voxels.shape[1]
    if index is None:
        index = richest_slice(_body(voxels[0], in_hu).astype(np.uint8))
    if not 0 <= index < depth:
        raise DataError(f"{source} has {depth} axial slices, 1 to {depth}; there is no slice {index + 1}.")
    name = Path(source).name if depth == 1 else f"{Path(source).name}, slice {index + 1} of {depth}"
    return ImageSlice(voxels[:, index], spacing_mm, name, in_hu, volumes.dtype == np.uint8, in_mm)


def body_centre(image: ImageSlice) -> tuple[int, int]:
    """Return the pixel (y, x) of the body that is nearest to the body's centre of mass."""
    return centre_of(_body(image.pixels[0], image.in_hu))


def body_of(image: ImageSlice) -> NDArray[np.bool_] | None:
    """Return what of a slice is body, in a copy of about 128 pixels a side; None for a colour picture."""
    if len(image.pixels) == 3:
        return None
    step = max(1, round(max(image.pixels.shape[1:]) / _ASIDE_PX))
    return patient(_body(image.pixels[0], image.in_hu)[step // 2 :: step, step // 2 :: step])


def _body(voxels: NDArray[np.float32], in_hu: bool) -> NDArray[np.bool_]:
    if in_hu:
        return voxels > BODY_ABOVE_HU
    intensities = stretched(voxels)
    return np.zeros(voxels.shape, bool) if intensities is None else intensities > BODY_ABOVE_FRACTION


def stretched(values: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """Stretch values from ``STRETCH_PERCENTILES`` to 0 to 1, or return None where they are all the same."""
    low, high = np.percentile(values, STRETCH_PERCENTILES)
    if high <= low:
        low, high = values.min(), values.max()
    return None if high <= low else np.clip((values - low) / (high - low), 0, 1).astype(np.float32)
