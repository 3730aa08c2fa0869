"""New processes that need no imports: forked from one server that has imported everything once.

Python has one such server for each process, with one list of what it imports: a test that named a list of its own would
make the processes of all others import for seconds.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import entry_points
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.preloaded"])

_READ_ENVIRONMENT = ("nnunetv2", "nnunetv2_meddino", "pretraining")
"""nnU-Net looks at the environment when it is imported; and those who import it."""


def run_installed(
    name: str, arguments: Sequence[str], environment: Mapping[str, str], *, threads: bool = False
) -> tuple[int, str]:
    """Run an installed command in a new process as its console script does; return its exit code and what it printed.

    Everything but nnU-Net and this project is imported already, which saves seconds.

    Args:
        name: Of the command.
        arguments: Of the command.
        environment: All of it.
        threads: Let worker pools be threads: the processes that nnU-Net spawns import it for seconds each.
    """
    return _run(_call_command, (name, list(arguments), threads), environment)


def run_code(code: str, environment: Mapping[str, str]) -> tuple[int, str]:
    """Run code as ``python -c`` does, in a process as that of ``run_installed``."""
    return _run(exec, (code, {"__name__": "__main__"}), environment)


def _run(work: Callable[..., object], arguments: tuple[object, ...], environment: Mapping[str, str]) -> tuple[int, str]:
    with tempfile.TemporaryDirectory() as folder:
        printed = Path(folder) / "printed"
        options = (work, arguments, dict(environment), str(Path.cwd()), printed)
        process = CONTEXT.Process(target=_in_new_process, args=options)
        process.start()
        process.join()
        assert process.exitcode is not None
        return process.exitcode, printed.read_text(errors="replace")


def _in_new_process(
    work: Callable[..., object], arguments: tuple[object, ...], environment: dict[str, str], folder: str, printed: Path
) -> None:
    output = os.open(printed, os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout, sys.stderr = (open(fd, "w", buffering=1, closefd=False) for fd in (1, 2))  # noqa: PTH123, SIM115
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for module in list(sys.modules):
        if module.partition(".")[0] in _READ_ENVIRONMENT:
            del sys.modules[module]
    try:
        work(*arguments)
    except SystemExit:
        raise
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        sys.exit(1)


def _call_command(name: str, arguments: list[str], threads: bool) -> None:
    if threads:
        multiprocessing.get_context = lambda _: SimpleNamespace(Pool=ThreadPool)
    sys.argv = [str(Path(sys.executable).with_name(name)), *arguments]
    (script,) = entry_points(group="console_scripts", name=name)
    sys.exit(script.load()())
