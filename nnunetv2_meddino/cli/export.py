"""The ``meddino export`` command."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunetv2_meddino.command_line import add_command, add_out
from nnunetv2_meddino.console import say


def add_export(commands: argparse._SubParsersAction) -> None:
    """Add ``export`` to the sub-commands."""
    description = "copy a trained model so that stock nnU-Net predicts with it, without our environment variable"
    command = add_command(commands, "export", _export, description)
    command.add_argument("model_folder", type=Path, help="nnUNet_results/DatasetXXX_Name/Trainer__Plans__configuration")
    command.add_argument("--stock", action="store_true", required=True, help="for stock nnUNetv2_predict")
    add_out(command, "DIR", "folder to write (default: beside the model)")


def _export(options: argparse.Namespace) -> int:
    from nnunetv2_meddino.export import export_stock, predict_command

    out = export_stock(options.model_folder, options.out)
    say(f"{out}\npredict with: {predict_command(out)}")
    return 0
