"""The ``meddino push`` command."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from nnunetv2_meddino.command_line import add_command
from nnunetv2_meddino.console import say

_EPILOG = """What is sent: safetensors, the JSON files that prediction needs, and a card. What is not: optimizer states,
predictions, paths and names of files, and the ids of cases; --seen-cases sends those of the pretraining."""


def add_push(commands: argparse._SubParsersAction) -> None:
    """Add ``push`` to the sub-commands."""
    description = "send a trained model or a backbone to a Hugging Face repository, with a model card"
    command = add_command(commands, "push", _push, description, epilog=_EPILOG)
    command.add_argument(
        "source",
        metavar="MODEL_OR_WEIGHTS",
        type=Path,
        help="nnUNet_results/DatasetXXX_Name/Trainer__Plans__configuration, or a backbone (.safetensors)",
    )
    command.add_argument("repository", metavar="ORG/NAME", help="where to; made, private, if it is not there")
    command.add_argument(
        "--licence",
        metavar="NAME",
        help="of what is sent, such as cc-by-4.0 (default: that of the weights it began with)",
    )
    command.add_argument("--public", action="store_true", help="let everybody read the repository")
    command.add_argument(
        "--seen-cases",
        action="store_true",
        help="send the ids of the cases of the pretraining, too (default: how many)",
    )
    command.add_argument("--dry-run", action="store_true", help="print what would be sent, and send nothing")


def _push(options: argparse.Namespace) -> int:
    from nnunetv2_meddino.sharing.push import pack, push
    from nnunetv2_meddino.weights.hub import repository_name, show_progress_on_terminals_only

    show_progress_on_terminals_only()
    repository = repository_name(options.repository)
    with tempfile.TemporaryDirectory(prefix="meddino_push_") as folder:
        shipment = pack(
            options.source, repository, Path(folder), licence=options.licence, with_cases=options.seen_cases
        )
        visibility = "public" if options.public else "private"
        say(f"{repository} ({visibility})")
        for name, size in shipment.files.items():
            say(f"{size:>15,} bytes  {name}")
        if options.dry_run:
            say(f"\n{shipment.card}\nNothing was sent.")
        else:
            say(f"{push(shipment, public=options.public)}\nfetch with: meddino fetch {repository}")
    return 0
