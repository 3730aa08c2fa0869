"""The processes that this one has started, and theirs: which they are, and how much memory they hold (Linux)."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

LOOK_EVERY_S = 0.03
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

    That is what is a process' own, of all of them, and the most that one shares with others or maps from files. The sum
    of proportional set sizes says nearly the same, but takes the kernel long and depends on what others run.
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
            self.mib = max(self.mib, _held_mib(descendants()))


def _held_mib(pids: Sequence[int]) -> float:
    """Return what processes hold, or what one of them alone has held before."""
    own, shared, files, before = 0, 0, 0, 0
    for pid in pids:
        with suppress(OSError):
            lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
            kib = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.endswith(" kB")}
            if "RssAnon" in kib:  # not in the last moment of a process
                own += kib["RssAnon"]
                shared, files = max(shared, kib["RssShmem"]), max(files, kib["RssFile"])
                before = max(before, kib["VmHWM"])
    return max(own + shared + files, before) / KIB_PER_MIB
