"""Being asked to stop, and telling the launcher that the state is saved.

A run is stopped by SIGTERM, SIGHUP (a closed terminal) or SIGUSR1 to any of its processes, or by the file
``RUN/stop``. The file is the way through ``torchrun``, which dies of SIGUSR1 and kills its processes 30 s after SIGTERM
or SIGHUP. Where ``torchrun`` itself is killed, its processes would train on alone: its end stops them as well. A run
that stopped leaves ``RUN/stopped`` until it goes on: ``torchrun`` ends with 1 whatever its processes end with, so that
the exit code does not tell a stop from an error.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch
import torch.distributed as dist

from nnunetv2_meddino.files import naming
from pretraining.engine.distributed import all_ranks_true

STOP = "stop"
STOPPED = "stopped"


class StopRequest:
    """Whether the process was asked to stop; SIGTERM and SIGUSR1 are such requests, as Slurm sends before it kills.

    So are SIGHUP, unless it is ignored (``nohup``), and the end of ``torchrun``.

    Args:
        file: Asks by being there; None leaves the signals.
    """

    def __init__(self, file: Path | None = None) -> None:
        self.received: str | None = None
        self.file = file
        self._launcher = os.getppid() if dist.is_torchelastic_launched() else None

    def look(self) -> None:
        """Look for the file."""
        if self.received is None and self.file is not None and self.file.exists():
            self.received = str(self.file)

    def agreed(self, is_main: bool) -> bool:
        """Tell whether any process was asked; all call this, and all get the same answer.

        Args:
            is_main: Whether this process looks for the file.
        """
        if is_main:
            self.look()
        if self.received is None and self._launcher not in (None, os.getppid()):
            self.received = "the end of torchrun"
        return not all_ranks_true(torch.tensor(self.received is None))

    @contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Take signals as requests meanwhile."""

        def handler(number: int, frame: FrameType | None) -> None:
            self.received = signal.Signals(number).name

        numbers = [signal.SIGTERM, signal.SIGUSR1]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        before = {number: signal.signal(number, handler) for number in numbers}
        try:
            yield self
        finally:
            for number, old in before.items():
                signal.signal(number, old)


def clear_stopped(run: Path) -> None:
    """Delete ``RUN/stopped``; a request to stop that came before the training did is kept."""
    (run / STOPPED).unlink(missing_ok=True)


def mark_stopped(run: Path) -> None:
    """Write ``RUN/stopped``: the state is saved; the request to stop is met."""
    with naming(run / STOPPED):
        (run / STOPPED).write_text("Stopped on request; the state is saved, and the same command goes on.\n")
    (run / STOP).unlink(missing_ok=True)
