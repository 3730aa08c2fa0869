"""One command at a time in a folder: a lock file that names its holder and is released when the holder dies.

Creating a file with ``O_EXCL`` is safe on every file system that a cluster shares; ``flock`` may not be. A lock that a
killed command left need not be deleted by hand:

- On the holder's machine its process is looked up by boot, process id and start time, since ids are used again.
- Elsewhere the holder is dead if its Slurm job was queued again since, or if the file was not touched for ``DEAD_S``: a
  thread of the holder touches it every ``BEAT_S``. Ages are differences of times that the file system itself wrote, so
  clocks need not agree. A command that finds a younger file waits until it is touched, or old enough.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from time import sleep
from typing import Any
from uuid import uuid4

from nnunetv2_meddino.environment import SLURM_JOB_ID, SLURM_RESTART_COUNT
from nnunetv2_meddino.errors import BusyError
from nnunetv2_meddino.files import naming

logger = logging.getLogger(__name__)

NAME = ".meddino.lock"

BEAT_S = 30.0
DEAD_S = 300.0
"""More than a network file system may show an old time (a minute), several times over."""

_LOOK_EVERY_S = 1.0


@dataclass(frozen=True)
class Holder:
    """The command that works in a folder."""

    token: str
    """Unique to this lock."""
    host: str
    """Name of the machine."""
    machine: str
    """Where process ids are valid: one boot of the machine and one process name space (containers have their own)."""
    pid: int
    """Process id."""
    started: str
    """Start time of the process, in ticks since the boot."""
    job: str | None
    """Slurm job; None outside Slurm."""
    restarts: int
    """How often the job had been queued again."""
    command: str
    """The command line."""
    since: str
    """When the lock was taken."""

    @classmethod
    def this_process(cls) -> Holder:
        """Return this process."""
        program = Path(sys.argv[0]).name
        return cls(
            token=uuid4().hex,
            host=socket.gethostname(),
            machine=_machine(),
            pid=os.getpid(),
            started=_started(os.getpid()) or "",
            job=SLURM_JOB_ID.get(),
            restarts=_restarts(),
            command=shlex.join([program, *sys.argv[1:]]),
            since=datetime.now().astimezone().isoformat(timespec="seconds"),
        )


@contextmanager
def locked(folder: Path, name: str = NAME) -> Iterator[None]:
    """Hold the lock of a folder; it is released at the end, or when this process dies.

    Args:
        folder: Made if it is missing.
        name: Name of the lock file, for a folder with several.

    Raises:
        BusyError: Another command works there.
        OSError: The folder cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, own = folder / name, Holder.this_process()
    while not _taken(path, own):
        _wait_for_death(path)
    given_up = threading.Event()
    beat = threading.Thread(target=_beat, args=(path, own.token, given_up), daemon=True)
    beat.start()
    try:
        yield
    finally:
        given_up.set()
        beat.join()
        if _token(path) == own.token:
            path.unlink(missing_ok=True)


def refuse_if_held(path: Path) -> None:
    """Return if no living command holds a lock; the file of a dead holder is deleted.

    Raises:
        BusyError: One does.
    """
    if path.exists():
        _wait_for_death(path)


def _taken(path: Path, own: Holder) -> bool:
    """Make the file; return False if there is one already."""
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    try:
        with naming(path), os.fdopen(descriptor, "w") as file:
            json.dump(asdict(own), file, indent=1)
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return True


def _wait_for_death(path: Path) -> None:
    """Return once the lock is gone because its holder released it or is dead.

    Raises:
        BusyError: The holder is alive.
    """
    first, warned = None, False
    while (seen := _seen(path)) is not None:
        touched_s, holder = seen
        if first is None:
            first = touched_s
        alive = None if holder is None else _lives(holder)
        age_s = _now_s(path) - touched_s
        if alive is False or (alive is None and age_s >= DEAD_S):
            _remove(path, holder)
            return
        if alive or touched_s != first:
            raise BusyError(_refusal(path, holder))
        if not warned:
            warned = True
            logger.warning(
                "%s may be left by a command that died: %s. Waiting for a sign of life, up to %.0f s",
                path,
                _words(holder),
                DEAD_S - age_s,
            )
        sleep(_LOOK_EVERY_S)


def _seen(path: Path) -> tuple[float, Holder | None] | None:
    """Return when the file was touched and its holder (None while that is not written); None if the file is gone."""
    try:
        touched_s = path.stat().st_mtime
        text = path.read_text()
    except FileNotFoundError:
        return None
    try:
        return touched_s, Holder(**json.loads(text))
    except (ValueError, TypeError):
        return touched_s, None


def _lives(holder: Holder) -> bool | None:
    """Whether a holder is alive; None if that cannot be known from here."""
    if holder.machine and holder.machine == _machine():
        return None if _is_hidden(holder.pid) else _started(holder.pid) == holder.started
    if holder.job is not None and holder.job == SLURM_JOB_ID.get() and holder.restarts < _restarts():
        return False
    return None


def _remove(path: Path, dead: Holder | None) -> None:
    """Delete the lock of a dead holder, unless another lock has taken its place meanwhile."""
    aside = path.with_name(f"{path.name}.{uuid4().hex}")
    try:
        path.rename(aside)
    except FileNotFoundError:  # another command was quicker
        return
    if _token(aside) == (None if dead is None else dead.token):
        logger.warning("%s was left by a command that has died, and is taken over: %s", path, _words(dead))
    else:
        with suppress(FileExistsError):
            os.link(aside, path)
    aside.unlink()


def _beat(path: Path, token: str, given_up: threading.Event) -> None:
    while not given_up.wait(BEAT_S):
        try:
            if _token(path) != token:
                logger.error("%s is no longer held by this command: another may be working in the folder", path)
                return
            os.utime(path)
        except OSError as error:  # of the network: it may pass
            logger.warning("%s could not be touched: %s", path, error)


def _token(path: Path) -> str | None:
    seen = _seen(path)
    return None if seen is None or seen[1] is None else seen[1].token


def _now_s(path: Path) -> float:
    """Return the present time by the clock of a lock's file system."""
    probe = path.with_name(f"{path.name}.{uuid4().hex}")
    try:
        probe.touch()
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _refusal(path: Path, holder: Holder | None) -> str:
    return (
        f"another command works in {path.parent}: {_words(holder)}. Wait until it ends, or end it, and run this one "
        f"again. Only if it is certainly dead, delete {path}"
    )


def _words(holder: Holder | None) -> str:
    if holder is None:
        return "of unknown origin"
    job = "" if holder.job is None else f", Slurm job {holder.job}"
    return f"{holder.command} (process {holder.pid} on {holder.host}{job}, since {holder.since})"


def _machine() -> str:
    """Return an id of machine, boot and process name space; empty if the system has none."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    """Return the start time of a process; None if it has ended."""
    try:
        fields: list[Any] = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]  # ended, but not yet waited for by its parent


def _is_hidden(pid: int) -> bool:
    """Whether a process is another user's, of which the system may show only that it exists."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return _started(pid) is None
    except ProcessLookupError:
        pass
    return False


def _restarts() -> int:
    return int(SLURM_RESTART_COUNT.get() or 0)
