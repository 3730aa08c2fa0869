"""Runs that save and resume: what tests start in other processes, without pytest, so that they start quickly."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from nnunetv2_meddino.errors import CheckpointError, DataError
from pretraining.engine.agreement import Agreement
from pretraining.engine.checkpointing import checkpoint
from pretraining.engine.checkpointing.checkpoint import Checkpoints
from tests.pretraining.killing import die_before


def state_of(step: int) -> dict[str, Any]:
    """A state that tells its step in every value."""
    weights = torch.arange(2000, dtype=torch.float32) + step
    return {
        "model": {"blocks.0.weight": weights.reshape(50, 40), "half": torch.full((7,), step, dtype=torch.bfloat16)},
        "optimizer": {"state": {"count": torch.tensor(step)}, "groups": [{"lr": step / 3, "betas": (0.9, step / 7)}]},
    }


def save_for_ever(folder: Path, confirmed: Any) -> None:
    """Resume, and save step after step; ``confirmed`` is the last one that was reported to be on disk."""
    checkpoints = Checkpoints(folder, keep_last=2, keep_every=10)
    step = checkpoints.latest() or 0
    while True:
        step += 1
        checkpoints.save(step, state_of(step), {"step": step})
        confirmed.value = step - 1


def save_one_until(folder: Path, step: int, last: int, operations: Any) -> None:
    """Save one checkpoint in place of the one before, and die before the ``last``-th operation on a file."""
    count = die_before(last, folder)
    checkpoints = Checkpoints(folder, keep_last=1)
    checkpoints.save(step, state_of(step), {"step": step})
    checkpoints.wait()
    operations.value = count()


@contextmanager
def full_disk(suffix: str) -> Iterator[None]:
    """Let files whose name ends so be written to a device that is always full."""
    path_open = Path.open

    def opened(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        full = "w" in mode and path.name.endswith(suffix)
        return path_open(Path("/dev/full") if full else path, mode, *arguments, **options)

    with patch.object(Path, "open", opened):
        yield


@contextmanager
def held_writes() -> Iterator[threading.Event]:
    """Let no process write tensors until the event is set, or 20 s have passed."""
    gate = threading.Event()
    write = dcp.FileSystemWriter.write_data

    def held(self: Any, *arguments: Any) -> Any:
        gate.wait(20)
        return write(self, *arguments)

    with patch.object(dcp.FileSystemWriter, "write_data", held):
        yield gate


def network(kind: str, seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A tiny network after a step of AdamW; its 7 and 3 rows are shared out unevenly."""
    torch.manual_seed(seed)
    model: nn.Module = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 3))
    if kind == "fsdp":
        fully_shard(model[0])
        fully_shard(model)
    elif kind == "ddp":
        model = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1 * seed, betas=(0.9, 0.99))
    model(torch.randn(4, 5)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    return model, optimizer


def state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {
        "model": get_model_state_dict(model),
        "optimizer": get_optimizer_state_dict(model, optimizer),
    }


def whole(values: Any) -> Any:
    """Copies of all tensors with their shards put together."""
    if isinstance(values, dict):
        return {key: whole(value) for key, value in values.items()}
    if isinstance(values, list):
        return [whole(value) for value in values]
    if isinstance(values, DTensor):
        values = values.full_tensor()
    return values.detach().clone() if isinstance(values, torch.Tensor) else values


def save_network(folder: Path, kind: str) -> dict[str, Any]:
    """Save a network, and change its weights while that is being written; return the state that was saved."""
    model, optimizer = network(kind, seed=1)
    saved = whole(state(model, optimizer))
    checkpoints = Checkpoints(folder)
    with held_writes() as gate:
        checkpoints.save(12, state(model, optimizer), {"kind": kind})
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        gate.set()
        checkpoints.wait()
    return saved


def resume_network(folder: Path, kind: str) -> dict[str, Any]:
    """Load what was saved into a network that has other weights, and return its state."""
    model, optimizer = network(kind, seed=2)
    loaded = state(model, optimizer)
    Checkpoints(folder).load(12, loaded)
    set_model_state_dict(model, loaded["model"])
    set_optimizer_state_dict(model, optimizer, loaded["optimizer"])
    return whole(state(model, optimizer))


def _error(action: Callable[[], object]) -> str:
    try:
        action()
    except CheckpointError as error:
        return str(error)
    return "no error"


def disagree(folder: Path) -> dict[str, Any]:
    """Two processes of which one meets a full disk, one is busy training, and one would judge otherwise."""
    rank = dist.get_rank()
    checkpoints = Checkpoints(folder)
    found: dict[str, Any] = {}
    for step in (1, 2):
        checkpoints.save(step, state_of(step), {})
    checkpoints.wait()
    found["errors"] = []
    for failing, file in ((1, ".distcp"), (0, ".metadata.tmp"), (0, "checkpoint.json")):
        with full_disk(file) if rank == failing else nullcontext():
            checkpoints.save(3, state_of(3), {})
            found["errors"].append(_error(checkpoints.wait))
    usage = shutil.disk_usage(folder)._replace(free=0 if rank == 0 else 2**40)
    with patch.object(shutil, "disk_usage", lambda _: usage):
        found["errors"].append(_error(lambda: checkpoints.save(3, state_of(3), {})))
    found["after errors"] = checkpoints.steps()
    agreement = Agreement()
    for failure in (DataError("of this package"), OSError("of another")):
        try:
            agreement.broadcast_from_rank0(partial(_raise, failure))
        except Exception as error:
            found["errors"].append((type(error).__name__, str(error)))

    with held_writes() as gate:
        if rank:
            gate.set()  # in the background this process soon waits for the other, which writes only at the end
        checkpoints.save(3, state_of(3), {})
        totals = [torch.tensor(number * (rank + 1)) for number in range(500)]
        for total in totals:
            dist.all_reduce(total)
        gate.set()
        found["sums"] = [int(total) for total in totals]
        found["saved"] = checkpoints.steps()

    dist.barrier()
    if rank == 0:
        next((folder / "step_00000003").glob("*.distcp")).write_bytes(b"")
    with patch.object(checkpoint, "check_files", _judge_nothing) if rank else nullcontext():
        found["latest"] = Checkpoints(folder).latest()
    return found


def _judge_nothing(*_: Any) -> None:
    raise AssertionError("only the first process judges")


def _raise(error: Exception) -> None:
    raise error
