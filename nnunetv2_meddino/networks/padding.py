"""Images of any size for networks that need multiples of their stride."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def pad_to_multiple(image: Tensor, multiple: int, *, at_least: int = 0) -> Tensor:
    """Add zeros below and right; zero is the mean intensity after nnU-Net's normalisation.

    Args:
        image: ``(B, C, H, W)``.
        multiple: Of which H and W become multiples.
        at_least: Smallest H and W to pad to, a multiple of ``multiple``.
    """
    height, width = (max(at_least, -(-side // multiple) * multiple) for side in image.shape[-2:])
    if (height, width) == tuple(image.shape[-2:]):
        return image
    return F.pad(image, (0, width - image.shape[-1], 0, height - image.shape[-2]))
