"""The ``meddino predict`` command: the flags and files of ``nnUNetv2_predict``, slice by slice."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path

from nnunetv2_meddino.cli.nnunet import run_nnunet
from nnunetv2_meddino.command_line import add_command
from nnunetv2_meddino.console import progress, say
from nnunetv2_meddino.environment import run_environment
from nnunetv2_meddino.errors import ConfigurationError

SOME_FAILED = 1
STOCK = "--stock"

_EPILOG = """exit code: 0 every case was predicted, 1 some could not be (they are named, the others are written).
--stock, given with the arguments of nnUNetv2_predict, runs nnU-Net's own prediction, with the environment set: for 3D
models and cascades."""


def add_predict(commands: argparse._SubParsersAction) -> None:
    """Add ``predict`` to the sub-commands."""
    description = "predict with a 2D model, slice by slice; takes the arguments of nnUNetv2_predict"
    command = add_command(commands, "predict", _predict, description, epilog=_EPILOG)
    command.add_argument(
        "-i", dest="source", type=Path, required=True, metavar="IMAGES", help="folder of images, or of DICOM series"
    )
    command.add_argument("-o", dest="out", type=Path, required=True, metavar="OUT", help="folder of predictions")
    model = command.add_mutually_exclusive_group(required=True)
    model.add_argument("-d", dest="dataset", metavar="DATASET", help="name or number of the dataset trained on")
    model.add_argument("-m", dest="model", type=Path, metavar="MODEL", help="folder of a trained or exported model")
    command.add_argument("-c", dest="configuration", metavar="C", help="configuration, with -d")
    command.add_argument("-p", dest="plans", default="nnUNetPlans", metavar="P", help="plans (default: %(default)s)")
    command.add_argument(
        "-tr", dest="trainer", default="nnUNetTrainer", metavar="TR", help="trainer (default: %(default)s)"
    )
    command.add_argument("-f", dest="folds", nargs="+", metavar="F", help="folds (default: all trained ones)")
    command.add_argument(
        "-chk", dest="checkpoint", default="checkpoint_final.pth", metavar="FILE", help="default: %(default)s"
    )
    command.add_argument(
        "-device", default="cuda", choices=("cuda", "cpu", "mps"), help="what predicts (default: %(default)s)"
    )
    command.add_argument(
        "-step_size",
        type=float,
        default=0.5,
        metavar="FRACTION",
        help="distance of tiles, in patches at most (default: %(default)s)",
    )
    command.add_argument("--disable_tta", action="store_true", help="no average over mirrored views")
    command.add_argument("--save_probabilities", action="store_true", help="write .npz and .pkl for ensembling, too")
    command.add_argument(
        "--dicom-seg",
        choices=("labelmap", "binary"),
        help="write a DICOM segmentation beside the label map of a DICOM series",
    )
    command.add_argument(
        "--viewers",
        action="store_true",
        help="write names and colours: a .seg.nrrd beside each label map, and colour tables (meddino viewers)",
    )
    command.add_argument("--continue_prediction", "--c", action="store_true", help="leave finished cases as they are")
    command.add_argument(
        "-num_parts", type=int, default=1, metavar="N", help="how many commands share the cases (default: 1)"
    )
    command.add_argument(
        "-part_id", type=int, default=0, metavar="I", help="which of them this one is, from 0 (default: 0)"
    )
    command.add_argument("--not_on_device", action="store_true", help="resample logits on the CPU")
    command.add_argument("--disable_progress_bar", action="store_true", help="no bar on a terminal either")
    command.add_argument(
        "-npp", "-nps", dest="ignored", type=int, metavar="N", help="not needed: one image is read ahead, one written"
    )
    command.add_argument("--verbose", action="store_true", help="not needed: errors say what happened")
    command.add_argument("-prev_stage_predictions", metavar="FOLDER", help="of a cascade: with --stock only")
    command.add_argument(STOCK, action="store_true", help="nnU-Net's own prediction; see below")
    command.set_defaults(interrupted="Finished predictions stay; add --continue_prediction to predict the others.")


def predict_stock(arguments: list[str], options: argparse.Namespace | None) -> int:
    """Call ``nnUNetv2_predict``, or with ``-m`` ``nnUNetv2_predict_from_modelfolder``, with all but ``--stock``.

    Args:
        arguments: Those after ``predict``.
        options: The same, read; None where help is asked for.
    """
    os.environ.update(run_environment())  # read when torch is loaded
    if options is not None:
        options.words = ("meddino", "predict", *arguments)
        options.folds = options.folds or list("01234")  # nnU-Net's default
        _checked_model_folder(options)
    arguments = [argument for argument in arguments if argument != STOCK]
    return run_nnunet("predict_from_modelfolder" if "-m" in arguments else "predict", arguments)


def _predict(options: argparse.Namespace) -> int:
    os.environ.update(run_environment())  # read when torch is loaded
    if options.prev_stage_predictions is not None:
        raise ConfigurationError("-prev_stage_predictions is for cascades, which only --stock can predict.")
    folder = _checked_model_folder(options)
    from nnunetv2_meddino.inference.folders import predict_folder
    from nnunetv2_meddino.inference.model import read_model
    from nnunetv2_meddino.inference.predictor import Predictor

    model = read_model(folder, options.folds, options.checkpoint)
    predictor = Predictor(
        model,
        options.device,
        mirroring=not options.disable_tta,
        step_size=options.step_size,
        on_device=not options.not_on_device,
    )
    # nnU-Net's readers print what they wonder about
    with progress(shown=not options.disable_progress_bar) as show, contextlib.redirect_stdout(sys.stderr):
        failed = predict_folder(
            predictor,
            options.source,
            options.out,
            save_probabilities=options.save_probabilities,
            dicom_seg=options.dicom_seg,
            viewers=options.viewers,
            overwrite=not options.continue_prediction,
            num_parts=options.num_parts,
            part_id=options.part_id,
            on_progress=lambda name, done, total, speed: show("predicting", done, total, f"{name}, {speed}"),
        )
    for case in failed:
        say(f"FAILED {case.name}: {case.message}", stderr=True)
    say(str(options.out))
    return SOME_FAILED if failed else 0


def _checked_model_folder(options: argparse.Namespace) -> Path:
    """Return the folder of the model, once it, its folds and the device are there."""
    from nnunetv2_meddino.comparison.folders import Method
    from nnunetv2_meddino.prerequisites import Command, Wanted, check_device, check_folds, check_model

    command, wanted, folder = Command(options.words), None, options.model
    if folder is None:
        if options.configuration is None:
            raise ConfigurationError("-d needs -c, the configuration, such as 2d or 2d_896.")
        wanted = Wanted(options.dataset, Method(options.trainer, options.plans, options.configuration), command)
        folder = check_model(wanted)
    check_folds(wanted, command, folder, options.folds, options.checkpoint)
    check_device(command, options.device)
    return Path(folder)
