"""Slices for tests of augmentation: rough images, and labels that meet."""

from __future__ import annotations

import numpy as np
from scipy import ndimage


def slice_of(shape: tuple[int, int], channels: int, seed: int, labels: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Return ``(C, H, W)`` noise over blobs and ``(H, W)`` labels, -1 to ``labels - 2``, that meet in threes."""
    rng = np.random.default_rng(seed)
    image = (
        rng.standard_normal((channels, *shape))
        + 3 * ndimage.gaussian_filter(rng.standard_normal((channels, *shape)), (0, 5, 5)) * 10
    )
    scores = ndimage.gaussian_filter(rng.standard_normal((labels, *shape)), (0, 32, 32))
    return image.astype(np.float32), (scores.argmax(0) - 1).astype(np.int16)
