"""Runs what is missing, one stock command after the other, each into its own log; a second run continues."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from nnunetv2_meddino.commands import BarWatch, Report, TrainingWatch, Watch, run_command
from nnunetv2_meddino.comparison.jobs.steps import Step
from nnunetv2_meddino.environment import NNUNET_N_PROC_DA, NNUNET_WANDB, run_environment
from nnunetv2_meddino.errors import BusyError, CommandError, ConfigurationError
from nnunetv2_meddino.locks import locked


@dataclass(frozen=True)
class Failed:
    """A step that did not succeed, and why: its own message, or the step that it would have needed."""

    step: Step
    message: str


def run_steps(steps: Sequence[Step], out: Path, console: Console) -> list[Failed]:
    """Run steps in their order; after one has failed, go on with those that do not need it.

    Args:
        steps: From ``plan_steps``.
        out: The report's folder; logs go to ``out/logs/<step>.log``.
        console: Shows one line for each step, and its progress on a terminal.

    Returns:
        The steps that failed or could not start.

    Raises:
        ConfigurationError: A command is not installed beside this Python.
    """
    programs = {step.command[0] for step in steps}
    if missing := sorted(name for name in programs if not executable(name).is_file()):
        msg = f"{', '.join(missing)} not found beside {sys.executable}. Install nnunetv2 for this Python."
        raise ConfigurationError(msg)
    logs = out / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    failed: dict[str, Failed] = {}
    for index, step in enumerate(steps, start=1):
        label = f"[{index}/{len(steps)}] {step.title}"
        if broken := [name for name in step.needs if name in failed]:
            failed[step.name] = Failed(step, f"not started: {failed[broken[0]].step.title} failed")
            _say(console, f"{label}: {failed[step.name].message}")
            continue
        start = time.monotonic()
        try:
            _with_progress(label, console, lambda report, step=step: _run(step, logs, report))  # type: ignore[misc]
        except (CommandError, BusyError) as error:
            failed[step.name] = Failed(step, str(error))
            _say(console, f"{label}: FAILED\n  {error}")
        else:
            _say(console, f"{label}: done in {time.monotonic() - start:.0f} s")
    return list(failed.values())


def executable(name: str) -> Path:
    """Return where a command of this Python's installation lies."""
    return Path(sys.executable).with_name(name)


def _run(step: Step, logs: Path, report: Report) -> None:
    environment = os.environ | run_environment() | {"PYTHONUNBUFFERED": "1"}
    if step.training is None:
        environment.pop(NNUNET_N_PROC_DA.name, None)  # the planner gives it to torch, which refuses 0
        watch: Watch = BarWatch(report)
    else:
        watch = TrainingWatch(report, step.training.folder / "debug.json")
        if "--val" in step.command:  # nnU-Net would delete the training's curves, the only copy where W&B is offline
            environment[NNUNET_WANDB.name] = "0"
    command = [str(executable(step.command[0])), *step.command[1:]]
    with nullcontext() if step.training is None else locked(step.training.folder):  # other reports may want it too
        run_command(command, environment, logs / f"{step.name}.log", watch)


def _with_progress(label: str, console: Console, work: Callable[[Report], None]) -> None:
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.fields[detail]}"))
    hidden = not console.is_terminal
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True, disable=hidden) as progress:
        task = progress.add_task(label, total=None, detail="")

        def report(fraction: float | None, detail: str) -> None:
            progress.update(task, total=1 if fraction is not None else None, completed=fraction, detail=detail)

        work(report)


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
