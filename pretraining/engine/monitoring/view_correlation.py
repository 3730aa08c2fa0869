"""Whether untrained heads can take hold: how far two views of a slice agree, against the temperatures' border.

While all targets are nearly uniform, everything is linear in the logits z = W x of the class token x. The teacher's
targets after Sinkhorn are ``(1 + (z - mean z) / t_teacher) / K``, the student's predictions
``(1 + z / t_student) / K``, and the gradient of the loss by the student's logits is their difference over
``t_student``. So the descent of the loss changes the weights by

    dW ~ W (C_between / t_teacher - C_within / t_student)

with ``C_between`` the covariance of the student's view of a slice with the teacher's, over slices, and ``C_within``
that of the student's view with itself. What W says along a direction d grows only where

    d' C_between d / d' C_within d > t_teacher / t_student

and dies out elsewhere: what two views do not share is a burden to the student alone. For two global crops the left side
is their correlation; for a local crop it is the regression of the global on the local one. If no direction passes the
border, the heads stay where they are, at uniform targets and a loss of log K. Momentum, normalisation and the layers
before W change how fast that goes, not its sign. The largest left side is the largest generalised eigenvalue of the two
covariances. Directions of small variance need long: ``benchmarks/learning_border.py`` trains heads on either side.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import NamedTuple

import numpy as np
import torch
from scipy.linalg import eigh
from torch import Tensor

from nnunetv2_meddino.networks.vit import VisionTransformer
from pretraining.config.monitor import MIN_CORRELATION_SLICES
from pretraining.engine.monitoring.alarms import REMEDY
from pretraining.losses.dino import GLOBAL_CROPS, pair_shares
from pretraining.views import Views

RIDGES = (0.01, 0.1, 1.0, 10.0)
"""Shares of the mean variance that are added to the variance of all directions where the best is looked for: of few
slices a small one finds directions that are shared by chance, a large one those that share most and not best."""

PROPOSED = 3
"""Directions for each of them."""

CROPS_AT_ONCE = 16
"""That pass through the network together: a group of large crops need not fit where its micro-batches do."""


class Moments(NamedTuple):
    """Second moments over slices of the student's and the teacher's views, ``(D, D)`` float64."""

    between: Tensor
    """Symmetrised covariance of the student's with the teacher's views."""
    within: Tensor
    """Covariance of the student's views."""

    def along(self, directions: Tensor) -> Tensor:
        """Return the left side of the condition for directions ``(..., D)``; NaN where there is no variance."""
        between, within = (((directions @ moment) * directions).sum(-1) for moment in self)
        return between / within


@torch.no_grad()
def class_tokens(vit: VisionTransformer, views: Views) -> Tensor:
    """Return the class tokens of all crops of B slices, ``(V, B, D)`` float64 on the host, global crops first.

    Args:
        vit: In evaluation mode.
        views: Nothing is masked.
    """
    found = []
    for crops in (views.global_crops, views.local_crops):
        patch = vit.config.patch_size
        height, width = (side // patch * patch for side in crops.shape[-2:])  # as in training
        seen = [
            vit.forward_tokens(some, [vit.config.depth - 1])[0].prefix[:, 0].cpu().double()
            for some in crops[..., :height, :width].split(CROPS_AT_ONCE)
        ]
        found.append(torch.cat(seen).unflatten(0, (-1, len(views.parameters.boxes))))
    return torch.cat(found)


def view_correlation(rows: Tensor, tokens: Tensor, *, local_weight: float) -> dict[str, float]:
    """Return how far the views of a slice agree, by name; NaN where there are too few slices to say.

    - ``views/correlation``: the left side of the condition for the whole DINO loss, its pairs weighted as in the loss.
    - ``views/correlation_global``, ``views/correlation_local``: for the pairs of global crops, and for those of a local
      with a global crop, alone.
    - ``views/trace_ratio``: the same as the first over all directions at once, the ratio of the traces. It is lower:
      most directions are shared by nothing.
    - ``views/slices``: of how many slices.

    One third of the slices proposes directions, another says which of them is shared best, and the last judges it: a
    direction that was chosen by chance gets no credit for it. The mean over all orders of the thirds is returned. From
    few slices the best direction is not found, so the values are too low rather than too high.

    Args:
        rows: ``(N,)`` which slice each is: of one that comes again the first views count.
        tokens: ``(V, N, D)``, two global crops first. Slices with values that are not finite are left out.
        local_weight: Weight of the local crops within the DINO loss.
    """
    first = [n for n, row in enumerate(rows.tolist()) if row not in rows[:n] and tokens[:, n].isfinite().all()]
    tokens = tokens[:, first].double()
    names = ("views/correlation", "views/correlation_global", "views/correlation_local", "views/trace_ratio")
    if len(first) < MIN_CORRELATION_SLICES or not tokens.std(1).any():
        return {**dict.fromkeys(names, math.nan), "views/slices": len(first)}
    local_share, global_share = pair_shares(len(tokens) - GLOBAL_CROPS)
    shares = (local_weight * local_share, global_share)
    thirds = [tokens[:, start::3] for start in range(3)]
    kinds = (shares, (0.0, 1.0), (1.0, 0.0))
    values = [_best_ratio([moments(third, *kind) for third in thirds]) for kind in kinds]
    whole = moments(tokens, *shares)
    values.append(float(whole.between.trace() / whole.within.trace()))
    return {**dict(zip(names, values, strict=True)), "views/slices": len(first)}


def correlation_warning(found: Mapping[str, float], student_temperature: float) -> str | None:
    """Return a sentence where the views agree too little for untrained heads, with what to do; else None.

    Args:
        found: From ``view_correlation``, and ``views/border`` and ``views/border_largest``, the teacher's over the
            student's temperature now and at its largest.
        student_temperature: Of its softmax.
    """
    correlation, border, largest = (found[f"views/{name}"] for name in ("correlation", "border", "border_largest"))
    if not correlation < border:
        return None
    later = f" (up to {largest:.2f} in the course of the schedule)" if largest > border else ""
    meeting = student_temperature * correlation
    where = f" The border would be where they are at a teacher temperature of {meeting:.3f}." if correlation > 0 else ""
    return (
        "Two views of a slice agree too little for this teacher temperature: along the direction in which their class "
        f"tokens agree best, they correlate by {correlation:.2f}, and untrained heads learn only from what correlates "
        f"by more than {border:.2f}{later}, the teacher's temperature over the student's.{where} The DINO loss will "
        f"probably stay at the logarithm of the number of prototypes. {REMEDY}"
    )


def moments(tokens: Tensor, local_weight: float, global_weight: float) -> Moments:
    """Return moments over slices of the pairs of different crops; each crop is centred by itself.

    Args:
        tokens: ``(V, N, D)``, two global crops first.
        local_weight: Of all pairs of a local with a global crop.
        global_weight: Of both pairs of global crops.
    """
    tokens = tokens - tokens.mean(1, keepdim=True)
    count = tokens.shape[1]
    teacher, local = tokens[:GLOBAL_CROPS], tokens[GLOBAL_CROPS:]
    between = global_weight * teacher[0].T @ teacher[1] + local_weight * local.mean(0).T @ teacher.mean(0)
    within = global_weight * _within(teacher) + local_weight * _within(local)
    return Moments((between + between.T) / (2 * count), within / count)


def _within(crops: Tensor) -> Tensor:
    flat = crops.flatten(0, 1)
    return flat.T @ flat / len(crops)


def _best_ratio(thirds: Sequence[Moments]) -> float:
    """Return the ratio along the direction where it is largest, from thirds of the slices in all six orders."""
    proposals = [_directions(third) for third in thirds]
    found = []
    for proposing, choosing, judging in permutations(range(len(thirds))):
        proposed = proposals[proposing]
        found.append(thirds[judging].along(proposed[thirds[choosing].along(proposed).argmax()]))
    return float(torch.stack(found).mean())


def _directions(of: Moments) -> Tensor:
    """Return directions ``(N, D)`` of the largest ratios: generalised eigenvectors, for each ridge."""
    between, within = (moment.numpy() for moment in of)
    dim = len(within)
    found = []
    for ridge in RIDGES:
        steadied = within + ridge * within.trace() / dim * np.eye(dim)
        found.append(eigh(between, steadied, subset_by_index=(dim - min(PROPOSED, dim), dim - 1))[1])
    return torch.from_numpy(np.concatenate(found, axis=1).T)
