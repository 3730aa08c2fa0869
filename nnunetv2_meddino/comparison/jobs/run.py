"""Runs what is missing, one stock command after the other, each into its own log; a second run continues."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from nnunetv2_meddino.commands import BarWatch, Report, TrainingWatch, Watch, executable, run_command
from nnunetv2_meddino.comparison.jobs.steps import Step
from nnunetv2_meddino.console import Show, progress, say
from nnunetv2_meddino.environment import NNUNET_N_PROC_DA, NNUNET_WANDB, run_environment
from nnunetv2_meddino.errors import BusyError, CommandError, ConfigurationError
from nnunetv2_meddino.locks import locked


@dataclass(frozen=True)
class Failed:
    """A step that did not succeed, and why: its own message, or the step that it would have needed."""

    step: Step
    message: str


def run_steps(steps: Sequence[Step], out: Path) -> list[Failed]:
    """Run steps in their order; after one has failed, go on with those that do not need it.

    Args:
        steps: From ``plan_steps``.
        out: The report's folder; logs go to ``out/logs/<step>.log``.

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
            say(f"{label}: {failed[step.name].message}")
            continue
        start = time.monotonic()
        try:
            with progress() as show:
                show(label, 0, None)
                _run(step, logs, partial(_report, show, label))
        except (CommandError, BusyError) as error:
            failed[step.name] = Failed(step, str(error))
            say(f"{label}: FAILED\n  {error}")
        else:
            say(f"{label}: done in {time.monotonic() - start:.0f} s")
    return list(failed.values())


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


def _report(show: Show, label: str, fraction: float | None, detail: str) -> None:
    show(label, fraction or 0, None if fraction is None else 1, detail)
