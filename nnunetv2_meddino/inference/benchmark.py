"""How long prediction takes and how much memory it needs: ours and nnU-Net's own, each in processes of its own."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813 (the name everyone gives it)
from numpy.typing import NDArray

from nnunetv2_meddino.commands import run_command
from nnunetv2_meddino.environment import run_environment
from nnunetv2_meddino.errors import ConfigurationError, DataError
from nnunetv2_meddino.files import write_json
from nnunetv2_meddino.inference.folders import predict_folder
from nnunetv2_meddino.inference.model import FINAL_CHECKPOINT, Model
from nnunetv2_meddino.inference.predictor import Predictor
from nnunetv2_meddino.process_tree import PeakMemory

STEPS = ("read", "preprocess", "network", "resample", "write")
ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha")
"""Formats that the image can be written in."""


@dataclass(frozen=True)
class Settings:
    """What is predicted with."""

    model: str
    """Folder of a trained or exported model."""
    folds: tuple[str, ...]
    checkpoint: str = FINAL_CHECKPOINT
    device: str = "cuda"
    mirroring: bool = True


@dataclass(frozen=True)
class Usage:
    """What a command has used, with all processes that it started."""

    wall_s: float
    cpu_s: float
    """Inside and outside the kernel: new memory is zeroed inside."""
    peak_mib: float
    """Memory held at a time; see ``PeakMemory``."""


@dataclass(frozen=True)
class Steps:
    """Seconds of each of ``STEPS``."""

    wall_s: dict[str, float]
    cpu_s: dict[str, float]


def predict_ours(settings: Settings, images: Path, folder: Path) -> tuple[Usage, Steps]:
    """Predict a folder of images as ``meddino predict`` does, with its steps timed.

    Args:
        settings: Of the prediction.
        images: To predict.
        folder: For predictions and log, made if need be.

    Raises:
        CommandError: It failed.
    """
    times = folder / "times.json"
    code = f"from {__name__} import predict_timed; import sys; predict_timed(*sys.argv[1:])"
    command = [sys.executable, "-c", code, json.dumps(asdict(settings)), str(images), str(folder / "ours"), str(times)]
    usage = run_measured(command, folder)
    return usage, Steps(**json.loads(times.read_text()))


def predict_stock(settings: Settings, images: Path, folder: Path) -> Usage:
    """Predict a folder of images with ``nnUNetv2_predict_from_modelfolder``, one worker each for reading and writing.

    Raises:
        CommandError: It failed, such as for lack of memory.
    """
    command = ["nnUNetv2_predict_from_modelfolder", "-i", str(images), "-o", str(folder / "stock")]
    command += ["-m", settings.model, "-f", *settings.folds, "-chk", settings.checkpoint, "-device", settings.device]
    command += ["-npp", "1", "-nps", "1", *([] if settings.mirroring else ["--disable_tta"])]
    return run_measured(command, folder)


def run_measured(command: Sequence[str], folder: Path) -> Usage:
    """Run a command as ``run_command`` does, with its log in a folder; nothing else may run beside it meanwhile.

    Raises:
        CommandError: The command failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, **run_environment()}
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with PeakMemory() as memory:
        run_command(command, environment, folder / "log.txt", lambda line: None)
    wall_s, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Usage(wall_s, cpu_s, memory.mib)


def predict_timed(settings: str, images: str, out: str, times: str) -> None:
    """Predict a folder of images with settings in JSON, and write ``Steps`` as JSON."""
    given = Settings(**json.loads(settings))
    predictor = Predictor.from_folder(
        given.model, given.folds, given.device, checkpoint=given.checkpoint, mirroring=given.mirroring
    )
    predictor.times.exact = True
    if failed := predict_folder(predictor, Path(images), Path(out)):
        raise DataError(failed[0].message)
    steps = ({step: times[step] for step in STEPS} for times in (predictor.times.seconds, predictor.times.cpu_seconds))
    write_json(asdict(Steps(*steps)), Path(times))


def write_image(model: Model, folder: Path, slices: int, size_px: int) -> None:
    """Write an image such as the model was trained on, as nnU-Net names it, all channels alike.

    It has the median voxel size of the training images; its slices are those that the network sees.

    Args:
        model: Whose image it is.
        folder: To be made.
        slices: How many.
        size_px: Rows and columns of each.

    Raises:
        ConfigurationError: The model reads images of another format.
    """
    ending = model.dataset_json["file_ending"]
    if ending not in ENDINGS:
        msg = f"The model reads {ending} files; volumes to measure with are written as {', '.join(ENDINGS)} only."
        raise ConfigurationError(msg)
    backward = model.plans.transpose_backward
    spacing = [model.plans.original_median_spacing_after_transp[axis] for axis in backward]
    image = sitk.GetImageFromArray(synthetic_ct(slices, size_px).transpose(backward))
    image.SetSpacing([float(mm) for mm in spacing[::-1]])
    folder.mkdir(parents=True)
    for channel in range(len(model.configuration.normalization_schemes)):
        sitk.WriteImage(image, folder / f"case_{channel:04d}{ending}", True)


def synthetic_ct(slices: int, size_px: int) -> NDArray[np.int16]:
    """Return slices ``(z, y, x)`` of a round body with organs in the noise of CT, in HU."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-1 : 1 : size_px * 1j, -1 : 1 : size_px * 1j]
    body = x**2 / 0.85 + y**2 / 0.6 < 1
    image = np.empty((slices, size_px, size_px), np.int16)
    for z in range(slices):
        organs = 60 * np.sin(7 * x + z / 9) * np.cos(6 * y - z / 11) + 40
        image[z] = np.where(body, organs, -1000) + rng.normal(0, 15, body.shape)
    return image
