"""One process or many: joining them, sharing or sharding the networks, and what they tell each other."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel

from nnunetv2_meddino.errors import ConfigurationError
from pretraining.model.backbone import PretrainingViT
from pretraining.model.student_teacher import Network, StudentTeacher

STRATEGIES = ("ddp", "fsdp")


@dataclass(frozen=True)
class Ranks:
    """This process among all."""

    rank: int
    """From 0."""
    world_size: int
    """Number of processes."""
    device: torch.device
    """Of this process."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and the terminal."""
        return self.rank == 0


@contextmanager
def init_distributed(device: str | None, timeout_s: float) -> Iterator[Ranks]:
    """Join the processes that ``torchrun`` started; without it there is this one.

    Args:
        device: ``cpu`` or ``cuda``; by default ``cuda`` where there is one.
        timeout_s: How long to wait for the others before the run ends with an error.

    Raises:
        ConfigurationError: The device is not there, or there are more processes than GPUs on this machine.
    """
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if kind not in ("cpu", "cuda"):
        raise ConfigurationError(f"device {kind!r} is neither cpu nor cuda")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError("there is no CUDA device: check nvidia-smi and the PyTorch build, or use -device cpu")
    if not dist.is_torchelastic_launched():
        yield Ranks(0, 1, torch.device(kind, 0) if kind == "cuda" else torch.device("cpu"))
        return
    local_rank = int(os.environ["LOCAL_RANK"])
    if kind == "cuda":
        if local_rank >= torch.cuda.device_count():
            raise ConfigurationError(
                f"torchrun started process {local_rank} on this machine, which has {torch.cuda.device_count()} GPUs: "
                "set --nproc-per-node to the number of GPUs"
            )
        torch.cuda.set_device(local_rank)
    backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
    try:
        here = torch.device(kind, local_rank) if kind == "cuda" else torch.device("cpu")
        yield Ranks(dist.get_rank(), dist.get_world_size(), here)
    finally:
        dist.destroy_process_group()


def neighbours(ranks: Ranks, count: int, timeout_s: float) -> dist.ProcessGroup | None:
    """Return the group of ``count`` consecutive processes that this one is in; None where it is alone.

    All processes make all groups, in the same order.
    """
    if count == 1:
        return None
    starts = range(0, ranks.world_size, count)
    made = [dist.new_group(range(first, first + count), timeout=timedelta(seconds=timeout_s)) for first in starts]
    return cast(dist.ProcessGroup, made[ranks.rank // count])


def parallelize(model: StudentTeacher, ranks: Ranks, strategy: str, param_dtype: torch.dtype | None) -> nn.Module:
    """Let all processes train one model.

    ``ddp`` keeps whole networks everywhere and averages gradients. ``fsdp`` shards parameters, gradients and optimizer
    state (FSDP2): each block, then the rest of the backbone, then each head, of all networks alike, so that the EMA
    works on shards.

    Args:
        model: On the device of this process, the same everywhere.
        ranks: This process.
        strategy: One of ``STRATEGIES``; a single process without ``torchrun`` needs none.
        param_dtype: Type in which sharded parameters are gathered and used; None for their own. Gradients are always
            reduced in float32.

    Returns:
        What to call in place of ``model.student``.
    """
    if strategy == "fsdp" and dist.is_initialized():
        mesh = init_device_mesh(ranks.device.type, (ranks.world_size,))
        policy = MixedPrecisionPolicy(param_dtype=param_dtype, reduce_dtype=torch.float32)
        _shard(model.student, mesh=mesh, mp_policy=policy)
        # what has no backward pass is sharded again right after the forward: the EMA works on shards
        _shard(model.teacher, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
        if model.gram_teacher is not None:
            _shard_backbone(model.gram_teacher, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
        return model.student
    if ranks.world_size == 1:
        return model.student
    devices = [ranks.device.index] if ranks.device.type == "cuda" else None
    return DistributedDataParallel(
        model.student, device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True
    )


def _shard(network: Network, **settings: Any) -> None:
    _shard_backbone(network.backbone, **settings)
    for head in (network.dino_head, network.ibot_head):
        fully_shard(head, **settings)
        for method in ("bottleneck", "scores"):
            register_fsdp_forward_method(head, method)


def _shard_backbone(backbone: PretrainingViT, **settings: Any) -> None:
    for block in backbone.blocks:
        fully_shard(block, **settings)
    fully_shard(backbone, **settings)


def no_sync(student: nn.Module, wanted: bool) -> AbstractContextManager[None]:
    """Keep gradients of this backward pass local, to be reduced with a later one, where ``wanted``."""
    if isinstance(student, DistributedDataParallel):
        return student.no_sync() if wanted else nullcontext()
    for module in student.modules():
        if isinstance(module, FSDPModule):
            module.set_requires_gradient_sync(not wanted, recurse=False)
    return nullcontext()


def mean_over_ranks(values: Tensor) -> Tensor:
    """Return the mean of a tensor over all processes."""
    if dist.is_initialized():
        values = values.clone()
        dist.all_reduce(values)
        values /= dist.get_world_size()
    return values


def all_ranks_true(flag: Tensor) -> bool:
    """Tell whether a scalar is true in all processes; all get the same answer."""
    agreed = flag.to(torch.float32)
    if dist.is_initialized():
        dist.all_reduce(agreed, dist.ReduceOp.MIN)
    return bool(agreed)


def barrier() -> None:
    """Wait for all processes."""
    if dist.is_initialized():
        dist.barrier()
