"""Processes that are waited for: until they have begun, until they have ended."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

LIMIT_S = 180
"""Much more than anything here takes."""

FAMILY = """
import os, signal, subprocess, sys
worker = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
open("pids.partial", "w").write(f"{os.getpid()} {worker.pid}")
os.replace("pids.partial", "pids")
signal.pause()
"""
"""A command with a worker, both without an end; tells its process ids in the file ``pids`` of its folder."""


def until(met: Callable[[], object]) -> None:
    """Return once a condition is met."""
    deadline = time.monotonic() + LIMIT_S
    while not met():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def family(folder: Path) -> list[int]:
    """Return the process ids of the command and its worker once they run."""
    file = folder / "pids"
    until(file.exists)
    return [int(pid) for pid in file.read_text().split()]


def has_ended(pid: int) -> bool:
    """Whether a process has ended, waited for by its parent or not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state in "ZX"
