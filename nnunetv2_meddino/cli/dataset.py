"""The ``meddino dataset`` command."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from nnunetv2_meddino.command_line import add_command
from nnunetv2_meddino.console import progress, say


def add_dataset(commands: argparse._SubParsersAction) -> None:
    """Add ``dataset`` to the sub-commands."""
    description = "convert a benchmark release to a raw nnU-Net dataset with an 80/20 split as in the paper"
    command = add_command(commands, "dataset", _dataset, description)
    command.add_argument("name", metavar="NAME", help="amos22, btcv, kits23 or lits")
    command.add_argument("source", metavar="SOURCE", type=Path, help="folder into which the release was unpacked")
    command.add_argument("-d", dest="dataset", type=int, required=True, metavar="ID", help="dataset id, 1 to 999")


def _dataset(options: argparse.Namespace) -> int:
    from nnunetv2_meddino.datasets.convert import convert_dataset

    with progress() as show:
        on_case = partial(show, "checking and linking")
        on_case(0, None)
        result = convert_dataset(options.name, options.source, options.dataset, on_case=on_case)
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
    say("\n".join(lines))
    return 0
