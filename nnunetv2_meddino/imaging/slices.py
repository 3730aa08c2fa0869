"""Which slice and which place of a volume are worth a look, and what of a slice is the patient."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

_SMALLEST_PIECE = 0.1
"""Pieces smaller than this share of the largest are table, tubes and clothes; two legs are two pieces."""


def richest_slice(labels: NDArray[Any]) -> int:
    """Return the index of the slice of ``labels (z, y, x)`` with most structures and, among those, most foreground."""
    return max(range(len(labels)), key=lambda z: (len(np.unique(labels[z])), np.count_nonzero(labels[z])))


def centre_of(mask: NDArray[np.bool_]) -> tuple[int, int]:
    """Return the place (row, column) of a mask that is nearest to its centre of mass; the middle where it is empty."""
    inside = np.argwhere(mask)
    if len(inside) == 0:
        return mask.shape[0] // 2, mask.shape[1] // 2
    row, column = inside[np.square(inside - inside.mean(axis=0)).sum(axis=1).argmin()]
    return int(row), int(column)


def patient(tissue: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return what of a slice ``(H, W)`` of about 128 pixels a side is patient, lungs and gas inside included.

    The mask of what is denser than air is opened by a 3x3 cross, which takes the table away, its holes are filled, and
    all pieces are kept that have at least a tenth of the size of the largest.
    """
    filled = ndimage.binary_fill_holes(ndimage.binary_opening(tissue))
    pieces, count = ndimage.label(filled)
    if not count:
        return np.zeros(tissue.shape, bool)
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    return (sizes >= _SMALLEST_PIECE * sizes.max())[pieces]
