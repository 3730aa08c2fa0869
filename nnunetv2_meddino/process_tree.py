"""The processes that this one has started, and theirs: which they are, and how much memory they hold (Linux)."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

LOOK_EVERY_S = 0.1
KIB_PER_MIB = 1024


def descendants() -> list[int]:
    """Return the ids of all processes that this one has started, and of theirs; none where there is no ``/proc``."""
    children: dict[int, list[int]] = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # the name, in parentheses, may hold anything
            state = file.read_text(errors="replace").rpartition(")")[2].split()
            children.setdefault(int(state[1]), []).append(int(file.parent.name))
    found: list[int] = []
    waiting = [os.getpid()]
    while waiting:
        started = children.get(waiting.pop(), [])
        found += started
        waiting += started
    return found


class PeakMemory:
    """Watches, in a ``with`` block, the most memory that this process' descendants hold at a time.

    That is their proportional set size, but files that they map (libraries) count as in the process with most of them,
    whoever else maps the same.
    """

    def __init__(self) -> None:
        """Nothing has been seen yet."""
        self.mib = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(LOOK_EVERY_S):
            self.mib = max(self.mib, _held_mib(descendants(), self.mib))


def _held_mib(pids: Sequence[int], known_mib: float) -> float:
    """Return what processes hold, or what one of them alone has held before; 0 where that is surely not above known."""
    status = [fields for pid in pids if "VmRSS" in (fields := _fields_kib(pid, "status"))]
    files = max((fields["RssFile"] for fields in status), default=0)
    before = max((fields["VmHWM"] for fields in status), default=0)
    at_most = files + sum(fields["RssAnon"] + fields["RssShmem"] for fields in status)
    if max(at_most, before) <= known_mib * KIB_PER_MIB:
        return 0  # what follows takes the kernel long
    shares = [_fields_kib(pid, "smaps_rollup") for pid in pids]
    held = files + sum(fields.get("Pss_Anon", 0) + fields.get("Pss_Shmem", 0) for fields in shares)
    return max(held, before) / KIB_PER_MIB


def _fields_kib(pid: int, file: str) -> dict[str, int]:
    """Return the numbers in a file of ``/proc`` about a process; none once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/{file}").read_text(errors="replace").splitlines()
    except OSError:
        return {}
    return {line.split(":")[0]: int(line.split()[1]) for line in lines if line.endswith(" kB")}
