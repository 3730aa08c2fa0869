"""Runs a command that ends, with the workers it starts, when the calling process ends, even by SIGKILL.

Run by path as ``python -I -S supervisor.py GRACE_S COMMAND...``: it imports only the standard library and starts in a
few milliseconds. Standard input is a pipe that nobody writes to and whose other end only the
calling process holds: the kernel closes it when that process ends, however it does. ``prctl(PR_SET_PDEATHSIG)`` would
reach the command but not its workers, and is set between fork and exec, where a process with threads (progress bars)
must not run Python.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from contextlib import suppress

_LOOK_EVERY_S = 0.1


def supervise(command: list[str], grace_s: float) -> int:
    """Run a command to its end, or end it and its workers when the calling process ends or sends SIGTERM.

    Workers that a failed command left behind are ended too.

    Args:
        command: The program and its arguments.
        grace_s: Time between SIGTERM and SIGKILL.

    Returns:
        Exit code of the command; 128 plus the number of the signal that ended it.
    """
    stop = False

    def on_sigterm(number: int, frame: object) -> None:
        nonlocal stop
        stop = True

    signal.signal(signal.SIGTERM, on_sigterm)
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    while child.poll() is None and not stop and not select.select([sys.stdin], [], [], _LOOK_EVERY_S)[0]:
        pass
    if child.poll() != 0:
        _signal(child.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            child.wait(grace_s)
        _signal(child.pid, signal.SIGKILL)
    status = child.wait()
    return status if status >= 0 else 128 - status


def _signal(group: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, number)


if __name__ == "__main__":
    sys.exit(supervise(sys.argv[2:], float(sys.argv[1])))
