"""The KoLeo loss, which spreads class tokens apart (Sablayrolles et al. 2019; DINOv3)."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from nnunetv2_meddino.errors import ConfigurationError

EPS = 1e-8
"""Of the reference: in the normalisation, on every component of a difference, and in the logarithm."""


def koleo_loss(cls: Tensor, *, top_k: int = 1, group: dist.ProcessGroup | None = None) -> Tensor:
    """Return ``-mean log ||x - nearest neighbour||`` over normalised class tokens.

    Always in float32: distances between near neighbours cancel in bfloat16. Gradients reach a token and its neighbours,
    also on other processes, where they are summed.

    Args:
        cls: ``(B, D)`` class tokens of *one* crop of each image, before the head: two crops of an image are close by
            design and must not be pushed apart.
        top_k: Neighbours to average over.
        group: Processes on whose tokens neighbours are looked for, B on each; None for this one alone.

    Returns:
        The mean over the tokens of this process.

    Raises:
        ConfigurationError: There are fewer than ``top_k`` other tokens.
    """
    if group is None:
        return _koleo(cls, slice(None), top_k)
    everything = _AllGather.apply(cls.float(), group)  # float: gradients of all processes are added up in it
    start = dist.get_rank(group) * len(cls)
    return _koleo(everything, slice(start, start + len(cls)), top_k)


def _koleo(tokens: Tensor, own: slice, top_k: int) -> Tensor:
    """Return the mean over the tokens ``own`` of all ``(C, D)``, each with its nearest of all others."""
    if top_k >= len(tokens):
        raise ConfigurationError(
            f"losses: KoLeo looks for {top_k} nearest of {len(tokens) - 1} other images; make groups larger "
            "(--data.group-size)"
        )
    with torch.autocast(tokens.device.type, enabled=False):
        # once for both members of a pair: the large gradients of near neighbours cancel only before this
        tokens = F.normalize(tokens.float(), dim=1, eps=EPS)
        with torch.no_grad():
            similarity = tokens @ tokens.T
            neighbours = similarity.fill_diagonal_(-1)[own].topk(top_k, dim=1).indices
        distances = F.pairwise_distance(tokens[own, None], tokens[neighbours], eps=EPS)
        return -(distances + EPS).log().mean()


class _AllGather(torch.autograd.Function):
    """All tokens ``(W B, D)`` in order of rank; in the backward pass every process' gradients are summed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group, ctx.batch = group, len(x)
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, x.contiguous(), group=group)
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        gradient = gradient.clone(memory_format=torch.contiguous_format)  # others may read it
        dist.all_reduce(gradient, group=ctx.group)
        return gradient.split(ctx.batch)[dist.get_rank(ctx.group)], None
