"""nnU-Net's own commands with the environment set: ``meddino train``, and ``meddino predict --stock``."""

from __future__ import annotations

import argparse
import os
import sys

from nnunetv2_meddino.console import say
from nnunetv2_meddino.environment import NNUNET_WANDB, run_environment

HELP = {"-h", "--help"}
"""Options that nnU-Net's commands answer themselves."""


def add_train(commands: argparse._SubParsersAction) -> None:
    """Add ``train`` to the sub-commands: what is checked before nnU-Net reads the same arguments itself."""
    description = "nnUNetv2_train with the environment set; takes the same arguments"
    command = commands.add_parser("train", help=description, add_help=False)
    for name in ("dataset", "configuration", "fold"):
        command.add_argument(name)
    command.add_argument("-tr", dest="trainer", default="nnUNetTrainer")
    command.add_argument("-p", dest="plans", default="nnUNetPlans")
    command.add_argument("-pretrained_weights")
    command.add_argument("-num_gpus", type=int, default=1)
    command.add_argument("-device", choices=("cuda", "cpu", "mps"), default="cuda")
    for flag in ("--npz", "--c", "--val", "--val_best", "--disable_checkpointing"):
        command.add_argument(flag, action="store_true")


def train(arguments: list[str], options: argparse.Namespace | None) -> int:
    """Call ``nnUNetv2_train``, once what it needs is there.

    Args:
        arguments: Those after ``train``.
        options: The same, read; None where help is asked for.
    """
    os.environ.update(run_environment())  # read when torch is loaded
    if options is not None:
        from nnunetv2_meddino.comparison.folders import Method
        from nnunetv2_meddino.prerequisites import Command, Wanted, check_training

        method = Method(options.trainer, options.plans, options.configuration)
        wanted = Wanted(options.dataset, method, Command(("meddino", "train", *arguments)))
        check_training(wanted, options.fold, options.device, gpus=options.num_gpus, only_validates=options.val)
    if "--val" in arguments and NNUNET_WANDB.get() in ("1", "True", "true"):
        os.environ[NNUNET_WANDB.name] = "0"
        note = "note: Weights & Biases is off for --val: nnU-Net would delete the training's curves in fold_X/wandb."
        say(note, stderr=True)
    return run_nnunet("train", arguments)


def run_nnunet(name: str, arguments: list[str]) -> int:
    """Call nnU-Net's own entry point. The environment is read when torch is loaded, so it is set first."""
    os.environ.update(run_environment())
    sys.argv = [f"nnUNetv2_{name}", *arguments]
    if name == "train":
        from nnunetv2.run.run_training import run_training_entry as entry
    elif name == "predict":
        from nnunetv2.inference.predict_from_raw_data import predict_entry_point as entry
    else:
        from nnunetv2.inference.predict_from_raw_data import predict_entry_point_modelfolder as entry
    entry()
    return 0
