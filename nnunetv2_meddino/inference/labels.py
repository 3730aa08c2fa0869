"""Logits to labels and probabilities, as nnU-Net's label manager does it with whole volumes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def labels_of(logits: Tensor, regions: Sequence[int] | None) -> Tensor:
    """Return the label of each pixel.

    Args:
        logits: ``(B, K, rows, columns)``.
        regions: Where the classes are regions, the label of each, in the order in which later ones cover earlier ones;
            a pixel is in a region where its probability exceeds one half. None: the class with the highest logit.

    Returns:
        ``(B, rows, columns)`` int32 or, for up to 256 classes, uint8.
    """
    highest = max(regions) if regions is not None else logits.shape[1] - 1
    dtype = torch.uint8 if highest < 256 else torch.int32
    labels = torch.zeros(logits.shape[0], *logits.shape[2:], dtype=dtype, device=logits.device)
    if regions is not None:
        for i, label in enumerate(regions):
            labels.masked_fill_(logits[:, i] > 0, label)
        return labels
    best = logits[:, 0].clone()  # a running maximum is four times as fast as argmax over an outer axis
    for i in range(1, logits.shape[1]):
        labels.masked_fill_(logits[:, i] > best, i)
        torch.maximum(best, logits[:, i], out=best)
    return labels


def probabilities_of(logits: Tensor, regions: Sequence[int] | None) -> Tensor:
    """Return the probability of each class ``(B, K, rows, columns)``, which of regions do not exclude each other."""
    return logits.softmax(dim=1) if regions is None else logits.sigmoid()
