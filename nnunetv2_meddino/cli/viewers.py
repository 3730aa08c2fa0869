"""The ``meddino viewers`` command."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from nnunetv2_meddino.command_line import add_command, add_out
from nnunetv2_meddino.console import progress, say

SOME_FAILED = 1

_EPILOG = """exit code: 0 all label maps are written, 1 some could not be (they are named, the others are written)."""


def add_viewers(commands: argparse._SubParsersAction) -> None:
    """Add ``viewers`` to the sub-commands."""
    description = "names and colours for label maps: .seg.nrrd for 3D Slicer, colour tables for 3D Slicer and ITK-SNAP"
    command = add_command(commands, "viewers", _viewers, description, epilog=_EPILOG)
    command.add_argument("folder", type=Path, metavar="FOLDER", help="label maps: predictions, or labelsTr")
    command.add_argument(
        "-l",
        dest="labels",
        type=Path,
        metavar="LABELS",
        help="dataset.json (default: the one in FOLDER or in the two folders above)",
    )
    add_out(command, "OUT", "folder to write to (default: FOLDER)")


def _viewers(options: argparse.Namespace) -> int:
    from nnunetv2_meddino.viewers.folders import write_for_viewers

    out = options.out or options.folder
    with progress() as show:
        failures = write_for_viewers(options.folder, options.labels, out, partial(show, "writing"))
    for failure in failures:
        say(f"FAILED {failure.case}: {failure.message}", stderr=True)
    say(str(out))
    return SOME_FAILED if failures else 0
