"""Where the voxels of an image lie, in patient coordinates: left, posterior, superior (LPS), in mm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from nibabel.orientations import io_orientation
from numpy.typing import NDArray

TO_LPS = np.array([-1.0, -1.0, 1.0])
"""Times this, coordinates of NIfTI (right, anterior, superior) are those of a ``Grid``."""


@dataclass(frozen=True)
class Grid:
    """Where the voxels of a volume lie."""

    spacing_mm: tuple[float, float, float]
    """Voxel size along ``(z, y, x)``."""
    origin_mm: tuple[float, float, float]
    """Centre of the first voxel, in patient coordinates (left, posterior, superior)."""
    directions: NDArray[np.float64]
    """``(3, 3)``; row ``i`` is the unit vector of array axis ``i`` in patient coordinates."""
    in_plane: bool = False
    """The file has two dimensions: nothing is known along z."""


def simpleitk_grid(image: Any) -> Grid:
    """Return the grid of a SimpleITK image, or of a reader that has read a header; their order is ``(x, y, z)``."""
    dimensions = image.GetDimension()
    kept = min(dimensions, 3)
    spacing, origin, directions = np.ones(3), np.zeros(3), np.eye(3)
    spacing[:kept] = image.GetSpacing()[:kept]
    origin[:kept] = image.GetOrigin()[:kept]
    directions[:kept, :kept] = np.reshape(image.GetDirection(), (dimensions, dimensions))[:kept, :kept]
    return _grid(spacing, origin, directions, in_plane=dimensions == 2)


def simpleitk_geometry(grid: Grid) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
    """Return spacing, origin and direction of a grid as SimpleITK orders them; the way back of ``simpleitk_grid``."""
    kept = 2 if grid.in_plane else 3
    columns = grid.directions[::-1].T[:kept, :kept]
    spacing, origin = grid.spacing_mm[::-1][:kept], grid.origin_mm[:kept]
    return tuple(map(float, spacing)), tuple(map(float, origin)), tuple(map(float, columns.ravel()))


def affine_grid(affine: NDArray[np.float64], unit_mm: float = 1.0) -> Grid:
    """Return the grid of an affine ``(4, 4)`` of nibabel, whose axes need not be perpendicular.

    Args:
        affine: From indices (x, y, z) to right, anterior, superior.
        unit_mm: Length of its unit in mm, which nibabel ignores.

    Raises:
        ValueError: The affine is not finite, or its axes span no volume.
    """
    columns = unit_mm * TO_LPS[:, np.newaxis] * affine[:3, :3]
    if not np.isfinite(affine).all() or np.linalg.det(columns) == 0:
        raise ValueError(f"its affine {affine[:3].tolist()} spans no volume")
    spacing = np.linalg.norm(columns, axis=0)
    return _grid(spacing, unit_mm * TO_LPS * affine[:3, 3], columns / spacing)


def to_axial(voxels: NDArray[Any], grid: Grid) -> tuple[NDArray[Any], tuple[float, float, float]]:
    """Reorient a volume for display as radiologists expect: axial slices, patient's right on the left, front up.

    Axes are only swapped and flipped, each to the patient's axis that it is nearest to; they need not be perpendicular.
    A 2D image keeps its orientation.

    Args:
        voxels: ``(..., z, y, x)``.
        grid: Geometry of the voxels.

    Returns:
        A view of the voxels, and its spacing in mm, ``(z, y, x)``.
    """
    if grid.in_plane:
        return voxels, grid.spacing_mm
    affine = np.eye(4)
    affine[:3, :3] = grid.directions.T * grid.spacing_mm
    towards, signs = io_orientation(affine).T  # of each array axis: the patient axis, and its sign
    axes = [int(np.flatnonzero(towards == patient_axis)[0]) for patient_axis in (2, 1, 0)]
    before = voxels.ndim - 3
    turned = voxels.transpose(*range(before), *(before + axis for axis in axes))
    flips: tuple[Any, ...] = (..., *(slice(None, None, int(signs[axis])) for axis in axes))
    turned = turned[flips]
    z, y, x = (grid.spacing_mm[axis] for axis in axes)
    return turned, (z, y, x)


def _grid(
    spacing: NDArray[np.float64], origin: NDArray[np.float64], columns: NDArray[np.float64], *, in_plane: bool = False
) -> Grid:
    """Build a grid from values in ``(x, y, z)`` order; ``columns`` are the unit vectors of x, y and z."""
    x, y, z = (float(s) for s in spacing)
    return Grid((z, y, x), (float(origin[0]), float(origin[1]), float(origin[2])), columns.T[::-1].copy(), in_plane)
