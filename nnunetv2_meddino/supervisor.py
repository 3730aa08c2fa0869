"""Runs a command so that it, and the workers it starts, end with whoever asked for it, even by SIGKILL.

Run by path as ``python -I -S supervisor.py GRACE_S COMMAND...`` (``processes.supervised``): it imports nothing but the
standard library and starts in a few milliseconds. Standard input is a pipe that nobody writes to and whose other end
the asking process alone holds: the kernel closes that when the process ends, however it does.
``prctl(PR_SET_PDEATHSIG)`` would reach the command alone, not its workers, and is set between fork and exec, where a
process with threads (progress bars) may run no Python.
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
    """Run a command to its end, or end it and its workers when the asking process ends or a SIGTERM comes.

    Workers of a command that failed are ended too; those of one that succeeded are its own affair.

    Args:
        command: The program and its arguments.
        grace_s: Time between SIGTERM and SIGKILL.

    Returns:
        Exit code of the command; 128 and the number of the signal that ended it.
    """
    asked = False

    def ask(number: int, frame: object) -> None:
        nonlocal asked
        asked = True

    signal.signal(signal.SIGTERM, ask)
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    while child.poll() is None and not asked and not select.select([sys.stdin], [], [], _LOOK_EVERY_S)[0]:
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
