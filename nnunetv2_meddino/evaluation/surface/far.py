"""Exact distances between point sets of the voxel grid with a KD-tree."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree


def distances_to_nearest(
    points: NDArray[np.integer], targets: NDArray[np.integer], spacing_mm: tuple[float, float, float]
) -> NDArray[np.float64]:
    """Return for each point the distance in mm to the nearest target.

    The tree names the nearest target; the distance is computed anew from the whole number of voxels between them, in
    the order of operations of ``scipy.ndimage.distance_transform_edt``, so it does not depend on where they lie.

    Args:
        points: ``(n, 3)`` grid indices.
        targets: ``(m, 3)`` grid indices, at least one unless there are no points.
        spacing_mm: Size of a grid step on each axis.
    """
    if not len(points):
        return np.zeros(0)
    tree = cKDTree(targets * np.asarray(spacing_mm), balanced_tree=False, compact_nodes=False)
    _, nearest = tree.query(points * np.asarray(spacing_mm))
    squares = ((points - targets[nearest]) * np.asarray(spacing_mm)) ** 2
    return np.sqrt((squares[:, 0] + squares[:, 1]) + squares[:, 2])
