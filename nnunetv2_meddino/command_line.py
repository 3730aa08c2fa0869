"""What the commands of both packages share: their options, and how they end (exit code, one message of an error)."""

from __future__ import annotations

import argparse
import errno
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType
from typing import Any

from nnunetv2_meddino.console import cores, say
from nnunetv2_meddino.errors import MedDINOError
from nnunetv2_meddino.process_tree import descendants

EXIT_ERROR = 2
REPORTED_VERSIONS = ("nnunetv2-meddino", "nnunetv2", "torch", "timm", "numba")
"""Distributions that results and faults depend on most."""

_INTERRUPTED = 128 + signal.SIGINT
_PIPE_CLOSED = 128 + signal.SIGPIPE
_ENDING = (signal.SIGTERM, signal.SIGHUP)

_ADVICE = {
    errno.ENOSPC: "Make room there, or write to another place",
    errno.EDQUOT: "The quota is reached: make room there, or write to another place",
    errno.EACCES: "Check your permissions there, or name another place",
    errno.EPERM: "Check your permissions there, or name another place",
    errno.EROFS: "Name a place that can be written to",
    errno.ENOENT: "Check the path",
    errno.ENOTDIR: "A part of the path is a file: name another place",
    errno.EISDIR: "It is a folder: name a file",
    errno.EEXIST: "Something of that name exists: name another place",
    errno.ENAMETOOLONG: "Name a shorter path",
    errno.EFBIG: "No file may become that large here: see ulimit -f, or write to another file system",
    errno.EMFILE: "Too many files are open: raise the limit (ulimit -n), or give fewer processes (-np)",
    errno.ENFILE: "Too many files are open on this machine: try again later, or give fewer processes (-np)",
    errno.ENOMEM: "Give fewer processes (-np), or end other programs",
    errno.EIO: "The disk or the network file system fails: check it",
    errno.ESTALE: "The network file system fails: check it",
}


class Terminated(BaseException):
    """A SIGTERM or SIGHUP ended the process; like ``KeyboardInterrupt`` no error; caught in ``exit_code_of`` only."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


class _Version(argparse.Action):
    """Prints the versions of ``REPORTED_VERSIONS``, none of which is imported."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        for name in REPORTED_VERSIONS:
            try:
                say(f"{name} {version(name)}")
            except PackageNotFoundError:
                say(f"{name} is not installed")
        parser.exit()


def add_version(parser: argparse.ArgumentParser) -> None:
    """Add ``--version``."""
    parser.add_argument("--version", action=_Version, nargs=0, help="show the versions that a report of a fault needs")


def add_command(
    commands: argparse._SubParsersAction,
    name: str,
    run: Callable[[argparse.Namespace], int],
    description: str,
    **settings: Any,
) -> argparse.ArgumentParser:
    """Add a sub-command.

    Args:
        commands: Of the parser.
        name: Of the command.
        run: Does its work and returns the exit code.
        description: For the list of commands, and for its own help.
        settings: Further ones of its parser.
    """
    command: argparse.ArgumentParser = commands.add_parser(name, help=description, description=description, **settings)
    command.set_defaults(run=run)
    return command


def add_out(command: argparse.ArgumentParser, metavar: str, meaning: str, **settings: Any) -> None:
    """Add ``-o/--out``, which is a path."""
    command.add_argument("-o", "--out", type=Path, metavar=metavar, help=meaning, **settings)


def add_theme(command: argparse.ArgumentParser) -> None:
    """Add ``--theme``, one of ``visualization.style.THEMES``, which is not imported here: it takes matplotlib."""
    meaning = "page of the pictures: dark, for a screen, or light, for print (default: dark)"
    command.add_argument("--theme", choices=("dark", "light"), default="dark", help=meaning)


def add_processes(command: argparse.ArgumentParser) -> None:
    """Add ``-np``, as nnU-Net spells it."""
    command.add_argument(
        "-np",
        dest="processes",
        type=positive,
        default=cores(),
        metavar="N",
        help="number of processes (default: %(default)s)",
    )


def positive(text: str) -> int:
    """Return the number of an option that must be 1 or more."""
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"invalid int value: {text!r}") from None
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {number}")
    return number


def exit_code_of(work: Callable[[], int], *, interrupted: str = "", unwinds: bool = True) -> int:
    """Do the work of a command and return its exit code; an error or a signal is reported in one message.

    Meanwhile SIGTERM and SIGHUP (a closed terminal) end all processes that it has started, and then this one. A SIGHUP
    that is ignored (``nohup``) stays ignored.

    Args:
        work: Returns the exit code.
        interrupted: Added to the message after Ctrl-C or a signal.
        unwinds: Whether ``finally`` blocks run after a signal; nnU-Net's own could wait for the ended workers.

    Returns:
        What ``work`` returned; 2 after an error; 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP; 141 where
        nobody reads the output any more (``| head``).
    """
    received: list[Terminated] = []
    try:
        with _ending_signals(received, unwinds):
            code = work()
            sys.stdout.flush()
            return code
    except Terminated as error:
        return _report(f"Ended by {error}. {interrupted}", error.exit_code)
    except KeyboardInterrupt:
        return _report(f"Interrupted. {interrupted}", _INTERRUPTED)
    except MedDINOError as error:
        return _report(f"{type(error).__name__}: {error}", EXIT_ERROR)
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):  # raised by rich, which has closed the output
            return _PIPE_CLOSED
        raise
    except (OSError, MemoryError) as error:
        if received:  # a closed terminal, where no message can be written either
            return received[0].exit_code
        if isinstance(error, BrokenPipeError) and _reader_is_gone():
            _discard_output()
            return _PIPE_CLOSED
        return _report(f"{type(error).__name__}: {describe_error(error)}", EXIT_ERROR)


def describe_error(error: OSError | MemoryError) -> str:
    """Return what happened, where, and what to do."""
    if isinstance(error, MemoryError):
        detail = f" ({error})" if str(error) else ""
        return f"There is not enough memory{detail}. {_ADVICE[errno.ENOMEM]}, and run the same command again."
    where = " -> ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
    what = f"{where}: {error.strerror}" if where and error.strerror else str(error) or type(error).__name__
    advice = _ADVICE.get(error.errno or 0, "Remove the cause")
    return f"{what}. {advice}, and run the same command again."


@contextmanager
def _ending_signals(received: list[Terminated], unwinds: bool) -> Iterator[None]:
    def handler(number: int, frame: FrameType | None) -> None:
        _end_descendants()
        if not unwinds:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        received.append(Terminated(number))
        raise received[-1]

    handled = []
    if threading.current_thread() is threading.main_thread():
        handled = [number for number in _ENDING if signal.getsignal(number) is signal.SIG_DFL]
    for number in handled:
        signal.signal(number, handler)
    _not_inherited.update(handled)
    try:
        yield
    finally:
        _not_inherited.difference_update(handled)
        for number in handled:
            signal.signal(number, signal.SIG_DFL)


_not_inherited: set[signal.Signals] = set()
"""Signals whose handler is not for forked workers."""
_masks = threading.local()


def _hold_signals() -> None:
    _masks.before_fork = signal.pthread_sigmask(signal.SIG_BLOCK, _not_inherited)


def _release_signals() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _masks.before_fork)


def _release_default_signals() -> None:
    """In a forked worker, let the kernel end it: a handler of Python's never runs if the worker goes to sleep before.

    A pool that is closed early sends SIGTERM to workers that are about to wait for their first task, and then waits
    for them without end. Signals that come before this are held until here.
    """
    for number in _not_inherited:
        signal.signal(number, signal.SIG_DFL)
    _not_inherited.clear()
    _release_signals()


os.register_at_fork(before=_hold_signals, after_in_parent=_release_signals, after_in_child=_release_default_signals)


def _end_descendants() -> None:
    """Send SIGTERM to all processes that this one has started, and to theirs; only on Linux, which lists them."""
    for pid in descendants():
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGTERM)


def _report(message: str, code: int) -> int:
    with suppress(OSError):  # a closed terminal
        sys.stderr.write(f"{message.strip()}\n")
    return code


def _reader_is_gone() -> bool:
    poll = select.poll()
    for number in (1, 2):
        poll.register(number, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _discard_output() -> None:
    """Let the interpreter's last flush succeed."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        os.dup2(nowhere, number)
    os.close(nowhere)
