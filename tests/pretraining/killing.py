"""Dying on purpose: a process that is killed right before one of its operations on files."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

_WATCHED = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link")


def die_before(last: int, folder: Path) -> Callable[[], int]:
    """Let this process die right before its ``last``-th operation on a file of a folder.

    Args:
        last: from 1; -1 for never.
        folder: absolute. Names relative to an open folder, which deletion of whole folders uses, count too.

    Returns:
        What tells the number of operations up to now.
    """
    operations = 0

    def watch(event: str, arguments: tuple) -> None:
        nonlocal operations
        if event not in _WATCHED or not arguments:
            return
        name = str(arguments[0])
        if name.startswith(str(folder)) or (event in ("os.remove", "os.rmdir") and not name.startswith("/")):
            operations += 1
            if operations == last:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    return lambda: operations
