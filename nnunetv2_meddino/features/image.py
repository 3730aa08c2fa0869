"""One slice of an image for feature pictures: any format, any number of channels, with its pixel size and kind."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nnunetv2_meddino.errors import DataError
from nnunetv2_meddino.imaging.grid import to_axial
from nnunetv2_meddino.imaging.io import read_picture
from nnunetv2_meddino.imaging.slices import centre_of, richest_slice

CT_BELOW_HU = -100
"""A volume with a value as low as this counts as CT in HU: fat and air are, and other modalities are not negative."""

BODY_ABOVE_HU, BODY_ABOVE_FRACTION = -300, 0.1
"""What counts as body when slice and point are chosen: of CT in HU, else as a fraction of the stretched intensities."""

STRETCH_PERCENTILES = (0.5, 99.5)


@dataclass(frozen=True)
class ImageSlice:
    """One axial slice, or a flat picture."""

    pixels: NDArray[np.float32]
    """``(C, H, W)`` float32; C is 3 for colour, else 1."""
    spacing_mm: tuple[float, float]
    """Pixel size (y, x); 1 for formats without a unit."""
    name: str
    """File name and, of a volume, the slice."""
    in_hu: bool
    """The values are Hounsfield units."""
    eight_bit: bool
    """The values are 0 to 255, as in photographs."""


def read_slice(path: Path, index: int | None = None, channel: int | None = None) -> ImageSlice:
    """Read one axial slice of a volume, or a flat picture, in any format that ``read_image`` knows.

    Args:
        path: The file.
        index: Slice, counted from 0 from the patient's feet upwards. None: the one with the largest body area.
        channel: Which channel to take, from 0. None: all of a colour picture, the first of anything else.

    Raises:
        DataError: The file is missing or unreadable, or has no such slice or channel.
    """
    image = read_picture(path)
    volumes, (_, y, x) = to_axial(image.channels, image.grid)  # (C, z, y, x)
    if channel is not None and not 0 <= channel < len(volumes):
        raise DataError(f"{path} has {len(volumes)} channels, 0 to {len(volumes) - 1}; there is no channel {channel}.")
    eight_bit = volumes.dtype == np.uint8
    colour = channel is None and len(volumes) in (3, 4) and eight_bit and image.vector
    taken = volumes[:3] if colour else volumes[channel or 0][np.newaxis]  # a fourth channel of a picture is its opacity
    voxels = taken.astype(np.float32)
    in_hu = bool(voxels.min() <= CT_BELOW_HU)
    depth = voxels.shape[1]
    if index is None:
        index = richest_slice(_body(voxels[0], in_hu).astype(np.uint8))
    if not 0 <= index < depth:
        raise DataError(f"{path} has {depth} axial slices, 0 to {depth - 1}; there is no slice {index}.")
    name = path.name if depth == 1 else f"{path.name}, slice {index} of {depth}"
    return ImageSlice(voxels[:, index], (y, x), name, in_hu, eight_bit)


def body_centre(image: ImageSlice) -> tuple[int, int]:
    """Return the pixel (y, x) of the body that is nearest to the body's centre of mass."""
    return centre_of(_body(image.pixels[0], image.in_hu))


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
