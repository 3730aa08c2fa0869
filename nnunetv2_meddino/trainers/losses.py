"""Dice and cross-entropy whose weights follow the class imbalance of each batch."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


class DiceAndBalancedCrossEntropy(nn.Module):
    """nnU-Net's Dice loss plus balanced cross-entropy, each of weight 1.

    Args:
        dice: nnU-Net's Dice loss: called with logits, target and ``loss_mask``.
        regions: The target holds one map of 0 and 1 for each region, and where there is an ignore label one more, last.
        ignore_label: Label of voxels that count for nothing.
    """

    def __init__(self, dice: nn.Module, *, regions: bool, ignore_label: int | None) -> None:
        super().__init__()
        self.dice = dice
        self.regions = regions
        self.ignore_label = ignore_label

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of logits ``(B, K, H, W)`` for ``(B, 1, H, W)`` labels or one map for each region."""
        mask = None
        if self.regions:
            if self.ignore_label is not None:
                mask = target[:, -1:] == 0
                target = target[:, :-1]
            return self.dice(logits, target, loss_mask=mask) + balanced_binary_cross_entropy(logits, target, mask)
        if self.ignore_label is not None:
            mask = target != self.ignore_label
            target = torch.where(mask, target, 0)
        return self.dice(logits, target, loss_mask=mask) + balanced_cross_entropy(logits, target, mask)


def balanced_cross_entropy(logits: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the mean over the classes in the batch of each class' mean cross-entropy.

    That is cross-entropy with the weight ``voxels / (classes present x voxels of the class)``, the "balanced" rule of
    King and Zeng 2001 (scikit-learn's ``compute_class_weight``): small organs weigh as much as large ones. Under DDP
    the batch is that of all ranks together, and the mean of the ranks' losses is the loss.

    Args:
        logits: ``(B, K, H, W)``.
        target: ``(B, 1, H, W)`` labels.
        mask: ``(B, 1, H, W)``, False where a voxel counts for nothing.
    """
    labels = target[:, 0].long()
    kept = torch.ones_like(labels, dtype=torch.bool) if mask is None else mask[:, 0]
    # bincount would let the CPU wait for the GPU, to learn the largest label
    counts = _over_ranks(torch.stack([((labels == k) & kept).sum() for k in range(logits.shape[1])]).float())
    present = counts > 0
    weights = torch.where(present, 1 / (counts.clamp(min=1) * present.sum().clamp(min=1)), 0)
    losses = F.cross_entropy(logits.float(), labels, weights, reduction="none")
    return (losses * kept).sum() * _ranks()


def balanced_binary_cross_entropy(logits: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the mean over regions of the balanced cross-entropy between inside and outside.

    Args:
        logits: ``(B, R, H, W)``.
        target: ``(B, R, H, W)``, 1 inside.
        mask: ``(B, 1, H, W)``, False where a voxel counts for nothing.
    """
    inside = target.float()
    kept = torch.ones_like(inside[:, :1]) if mask is None else mask.float()
    sides = torch.stack([(1 - inside) * kept, inside * kept])  # (2, B, R, H, W)
    counts = _over_ranks(sides.sum(dim=(1, 3, 4)))  # (2, R)
    present = counts > 0
    weights = torch.where(present, 1 / (counts.clamp(min=1) * present.sum(dim=0).clamp(min=1)), 0)
    losses = F.binary_cross_entropy_with_logits(logits.float(), inside, reduction="none")
    by_voxel = (sides * weights[:, None, :, None, None]).sum(dim=0)
    return (losses * by_voxel).sum() / logits.shape[1] * _ranks()


def _over_ranks(counts: Tensor) -> Tensor:
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(counts)
    return counts


def _ranks() -> int:
    """Return by how much DDP divides: it averages over ranks what here is a sum over them."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
