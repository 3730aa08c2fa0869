"""The KoLeo loss, which spreads class tokens apart (Sablayrolles et al. 2019), local and over processes (DINOv3)."""

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


def koleo_loss(cls: Tensor, *, top_k: int = 1) -> Tensor:
    """Return ``-mean log ||x - nearest neighbour||`` over normalised class tokens.

    Always in float32: distances between near neighbours cancel in bfloat16. Gradients reach a token and its neighbours.

    Args:
        cls: ``(B, D)`` class tokens of *one* crop of each image, before the head: two crops of an image are close by
            design and must not be pushed apart.
        top_k: neighbours to average over.

    Raises:
        ConfigurationError: there are fewer than ``top_k`` other tokens.
    """
    return _koleo(cls, slice(None), top_k)


def distributed_koleo_loss(
    cls: Tensor, *, group_size: int | None = None, top_k: int = 1, group: dist.ProcessGroup | None = None
) -> Tensor:
    """Return the KoLeo loss of this process' tokens, whose neighbours are looked for on other processes, too.

    The tokens of all processes, in order of rank, are cut into runs of ``group_size``; a token's neighbours are in its
    own run. Gradients flow back to neighbours on other processes, where they are summed. Without torch.distributed, the
    tokens of this process are all.

    Args:
        cls: ``(B, D)`` class tokens of one crop of each image, as for ``koleo_loss``; B the same on every process.
        group_size: tokens of a run, a multiple of B that divides B x processes; None for all (DINOv3 stage 3: 16).
        top_k: neighbours to average over.
        group: processes that take part; by default all.

    Raises:
        ConfigurationError: ``group_size`` does not fit the batch and the processes, or a run has fewer than ``top_k``
            other tokens.
    """
    cls = cls.float()  # before gathering: processes' gradients are added up in it
    if not (dist.is_available() and dist.is_initialized()):
        world, rank, everything = 1, 0, cls
    else:
        world, rank = dist.get_world_size(group), dist.get_rank(group)
        everything = _AllGather.apply(cls, group)
    batch = len(cls)
    size = batch * world if group_size is None else group_size
    if size % batch or (batch * world) % size:
        raise ConfigurationError(
            f"losses: koleo group_size {size} must be a multiple of the {batch} images of a process and divide the "
            f"{batch * world} of all processes; change group_size or the batch"
        )
    start = rank * batch // size * size
    own = slice(rank * batch - start, (rank + 1) * batch - start)
    return _koleo(everything[start : start + size], own, top_k)


def _koleo(tokens: Tensor, own: slice, top_k: int) -> Tensor:
    """Return the mean over the tokens ``own`` of all ``(C, D)``, each with its nearest of all others."""
    if top_k >= len(tokens):
        raise ConfigurationError(
            f"losses: KoLeo looks for {top_k} nearest of {len(tokens) - 1} other images; give a process a larger "
            "batch, or let KoLeo look on other processes"
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
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
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
