"""The ``meddino demo`` command."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunetv2_meddino.command_line import add_command


def add_demo(commands: argparse._SubParsersAction) -> None:
    """Add ``demo`` to the sub-commands."""
    description = "run the whole pipeline on synthetic CT, on a CPU, in a few minutes"
    command = add_command(commands, "demo", _demo, description)
    command.add_argument(
        "-o",
        "--out",
        "--work-dir",
        type=Path,
        default=Path("meddino_demo"),
        metavar="DIR",
        help="folder for everything the demo writes (default: %(default)s)",
    )
    command.add_argument(
        "--data", type=Path, metavar="DIR", help="nnU-Net raw dataset (DatasetXXX_Name) to use instead of synthetic CT"
    )


def _demo(options: argparse.Namespace) -> int:
    from nnunetv2_meddino.demo.run import run_demo

    run_demo(options.out, data=options.data)
    return 0
