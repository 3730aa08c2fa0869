"""The ``meddino env`` command."""

from __future__ import annotations

import argparse
import shlex

from nnunetv2_meddino.command_line import add_command
from nnunetv2_meddino.console import say
from nnunetv2_meddino.environment import run_environment


def add_env(commands: argparse._SubParsersAction) -> None:
    """Add ``env`` to the sub-commands."""
    description = 'print shell lines that let stock nnU-Net commands find our trainers: eval "$(meddino env)"'
    command = add_command(commands, "env", _env, description)
    command.add_argument(
        "--check", action="store_true", help="verify versions, folders, trainer lookup, weights and device instead"
    )


def _env(options: argparse.Namespace) -> int:
    if not options.check:
        for name, value in run_environment().items():
            say(f"export {name}={shlex.quote(value)}")
        return 0
    from rich.console import Console

    from nnunetv2_meddino.checks import Status, run_checks

    console = Console()
    colours = {Status.OK: "green", Status.NOTE: "yellow", Status.FAILED: "red"}
    failed = False
    for check in run_checks():
        failed |= check.status is Status.FAILED
        console.print(f"{check.status.value:6}", style=colours[check.status], end=" ")
        console.print(f"{check.name:20} {check.detail}", markup=False, emoji=False, highlight=False, soft_wrap=True)
    return 1 if failed else 0
