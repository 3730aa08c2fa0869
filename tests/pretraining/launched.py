"""Trainings started as users start them: ``torchrun`` and the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.pretraining.training import ANY_STAGE, SMALL

BIN = Path(sys.executable).parent
ENVIRONMENT = {
    **{"PATH": f"{BIN}{os.pathsep}/usr/sbin:/usr/bin:/sbin:/bin", "HOME": os.environ.get("HOME", "/")},
    **{"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"},
    **{name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ},  # the same code as in this process
}
LIMIT_S = 120
"""Much more than anything here takes."""


def train_arguments(corpus: Path, run: Path, *overrides: str) -> list[str]:
    """Return the arguments of ``meddino-pretrain train`` or ``submit`` for ``small_config()``."""
    known = ["stage1", "--corpus", str(corpus), "--out", str(run), "--recipe", "smoke", "-device", "cpu"]
    return [*known, *SMALL, *ANY_STAGE["stage1"], *overrides]


def torchrun(launcher: Sequence[str], arguments: Sequence[str]) -> list[str]:
    """Return a command with options for the launcher."""
    return [str(BIN / "torchrun"), *launcher, "--no-python", str(BIN / "meddino-pretrain"), "train", *arguments]


@contextmanager
def launched(command: Sequence[str], log: Path, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start a command with a clean environment; whatever is left of it is ended."""
    with log.open("ab") as file:
        process = subprocess.Popen(
            command, env=ENVIRONMENT | variables, stdout=file, stderr=file, start_new_session=True
        )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)  # torchrun ends its processes, which are in groups of their own
        process.wait(LIMIT_S)


def until_step(run: Path, step: int, process: subprocess.Popen[bytes]) -> None:
    """Return once a step is logged; it is an error if the process ends before."""
    file = run / "stage1" / "metrics.jsonl"
    while not (file.is_file() and _last_step(file) >= step):
        if process.poll() is not None:
            raise AssertionError(f"it ended with {process.returncode} before step {step}")
        try:
            process.wait(0.05)
        except subprocess.TimeoutExpired:
            continue


def _last_step(file: Path) -> int:
    whole = [line for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return max((json.loads(line)["step"] for line in whole if '"loss"' in line), default=-1)
