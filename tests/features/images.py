"""Images that the tests of feature pictures share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813

from nnunetv2_meddino.features.image import ImageSlice


def ct_slice(height: int = 64, width: int = 96, spacing: tuple[float, float] = (1.0, 1.0)) -> ImageSlice:
    pixels = np.random.default_rng(0).normal(0, 700, (1, height, width)).astype(np.float32)
    return ImageSlice(pixels, spacing, "ct", in_hu=True, eight_bit=False)


def write(path: Path, voxels: np.ndarray, spacing: tuple[float, ...] = (1.0, 1.0, 1.0), colour: bool = False) -> Path:
    image = sitk.GetImageFromArray(voxels, isVector=colour)
    image.SetSpacing(spacing[: image.GetDimension()])
    sitk.WriteImage(image, str(path))
    return path


def write_ct(path: Path) -> Path:
    """Ten slices of air with a body of noise that is largest in slice 3."""
    voxels = np.full((10, 48, 64), -1000, np.int16)
    for z in range(2, 9):
        reach = 20 - 3 * abs(z - 3)
        voxels[z, 24 - reach : 24 + reach, 40 - reach : 40 + reach] = 40
    noise = np.random.default_rng(0).integers(-20, 20, voxels.shape)
    return write(path, (voxels + noise).astype(np.int16), (0.8, 0.8, 3.0))
