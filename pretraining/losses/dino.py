"""The DINO loss between class tokens of crops (Caron et al. 2021; weighted as in DINOv3)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pretraining.losses.cross_entropy import soft_cross_entropy

GLOBAL_CROPS = 2


class DinoTerms(NamedTuple):
    """Mean cross-entropies over pairs of crops and over images."""

    local: Tensor
    """Scalar, over all pairs of a local crop (student) and a global crop (teacher)."""
    global_: Tensor
    """Scalar, over the pairs of global crops."""


def dino_loss(
    student_global: Tensor,
    student_local: Tensor,
    targets: Tensor,
    *,
    temperature: float = 0.1,
    ignore_diagonal: bool = True,
) -> DinoTerms:
    """Return the two terms of the DINO loss, from crop-major logits.

    The cross-entropy is linear in its target: a crop that is compared with both crops of the teacher is compared once
    with their sum.

    Args:
        student_global: ``(2B, K)`` logits of the global crops.
        student_local: ``(LB, K)`` logits of the local crops.
        targets: ``(2B, K)`` the teacher's probabilities of the global crops.
        temperature: The student's (DINO: 0.1).
        ignore_diagonal: Leave out pairs of a global crop with itself (DINOv3).
    """
    batch = len(targets) // GLOBAL_CROPS
    first, second = targets.split(batch)
    both = first + second
    crops = student_local.split(batch)
    local = torch.stack([soft_cross_entropy(crop, both, None, temperature) for crop in crops]).mean()
    compared = torch.cat((second, first) if ignore_diagonal else (both, both))
    global_ = soft_cross_entropy(student_global, compared, None, temperature)
    pairs = _global_pairs(ignore_diagonal)
    return DinoTerms(local / (batch * GLOBAL_CROPS), global_ / (batch * pairs))


def pair_shares(num_local: int, *, ignore_diagonal: bool = True) -> tuple[float, float]:
    """Return the shares of pairs with a local crop and of pairs of global crops; they weight the terms (DINOv3).

    With 8 local crops: 8/9 and 1/9.
    """
    local, global_ = GLOBAL_CROPS * num_local, _global_pairs(ignore_diagonal)
    return local / (local + global_), global_ / (local + global_)


def _global_pairs(ignore_diagonal: bool) -> int:
    return GLOBAL_CROPS * (GLOBAL_CROPS - ignore_diagonal)
