"""The images of a case, as stored, with what nnU-Net's writer needs to put labels on their grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813 (the name everyone gives it)
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from numpy.typing import NDArray

from nnunetv2_meddino.errors import DataError
from nnunetv2_meddino.imaging import damage
from nnunetv2_meddino.imaging.dicom_series import read_dicom_folder
from nnunetv2_meddino.imaging.grid import Grid, simpleitk_geometry, simpleitk_grid
from nnunetv2_meddino.imaging.io import PIXEL_ENDINGS, check_finite, read_image, simpleitk_channels

PLANAR_SPACING = 999
"""Distance of slices that nnU-Net gives a 2D image, in pixels: larger than any anisotropy."""


@dataclass(frozen=True)
class CaseImage:
    """The channels of one case on one grid."""

    channels: tuple[NDArray[Any], ...]
    """Each ``(z, y, x)``, of any type."""
    properties: dict[str, Any]
    """As nnU-Net's reader returns them: ``spacing`` ``(z, y, x)`` and what its writer needs."""
    dicom: tuple[Path, ...] = ()
    """The file of each slice, where it was read from a DICOM series."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(z, y, x)``."""
        z, y, x = self.channels[0].shape
        return z, y, x


def read_case(files: Sequence[Path], reader: type[BaseReaderWriter]) -> CaseImage:
    """Read the channels of a case.

    Files of nnU-Net's default reader are read strictly (``imaging.io``) and keep the type that they store, others with
    the reader of the plans, which returns float32.

    Args:
        files: One for each channel; one file may hold several.
        reader: nnU-Net's, which the plans name.

    Raises:
        DataError: A file is missing, damaged or unreadable, holds NaN or infinity, or the channels do not lie on one
            grid.
    """
    if reader is SimpleITKIO and not any(file.name.lower().endswith(PIXEL_ENDINGS) for file in files):
        images = [read_image(file) for file in files]
        cases = [case_of(tuple(image.channels), image.grid, image.path) for image in images]
    else:
        cases = [_read_with(reader, file) for file in files]
    first = cases[0]
    for file, case in zip(files, cases, strict=True):
        same = case.shape == first.shape
        if not same or not np.allclose(case.properties["spacing"], first.properties["spacing"], rtol=1e-5):
            raise DataError(f"{file} and {files[0]} are channels of one case but differ in size or voxel size.")
        for channel in case.channels:
            check_finite(channel[np.newaxis], file)
    return CaseImage(tuple(channel for case in cases for channel in case.channels), first.properties)


def _read_with(reader: type[BaseReaderWriter], file: Path) -> CaseImage:
    """Read one file with one of nnU-Net's readers."""
    if not file.is_file():
        raise DataError(f"{file} does not exist or is not a file.")
    if not file.name.lower().endswith(PIXEL_ENDINGS):
        read_image(file)  # finds damage: SimpleITK fills in zeros, nibabel does not look at the checksum
    try:
        damage.check_complete(file)
        values, properties = reader().read_images([str(file)])
    except (MemoryError, DataError):
        raise
    except Exception as error:  # readers raise anything on damaged files
        reason = str(error).strip() or type(error).__name__
        raise DataError(f"{file} cannot be read with nnU-Net's {reader.__name__} ({reason}).") from error
    return CaseImage(tuple(values), properties)


def read_dicom_case(folder: Path, series_uid: str | None = None) -> CaseImage:
    """Read a DICOM series below a folder.

    Raises:
        DataError: As ``read_dicom_folder``.
    """
    volume = read_dicom_folder(folder, series_uid)
    return replace(case_of(tuple(volume.channels), volume.grid, folder), dicom=volume.files)


def case_of(channels: tuple[NDArray[Any], ...], grid: Grid, name: Path | str) -> CaseImage:
    """Return a case with the properties that nnU-Net's default reader would give it.

    Raises:
        DataError: The axes of the grid are not perpendicular, which no label map of SimpleITK's can be.
    """
    if not np.allclose(grid.directions @ grid.directions.T, np.eye(3), atol=1e-4):
        msg = (
            f"The axes of {name} are not perpendicular, so nnU-Net could not have been trained on such images. "
            "Resample it to a regular grid first."
        )
        raise DataError(msg)
    spacing, origin, direction = simpleitk_geometry(grid)
    spacing_zyx = [abs(float(s)) for s in spacing[::-1]]
    if grid.in_plane:
        spacing_zyx = [max(spacing_zyx) * PLANAR_SPACING, *spacing_zyx]
    geometry = {"spacing": spacing, "origin": origin, "direction": direction}
    return CaseImage(channels, {"sitk_stuff": geometry, "spacing": spacing_zyx})


def case_of_array(values: NDArray[Any], spacing_mm: Sequence[float]) -> CaseImage:
    """Return the case of an array.

    Args:
        values: ``(z, y, x)`` or ``(C, z, y, x)``.
        spacing_mm: ``(z, y, x)``.

    Raises:
        DataError: The array has another number of axes or values that are not finite, or the spacing is not three
            positive numbers.
    """
    if values.ndim not in (3, 4) or 0 in values.shape:
        raise DataError(f"An image is an array (z, y, x) or (C, z, y, x); this one has the shape {values.shape}.")
    channels = values[np.newaxis] if values.ndim == 3 else values
    check_finite(channels, "The array")
    spacing = tuple(float(s) for s in spacing_mm)
    if len(spacing) != 3 or not all(np.isfinite(s) and s > 0 for s in spacing):
        raise DataError(f"spacing_mm must be three positive numbers (z, y, x), not {spacing_mm}.")
    grid = Grid((spacing[0], spacing[1], spacing[2]), (0.0, 0.0, 0.0), np.eye(3)[::-1])
    return case_of(tuple(channels), grid, "the array")


def case_of_simpleitk(image: sitk.Image) -> CaseImage:
    """Return the case of a SimpleITK image in two or three dimensions; the components of a vector are channels."""
    if image.GetDimension() not in (2, 3):
        raise DataError(f"An image of {image.GetDimension()} dimensions was given; 2 or 3 are needed.")
    values, _ = simpleitk_channels(image)
    check_finite(values, "The image")
    return case_of(tuple(values), simpleitk_grid(image), "the image")
