"""Real processes that talk to each other by gloo."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import tests.forked  # noqa: F401  # says what the server that the processes are forked from has imported


def _worker(rank: int, world_size: int, folder: Path, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=world_size)
    torch.save(function(*arguments), folder / f"{rank}.pt")
    dist.destroy_process_group()


def in_processes(world_size: int, folder: Path, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Call a module's function in each of several processes and return what they return, in order of rank.

    Args:
        world_size: processes.
        folder: an empty folder of the test's own.
        function: of a module, so that a new process can import it.
        *arguments: its arguments.
    """
    start = torch.multiprocessing.start_processes
    start(_worker, (world_size, folder, function, arguments), nprocs=world_size, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt") for rank in range(world_size)]
