"""The ``meddino benchmark`` command: what prediction and training take on this machine, beside nnU-Net's own."""

from __future__ import annotations

import argparse
import io
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

from nnunetv2_meddino.command_line import add_command, positive
from nnunetv2_meddino.console import print_table, progress
from nnunetv2_meddino.environment import (
    NNUNET_PREPROCESSED,
    NNUNET_RESULTS,
    changed_environment,
    nnunet_folders,
    run_environment,
)
from nnunetv2_meddino.errors import CommandError, ConfigurationError

if TYPE_CHECKING:
    from rich.table import Table

    from nnunetv2_meddino.inference.benchmark import Steps, Usage
    from nnunetv2_meddino.trainers.benchmark import Throughput

_EPILOG = """Both predict the same synthetic image, each in new processes; nnU-Net has one worker for reading and one
for writing. Seconds are those of the clock and, under CPU, of all cores together. Memory is what all processes of
a command hold at a time, without the memory of a GPU."""

_TRAIN_EPILOG = """waiting: share of the time in which the network has no batch. needed: processes, on as many free
cores, with which it would always have one (nnUNet_n_proc_DA sets how many there are). Nothing in nnUNet_results is
touched."""


def add_benchmark(commands: argparse._SubParsersAction) -> None:
    """Add ``benchmark`` and its actions to the sub-commands."""
    benchmark = commands.add_parser("benchmark", help="measure time and memory on this machine")
    actions = benchmark.add_subparsers(required=True, metavar="ACTION")
    description = "time of each step, slices per second and memory of prediction, beside nnU-Net's own"
    predict = add_command(actions, "predict", _predict, description, epilog=_EPILOG)
    predict.add_argument("model", type=Path, metavar="MODEL", help="folder of a trained or exported 2D model")
    predict.add_argument("--slices", type=positive, default=48, metavar="N", help="of the image (default: %(default)s)")
    predict.add_argument(
        "--size", type=positive, default=512, metavar="PX", help="rows and columns of a slice (default: %(default)s)"
    )
    predict.add_argument("-f", dest="folds", nargs="+", metavar="F", help="folds (default: all trained ones)")
    predict.add_argument("-chk", dest="checkpoint", default="checkpoint_final.pth", help="default: %(default)s")
    predict.add_argument(
        "-device", default="cuda", choices=("cuda", "cpu", "mps"), help="what predicts (default: %(default)s)"
    )
    predict.add_argument("--disable_tta", action="store_true", help="no average over mirrored views")

    description = "whether training data keeps up with the network: each loader, a step, and both together"
    train = add_command(actions, "train", _train, description, epilog=_TRAIN_EPILOG)
    train.add_argument("-d", dest="dataset", required=True, metavar="DATASET", help="a preprocessed dataset")
    train.add_argument("-c", dest="configuration", required=True, metavar="C", help="configuration, such as 2d_896")
    train.add_argument("-p", dest="plans", default="nnUNetPlans", metavar="P", help="plans (default: %(default)s)")
    train.add_argument(
        "-tr", dest="trainer", default="MedDINOv3Trainer", metavar="TR", help="trainer (default: %(default)s)"
    )
    train.add_argument("--steps", type=positive, default=20, metavar="N", help="of each part (default: %(default)s)")
    train.add_argument(
        "-device", default="cuda", choices=("cuda", "cpu", "mps"), help="what trains (default: %(default)s)"
    )


def _train(options: argparse.Namespace) -> int:
    os.environ.update(run_environment())  # read when torch is loaded
    nnunet_folders(NNUNET_PREPROCESSED)
    with _scratch_folder() as folder, changed_environment({NNUNET_RESULTS.name: str(folder)}), progress() as show:
        import torch
        from nnunetv2.run.run_training import get_trainer_from_args

        from nnunetv2_meddino.trainers.base import BaseTrainer
        from nnunetv2_meddino.trainers.benchmark import measure

        def make() -> BaseTrainer:
            given = options.dataset, options.configuration, "all", options.trainer, options.plans
            try:
                with redirect_stdout(io.StringIO()):
                    trainer = get_trainer_from_args(*given, device=torch.device(options.device))
            except RuntimeError as error:  # no such trainer or dataset
                raise ConfigurationError(str(error)) from error
            if not isinstance(trainer, BaseTrainer):
                msg = f"{options.trainer} has no choice of loaders. Give -tr a trainer of this package."
                raise ConfigurationError(msg)
            trainer.print_to_log_file = lambda *words, **settings: None
            return trainer

        found = measure(make, options.steps, lambda step: show("benchmark", 0, None, step))
    print_table(_throughput_table(found))
    return 0


def _throughput_table(found: Sequence[Throughput]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    result = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    result.add_column("loader", no_wrap=True)
    heads = ("samples/s a core", "network alone/s", "both/s", "waiting", "processes", "needed")
    for head in heads:
        result.add_column(head, justify="right", no_wrap=True)
    for row in found:
        per_s = (f"{1 / seconds:.1f}" for seconds in (row.loader_s, row.step_s, row.both_s))
        result.add_row(row.loader, *per_s, f"{row.wait_share:.0%}", str(row.processes), str(row.processes_needed))
    return result


def _predict(options: argparse.Namespace) -> int:
    os.environ.update(run_environment())  # read when torch is loaded
    from nnunetv2_meddino.inference.benchmark import Settings, predict_ours, predict_stock, write_image
    from nnunetv2_meddino.inference.model import chosen_folds, read_model
    from nnunetv2_meddino.inference.predictor import Predictor

    model = read_model(options.model, options.folds, options.checkpoint)
    Predictor(model, options.device)  # refuses one that is not there
    folds = tuple(str(fold) for fold in chosen_folds(options.model, options.folds, options.checkpoint))
    settings = Settings(str(options.model), folds, options.checkpoint, options.device, not options.disable_tta)
    stock = None
    with _scratch_folder() as folder:
        with progress() as show:
            show("benchmark", 0, None, "writing an image")
            write_image(model, folder / "images", options.slices, options.size)
            show("benchmark", 0, None, "meddino predict")
            ours, steps = predict_ours(settings, folder / "images", folder)
        try:
            with progress() as show:
                show("benchmark", 0, None, "nnUNetv2_predict")
                stock = predict_stock(settings, folder / "images", folder)
        finally:  # it may need more memory than there is
            print_table(_table(options.slices, ours, steps, stock))
    return 0


@contextmanager
def _scratch_folder() -> Iterator[Path]:
    """Yield a new folder that is deleted afterwards, unless a command failed, which names a log in there."""
    folder = Path(tempfile.mkdtemp(prefix="meddino_benchmark_"))
    try:
        yield folder
    except CommandError:
        raise
    except BaseException:
        shutil.rmtree(folder)
        raise
    shutil.rmtree(folder)


def _table(slices: int, ours: Usage, steps: Steps, stock: Usage | None) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    result = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    result.add_column("", no_wrap=True)
    for head in ("meddino predict", "CPU", "nnUNetv2_predict", "CPU"):
        result.add_column(head, justify="right", no_wrap=True)
    start = ours.wall_s - sum(steps.wall_s.values()), ours.cpu_s - sum(steps.cpu_s.values())
    result.add_row("start and end", *map(_seconds, start), "", "")
    for step, wall_s in steps.wall_s.items():
        result.add_row(step, _seconds(wall_s), _seconds(steps.cpu_s[step]), "", "")
    result.add_section()
    both = (ours, stock)
    result.add_row("all", *(_seconds(s) for used in both if used for s in (used.wall_s, used.cpu_s)))
    per_slice = (f"{slices / used.wall_s:.2f}/s" for used in both if used)
    result.add_row("slices", *(cell for speed in per_slice for cell in (speed, "")))
    memory = (f"{used.peak_mib:.0f} MiB" for used in both if used)
    result.add_row("peak memory", *(cell for most in memory for cell in (most, "")))
    return result


def _seconds(value: float) -> str:
    return f"{value:.2f} s"
