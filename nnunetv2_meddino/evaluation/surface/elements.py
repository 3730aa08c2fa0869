"""Surface elements in the two boundary definitions, their sizes, and distributions of distances.

*Voxel* boundary (MONAI's, and the MedDINOv3 tables'): the mask minus its erosion by the cross of 6 neighbours (4 in a
single slice). An element is a voxel, at its centre, of size 1.

*Surfel* boundary (DeepMind's surface-distance): every corner of the voxel grid sees the 2x2x2 voxels around it. A
corner whose neighbourhood is neither empty nor full is an element, at the corner. Its size is the area in mm^2 (in a
single slice the length in mm) of the marching-cubes surface in its neighbourhood.

In both, everything outside the volume is background, so a mask that is cut by the border has a closed surface.

The code of a neighbourhood has bit ``4a + 2b + c`` set if its voxel at offset ``(a, b, c)`` in ``(z, y, x)`` belongs to
the mask. A single slice is its own neighbour above and below: the two halves of its codes are equal, its voxels have no
neighbours in z, and both definitions become the 2D ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class DirectedDistances:
    """Distances from the elements of one surface to the nearest element of another, as a distribution."""

    distances_mm: NDArray[np.float64]
    """``(n,)``, the distances that occur, ascending, each once."""
    sizes: NDArray[np.float64]
    """``(n,)``, summed size of the elements at each distance: voxels, or mm^2 (mm in a single slice)."""

    @property
    def size(self) -> float:
        """Size of the whole surface."""
        return math.fsum(self.sizes)


@dataclass(frozen=True)
class SurfacePair:
    """Both directions between the surfaces of one class."""

    reference_to_prediction: DirectedDistances
    prediction_to_reference: DirectedDistances


@dataclass(frozen=True)
class ClassSurfaces:
    """The surfaces of one class in both definitions."""

    voxel: SurfacePair
    surfel: SurfacePair


def distribution(distances_mm: NDArray[np.float64], sizes: NDArray[np.float64]) -> DirectedDistances:
    """Sum the sizes of elements, ``(n,)`` distances and sizes, by distance."""
    distinct, where = np.unique(distances_mm, return_inverse=True)
    order = np.argsort(where, kind="stable")
    starts = np.searchsorted(where[order], np.arange(len(distinct)))
    # reduceat sums pairwise; adding one by one would lose digits where 10^5 elements share a distance
    summed = np.add.reduceat(sizes[order], starts) if len(distinct) else np.zeros(0)
    return DirectedDistances(distinct, summed)


@lru_cache(maxsize=1)
def _triangle_normals() -> tuple[NDArray[np.float64], ...]:
    """For each code, ``(triangles, 3)`` normals at unit spacing, each as long as its triangle's area.

    The surface is classic marching cubes (Lorensen and Cline 1987) at level 0.5, as scikit-image makes it.
    """
    from skimage.measure import marching_cubes

    normals = [np.zeros((0, 3))]
    for code in range(1, 255):
        cube = np.array([code >> j & 1 for j in range(8)], dtype=np.float64).reshape(2, 2, 2)
        vertices, faces, _, _ = marching_cubes(cube, 0.5, method="lorensen")
        a, b, c = vertices[faces].astype(np.float64).transpose(1, 0, 2)
        normals.append(np.cross(b - a, c - a) / 2)
    return (*normals, np.zeros((0, 3)))


def element_sizes(spacing_mm: tuple[float, float, float], *, planar: bool = False) -> NDArray[np.float64]:
    """Return the size of a surfel for each code.

    A code and its complement bound the same surface from two sides; the smaller of their two triangulations is taken.
    That is DeepMind's table, by its description: marching cubes, of the complement if more than 4 corners are set.

    Args:
        spacing_mm: Voxel size in ``(z, y, x)`` order.
        planar: Contour lengths in mm of a single slice instead of areas in mm^2.

    Returns:
        ``(256,)`` float64, zero for the codes 0 and 255, where there is no surface.
    """
    sz, sy, sx = spacing_mm
    if planar:
        diagonal = 0.5 * math.hypot(sy, sx)
        length = np.array([0, 1, 1, 0, 1, 0, 2, 1, 1, 2, 0, 1, 0, 1, 1, 0]) * diagonal
        length[[0b0011, 0b1100]] = sx  # one row against the other
        length[[0b0101, 0b1010]] = sy  # one column against the other
        sizes = np.zeros(256)
        sizes[[half << 4 | half for half in range(16)]] = length
        return sizes
    # stretching space by the spacing turns a normal n into n times the product of the other two axes' spacing
    stretch = np.array([sy * sx, sz * sx, sz * sy])
    areas = np.array([np.sqrt(((n * stretch) ** 2).sum(axis=1)).sum() for n in _triangle_normals()])
    return np.minimum(areas, areas[::-1])
