"""The iBOT loss on masked patches (Zhou et al. 2022; weighted as in DINOv3)."""

from __future__ import annotations

from torch import Tensor

from pretraining.losses.cross_entropy import soft_cross_entropy


def ibot_loss(student: Tensor, targets: Tensor, weights: Tensor, num_crops: int, *, temperature: float = 0.1) -> Tensor:
    """Return the mean over *all* global crops, masked or not, of each crop's mean over its masked patches.

    Crops without a mask count as 0, as in the reference: where half of them are masked, the term is about half the mean
    over masked crops.

    Args:
        student: ``(M, K)`` logits of the masked patches of all crops; M may be 0.
        targets: ``(M, K)`` the teacher's probabilities of the same patches, unmasked.
        weights: ``(M,)`` one over the number of masked patches in the crop.
        num_crops: Global crops in the micro-batch, 2B.
        temperature: The student's (DINOv3: 0.1).
    """
    return soft_cross_entropy(student, targets, weights, temperature) / num_crops
