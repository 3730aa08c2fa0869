"""Which slice and which place of a volume are worth a look."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


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
