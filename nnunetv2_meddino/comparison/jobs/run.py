"""Runs what is missing, one stock command after the other, each into its own log; a second run continues."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import MappingProxyType

from nnunetv2_meddino.commands import BarWatch, Report, TrainingWatch, Watch, check_installed, run_command
from nnunetv2_meddino.comparison.jobs.steps import Step, continuation
from nnunetv2_meddino.console import say
from nnunetv2_meddino.environment import NNUNET_N_PROC_DA, NNUNET_WANDB, run_environment
from nnunetv2_meddino.locks import locked
from nnunetv2_meddino.steps import Outcome, run_steps


def run_missing(steps: Sequence[Step], out: Path) -> list[Outcome[Step]]:
    """Run steps in their order; after one has failed, go on with those that do not need it.

    Args:
        steps: From ``plan_steps``.
        out: The report's folder; logs go to ``out/logs/<step>.log``.

    Returns:
        How those ended that failed or could not start.

    Raises:
        ConfigurationError: A command is not installed beside this Python.
    """
    check_installed(step.command[0] for step in steps)
    logs = out / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    failed = []
    for outcome in run_steps(steps, partial(_run, logs=logs)):
        say(f"{outcome.label}: {outcome.message}")
        if not outcome.succeeded:
            failed.append(outcome)
    return failed


def _run(step: Step, report: Report, *, logs: Path) -> None:
    with nullcontext() if step.training is None else locked(step.training.folder):  # other reports may want it too
        run_step(step, report, logs=logs)


def run_step(step: Step, report: Report, *, logs: Path, variables: Mapping[str, str] = MappingProxyType({})) -> None:
    """Run one step; a training's folder is locked by the caller, and taken up where it stands by then.

    Args:
        step: From ``plan_steps``.
        report: Told how far it is.
        logs: Folder of the log.
        variables: Of the environment, beside those of this process.

    Raises:
        CommandError: It failed.
    """
    environment, command = {**os.environ, **run_environment(), **variables}, step.command
    if step.training is None:
        environment.pop(NNUNET_N_PROC_DA.name, None)  # the planner gives it to torch, which refuses 0
        watch: Watch = BarWatch(report)
    else:
        if (missing := continuation(step.training.folder)) is None:
            return  # finished by another command since this one was planned
        command += missing
        watch = TrainingWatch(report, step.training.folder / "debug.json")
        if "--val" in missing:  # nnU-Net would delete the training's curves, the only copy where W&B is offline
            environment[NNUNET_WANDB.name] = "0"
    run_command(command, environment, logs / f"{step.name}.log", watch)
