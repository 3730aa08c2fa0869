"""Measures that fall when self-supervised training collapses, from tensors that a step has at hand.

Everything is returned on the device of its input: reading a value waits for the device, so call these every some
hundred steps. Entropies are in nats.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def target_measures(targets: Tensor) -> dict[str, Tensor]:
    """Return what the teacher's targets say, by name.

    "Emerging Properties in Self-Supervised Vision Transformers" (DINO, Caron et al. 2021, section 5.3) tells two
    collapses apart by the entropy of the targets: 0 if one prototype takes all, log K if all are alike. Either way the
    targets do not depend on the image, so that their information about it, H(mean target) - mean H(target), is 0.

    - ``collapse/target_entropy``: mean entropy of a target. After Sinkhorn it is about log(K / N) at least, because
      N images share K prototypes evenly.
    - ``collapse/target_kl_to_uniform``: log K minus that.
    - ``collapse/mean_target_entropy``: entropy of the mean target; log K if all prototypes are used alike, which
      Sinkhorn sees to.
    - ``collapse/target_information``: the information as a share of the most it can be, log min(N, K).

    Args:
        targets: ``(N, K)`` probabilities, N at least 2.
    """
    count, prototypes = targets.shape
    targets = targets.float()
    of_each = torch.special.entr(targets).sum(-1).mean()
    of_mean = torch.special.entr(targets.mean(0)).sum()
    return {
        "collapse/target_entropy": of_each,
        "collapse/target_kl_to_uniform": math.log(prototypes) - of_each,
        "collapse/mean_target_entropy": of_mean,
        "collapse/target_information": (of_mean - of_each) / math.log(min(count, prototypes)),
    }


def class_rank(tokens: Tensor) -> Tensor:
    """Return how many directions class tokens use: 0 if all point one way, 1 if all directions are used alike.

    (effective rank - 1) / (min(N, D) - 1).

    Args:
        tokens: ``(N, D)``, both at least 2.
    """
    return (effective_rank(tokens) - 1) / (min(tokens.shape) - 1)


def effective_rank(matrix: Tensor) -> Tensor:
    """Return exp of the entropy of the singular values, scaled to sum 1, of a matrix ``(N, D)``.

    Roy and Vetterli, "The effective rank", EUSIPCO 2007; on features as they are, not centred, it is RankMe (Garrido
    et al., ICML 2023).
    """
    singular = torch.linalg.svdvals(matrix.float())
    shares = singular / singular.sum().clamp_min(torch.finfo(torch.float32).tiny)
    return torch.special.entr(shares).sum().exp()


def patch_similarity(patches: Tensor) -> Tensor:
    """Return the mean cosine similarity of different patches of one image, ``(B,)``.

    The sum over all pairs is the squared length of the sum of the unit vectors: no ``(P, P)`` matrix is made.

    Args:
        patches: ``(B, P, D)``, P at least 2.
    """
    count = patches.shape[1]
    unit = torch.nn.functional.normalize(patches.float(), dim=-1)
    return (unit.sum(1).square().sum(-1) - unit.square().sum((1, 2))) / (count * (count - 1))
