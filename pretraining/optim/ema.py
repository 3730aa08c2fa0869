"""The teacher follows the student: its parameters are an exponential moving average of the student's."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from nnunetv2_meddino.errors import ConfigurationError


@torch.no_grad()
def update_ema(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Set the teacher's parameters to ``momentum`` times theirs plus the rest of the student's; buffers stay.

    Called after the optimizer's step, with the momentum of the same step (as the DINOv3 reference). Sharded parameters
    are averaged shard by shard, without communication.

    Raises:
        ConfigurationError: The two do not have the same parameters, or they are sharded differently.
    """
    theirs, ours = _matching(teacher, student)
    torch._foreach_lerp_(theirs, ours, 1 - momentum)


@torch.no_grad()
def copy_parameters(source: nn.Module, target: nn.Module) -> None:
    """Copy parameters; buffers stay.

    Raises:
        ConfigurationError: The two do not have the same parameters, or they are sharded differently.
    """
    theirs, ours = _matching(target, source)
    torch._foreach_copy_(theirs, ours)


def _matching(target: nn.Module, source: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Return what this process holds of the parameters of both, in the same order."""
    theirs, ours = list(target.parameters()), list(source.parameters())
    if [_layout(parameter) for parameter in theirs] != [_layout(parameter) for parameter in ours]:
        msg = (
            "Parameters cannot be copied from one network to the other: their number, shapes or shards differ. Build "
            "both from the same configuration, shard both or neither, and reshard them after a forward pass."
        )
        raise ConfigurationError(msg)
    return [_local(parameter) for parameter in theirs], [_local(parameter) for parameter in ours]


def _layout(parameter: Tensor) -> tuple[object, ...]:
    sharded = (parameter.device_mesh, parameter.placements) if isinstance(parameter, DTensor) else ()
    return (parameter.shape, *sharded)


def _local(parameter: Tensor) -> Tensor:
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter
