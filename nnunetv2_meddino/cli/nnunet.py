"""nnU-Net's own commands with the environment set: ``meddino train``, and ``meddino predict --stock``."""

from __future__ import annotations

import argparse
import os
import sys

from nnunetv2_meddino.console import say
from nnunetv2_meddino.environment import NNUNET_WANDB, run_environment


def add_train(commands: argparse._SubParsersAction) -> None:
    """Add ``train`` to the sub-commands, for the list of them."""
    description = "nnUNetv2_train with the environment set; takes the same arguments"
    commands.add_parser("train", help=description, add_help=False)


def run_nnunet(name: str, arguments: list[str]) -> int:
    """Call nnU-Net's own entry point. The environment is read when torch is loaded, so it is set first."""
    os.environ.update(run_environment())
    if name == "train" and "--val" in arguments and NNUNET_WANDB.get() in ("1", "True", "true"):
        os.environ[NNUNET_WANDB.name] = "0"
        note = "note: Weights & Biases is off for --val: nnU-Net would delete the training's curves in fold_X/wandb."
        say(note, stderr=True)
    sys.argv = [f"nnUNetv2_{name}", *arguments]
    if name == "train":
        from nnunetv2.run.run_training import run_training_entry as entry
    elif name == "predict":
        from nnunetv2.inference.predict_from_raw_data import predict_entry_point as entry
    else:
        from nnunetv2.inference.predict_from_raw_data import predict_entry_point_modelfolder as entry
    entry()
    return 0
