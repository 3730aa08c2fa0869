"""Synthetic DICOM series in any orientation, and SimpleITK's reading of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from tests.pretraining.curation.awkward import write_dicom

TURN = np.array(sitk.Euler3DTransform((0, 0, 0), 0.3, -0.2, 0.5).GetMatrix()).reshape(3, 3)
"""An oblique orientation."""

PLANES = {
    "axial": ((1, 0, 0), (0, 1, 0)),
    "axial, head first in the file": ((1, 0, 0), (0, -1, 0)),
    "prone": ((-1, 0, 0), (0, -1, 0)),
    "sagittal": ((0, 1, 0), (0, 0, -1)),
    "coronal": ((1, 0, 0), (0, 0, -1)),
    "oblique": (tuple(TURN[:, 0]), tuple(TURN[:, 1])),
}
"""Directions of rows and columns (ImageOrientationPatient)."""

SPACING = (2.5, 0.7, 0.9)
ORIGIN = np.array([-31.5, 12.25, 100.0])


def write_series(
    folder: Path,
    voxels: NDArray[Any],
    plane: str = "axial",
    change: Callable[[int, Any], None] | None = None,
    *,
    intercept: int | None = -1024,
) -> Path:
    """Write ``(z, y, x)`` voxels on a grid with ``SPACING`` and ``ORIGIN`` whose z is the normal of a plane."""
    row, column = np.array(PLANES[plane], float)

    def place(i: int, header: Any) -> None:
        header.ImageOrientationPatient = [f"{number:.12f}" for number in (*row, *column)]
        header.ImagePositionPatient = [f"{p:.10f}" for p in ORIGIN + i * SPACING[0] * np.cross(row, column)]
        header.PixelSpacing = list(SPACING[1:])
        if change:
            change(i, header)

    return write_dicom(folder, voxels, place, intercept=intercept)


def by_simpleitk(folder: Path) -> sitk.Image:
    """Read a series as SimpleITK's documentation says: file names by GDCM."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()
