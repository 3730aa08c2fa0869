"""Runs nnU-Net's commands as child processes that end with their parent, and follows their progress in their output."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np

from nnunetv2_meddino.errors import CommandError, ConfigurationError

Report = Callable[[float | None, str], None]
"""Called with the fraction that is done (None where unknown) and a few words."""

Watch = Callable[[str], None]
"""Called with every line that a command writes."""

VALIDATION = "Validation"
"""Begins the lines in which a trainer says what its final validation does."""

_POLL_S = 0.1
# isolated and without site-packages: the command's environment is not its own; 5 s between SIGTERM and SIGKILL
_SUPERVISE = (sys.executable, "-I", "-S", str(Path(__file__).with_name("supervisor.py")), "5")
# what a console script does, which does not look for modules in the working folder either
_CALL_ENTRY_POINT = """
import sys
from importlib.metadata import entry_points
del sys.argv[0]
sys.path = [folder for folder in sys.path if folder]
command, *_ = entry_points(group="console_scripts", name=sys.argv[0])
sys.exit(command.load()())
"""
_SHOWN_LINES = 5
# Warnings, parts of a traceback, and what nnU-Net adds when one of its workers has died of an error printed before.
_NOISE = re.compile(r"\s|.*Warning: |Traceback|Exception in|During handling|The above exc|RuntimeError: One or more")


def run_command(command: Sequence[str], environment: Mapping[str, str], log: Path, watch: Watch) -> None:
    """Run a command to its end; it and its workers end with this process, however that ends.

    The output goes straight to the log and is read from there. Through a pipe, a worker that outlives the command and
    keeps the pipe open could block this call.

    Args:
        command: A command that is installed for this Python, or a path, and its arguments.
        environment: Its whole environment.
        log: File that its output is appended to.
        watch: Called with every line of the output.

    Raises:
        CommandError: The command failed; the message holds the last lines that say why, and the log.
        ConfigurationError: There is no such command.
    """
    check_installed(command[:1])
    with log.open("a", encoding="utf-8") as sink, log.open(encoding="utf-8", errors="replace") as source:
        sink.write(f"$ {' '.join(command)}\n")
        sink.flush()
        source.seek(0, os.SEEK_END)
        child = subprocess.Popen(
            [*_SUPERVISE, *_program(command[0]), *command[1:]],
            env={**environment, "PYTHONUNBUFFERED": "1"},  # its lines are followed as they come
            stdin=subprocess.PIPE,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            unfinished, running = "", True
            while running:
                running = child.poll() is None
                *lines, unfinished = re.split(r"[\r\n]+", unfinished + source.read())
                for line in lines:
                    watch(line)
                time.sleep(_POLL_S)
        finally:
            child.stdin.close()  # type: ignore[union-attr]  # what the supervisor waits for
            child.wait()
    if child.returncode:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        telling = [line for line in lines if line.strip() and not _NOISE.match(line)][-_SHOWN_LINES:]
        msg = "\n  ".join([f"{Path(command[0]).name} ended with status {child.returncode}:", *telling])
        msg += f"\nThe whole log: {log}\nOnce the cause is mended, the same command continues from this step."
        raise CommandError(msg)


def check_installed(names: Iterable[str]) -> None:
    """Look for commands of this Python.

    Raises:
        ConfigurationError: One is not installed.
    """
    if missing := sorted(name for name in set(names) if not _program(name)):
        msg = f"{', '.join(missing)} not found for {sys.executable}. Install nnunetv2 for this Python."
        raise ConfigurationError(msg)


def _program(name: str) -> list[str]:
    """Return how a command of this Python is run; nothing where it is not installed.

    It is a script beside Python, or its entry point: ``pip install --user`` and ``--target`` put scripts elsewhere.
    """
    script = Path(sys.executable).parent / name
    if script.is_file():
        return [str(script)]
    if entry_points(group="console_scripts", name=name):
        return [sys.executable, "-c", _CALL_ENTRY_POINT, name]
    return []


class BarWatch:
    """Follows tqdm's bars."""

    def __init__(self, report: Report):
        self.report = report

    def __call__(self, line: str) -> None:
        """Report the progress that a line shows, if any."""
        if match := re.match(r"(.+?):\s+(\d+)%\|", line):
            self.report(int(match[2]) / 100, match[1].lower())


class TrainingWatch:
    """Follows the epochs of ``nnUNetv2_train``, whose number it reads from the trainer's ``debug.json``."""

    def __init__(self, report: Report, debug_file: Path):
        self.report, self.debug_file = report, debug_file
        self.epoch, self.num_epochs = 0, 0
        self.loss, self.dice = "", ""

    def __call__(self, line: str) -> None:
        """Report the progress that a line shows, if any."""
        if match := re.search(r": Epoch (\d+)\s*$", line):
            self.epoch = int(match[1])
            self.num_epochs = int(json.loads(self.debug_file.read_text())["num_epochs"])
        elif match := re.search(r": train_loss (\S+)", line):
            self.loss = f", loss {float(match[1]):.2f}"
        elif match := re.search(r": Pseudo dice \[(.*)\]", line):
            values = [float(value) for value in re.findall(r"(nan|-?[\d.]+(?:e-?\d+)?)(?=[),]|$)", match[1])]
            self.dice = f", pseudo Dice {np.nanmean(values):.2f}" if np.isfinite(values).any() else ""
        elif match := re.search(r": predicting (\S+(?: \(\d+ of \d+\))?)", line):
            self.report(1.0, f"validating {match[1]}")
            return
        elif match := re.search(rf": {VALIDATION}: (.*?)\s*$", line):
            self.report(1.0, f"validating: {match[1]}")
            return
        else:
            return
        self.report(self.epoch / self.num_epochs, f"epoch {self.epoch + 1}/{self.num_epochs}{self.loss}{self.dice}")


class PredictionWatch:
    """Follows the cases of ``nnUNetv2_predict``."""

    def __init__(self, report: Report, num_cases: int):
        self.report, self.num_cases = report, num_cases
        self.done = 0

    def __call__(self, line: str) -> None:
        """Report the progress that a line shows, if any."""
        if match := re.match(r"Predicting (\S+):$", line):
            self.report(self.done / self.num_cases, match[1])
        elif line.startswith("done with "):
            self.done += 1
            self.report(self.done / self.num_cases, "")
