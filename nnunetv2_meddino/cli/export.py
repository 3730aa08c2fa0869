"""The ``meddino export`` command."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunetv2_meddino.command_line import add_command, add_out
from nnunetv2_meddino.console import progress, say
from nnunetv2_meddino.errors import ConfigurationError


def add_export(commands: argparse._SubParsersAction) -> None:
    """Add ``export`` to the sub-commands."""
    description = "copy a trained model for use elsewhere: by stock nnU-Net without our variable, or without torch"
    command = add_command(commands, "export", _export, description)
    command.add_argument("model_folder", type=Path, help="nnUNet_results/DatasetXXX_Name/Trainer__Plans__configuration")
    what = command.add_mutually_exclusive_group(required=True)
    what.add_argument("--stock", action="store_true", help="for stock nnUNetv2_predict")
    what.add_argument("--onnx", action="store_true", help="as ONNX files of the networks, each compared with torch")
    command.add_argument("-f", dest="folds", nargs="+", metavar="F", help="folds of --onnx (default: all trained ones)")
    command.add_argument("--half", action="store_true", help="weights and arithmetic of --onnx in float16")
    add_out(command, "DIR", "folder to write (default: beside the model)")


def _export(options: argparse.Namespace) -> int:
    if options.onnx:
        return _export_onnx(options)
    if options.folds or options.half:
        raise ConfigurationError("-f and --half are for --onnx; --stock copies all finished folds as they are.")
    from nnunetv2_meddino.export import export_stock, predict_command

    out = export_stock(options.model_folder, options.out)
    say(f"{out}\npredict with: {predict_command(out)}")
    return 0


def _export_onnx(options: argparse.Namespace) -> int:
    from nnunetv2_meddino.onnx_export.model import export_onnx

    with progress() as show:
        out = export_onnx(
            options.model_folder,
            options.out,
            options.folds,
            half=options.half,
            on_fold=lambda done, total: show("exporting", done, total, f"fold {done + 1} of {total}"),
        )
    say(str(out))
    return 0
