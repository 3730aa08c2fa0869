"""Two processes on this machine."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def _enter(rank: int, work, folder: Path, processes: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=processes)
    try:
        torch.save(work(rank), folder / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


def run_processes(work, folder: Path, processes: int = 2) -> list:
    """Return what ``work(rank)``, a function of a test module, returns in each process of a gloo group."""
    mp.spawn(_enter, args=(work, folder, processes), nprocs=processes)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(processes)]
