"""The ``meddino dataset`` command."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_dataset(commands: argparse._SubParsersAction) -> None:
    """Add ``dataset`` to the sub-commands."""
    description = (
        "convert a benchmark release (amos22, btcv, kits23, lits) to a raw nnU-Net dataset with the paper's fold"
    )
    command = commands.add_parser("dataset", help=description, description=description)
    command.set_defaults(run=_dataset)
    command.add_argument("name", metavar="NAME", help="amos22, btcv, kits23 or lits")
    command.add_argument("source", metavar="SOURCE", type=Path, help="folder into which the release was unpacked")
    command.add_argument("-d", dest="dataset", type=int, required=True, metavar="ID", help="dataset id, 1 to 999")


def _dataset(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from nnunetv2_meddino.datasets.convert import convert_dataset

    messages = Console(stderr=True)
    columns = (TextColumn("checking and linking"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=messages, transient=True, disable=not messages.is_terminal) as progress:
        task = progress.add_task("", total=None)
        result = convert_dataset(
            options.name,
            options.source,
            options.dataset,
            on_case=lambda done, total: progress.update(task, completed=done, total=total),
        )
    tests = f" and {result.test_images} test images" if result.test_images else ""
    lines = [
        str(result.folder),
        f"{result.training_cases + result.validation_cases} labelled cases{tests}; fold 0 trains on "
        f"{result.training_cases} and validates on {result.validation_cases}: {result.splits_file}",
    ]
    if result.corrected_headers:
        count, example = len(result.corrected_headers), result.corrected_headers[0]
        lines.append(f"label maps that got the header of their image: {count} ({example}, ...)")
    lines.append(f"next: meddino plan -d {options.dataset} --overlay {options.name}")
    Console().print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
    return 0
