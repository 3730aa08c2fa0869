"""The ``meddino fetch`` command."""

from __future__ import annotations

import argparse

from nnunetv2_meddino.command_line import add_command
from nnunetv2_meddino.console import say


def add_fetch(commands: argparse._SubParsersAction) -> None:
    """Add ``fetch`` to the sub-commands."""
    description = (
        "fetch what meddino push has sent: a trained model into nnUNet_results, a backbone into the hub's cache"
    )
    command = add_command(commands, "fetch", _fetch, description)
    command.set_defaults(interrupted="What has arrived is kept: run the same command again to go on.")
    command.add_argument("repository", metavar="ORG/NAME", help="a Hugging Face repository")


def _fetch(options: argparse.Namespace) -> int:
    from nnunetv2_meddino.sharing.fetch import fetch
    from nnunetv2_meddino.weights.hub import repository_name, show_progress_on_terminals_only

    show_progress_on_terminals_only()
    fetched = fetch(repository_name(options.repository))
    say(f"{fetched.path}\nuse with: {fetched.use}")
    return 0
