"""A small dataset in nnU-Net format, stock nnU-Net commands, and trainers built by hand, for the tests."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunetv2_meddino.environment import run_environment
from nnunetv2_meddino.trainers import find_trainer
from tests.forked import run_installed

CASES = 5


def write_case(folder: Path, name: str, channels: int, rng: np.random.Generator, *, labels: str = "labelsTr") -> None:
    """Write one image of 6 slices of 48 x 40 pixels: a bright disc (1) with a brighter core (2), in noise."""
    z, y, x = np.mgrid[:6, :48, :40]
    centre = rng.uniform(18, 24, size=2)
    radius = np.hypot(y - centre[0], x - centre[1])
    segmentation = ((radius < 14).astype(np.uint8) + (radius < 7)) * (z >= 0)
    for channel in range(channels):
        image = (segmentation * 100.0 + rng.normal(0, 15, segmentation.shape)).astype(np.float32)
        volume = sitk.GetImageFromArray(image)
        volume.SetSpacing((1.0, 1.0, 3.0))
        sitk.WriteImage(volume, folder / labels.replace("labels", "images") / f"{name}_{channel:04d}.nii.gz")
    mask = sitk.GetImageFromArray(segmentation.astype(np.uint8))
    mask.SetSpacing((1.0, 1.0, 3.0))
    sitk.WriteImage(mask, folder / labels / f"{name}.nii.gz")


def write_dataset(raw: Path, name: str = "Dataset998_Discs", *, channels: int = 1, labels: dict | None = None) -> Path:
    """Write a raw dataset of ``CASES`` training and two test cases; ``labels`` adds to dataset.json."""
    folder = raw / name
    for part in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        (folder / part).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(CASES):
        write_case(folder, f"disc_{i:03d}", channels, rng)
    for i in range(2):
        write_case(folder, f"disc_{100 + i}", channels, rng, labels="labelsTs")
    content = {
        "channel_names": {str(c): "MRI" for c in range(channels)},
        "labels": {"background": 0, "ring": 1, "core": 2},
        "numTraining": CASES,
        "file_ending": ".nii.gz",
        **(labels or {}),
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def nnunet_environment(home: Path, **variables: str) -> dict[str, str]:
    """Return the environment of a stock nnU-Net command that works under ``home`` and finds our trainers."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MEDDINO_", "nnUNet"))}
    env.update(
        nnUNet_raw=str(home / "raw"),
        nnUNet_preprocessed=str(home / "preprocessed"),
        nnUNet_results=str(home / "results"),
        nnUNet_def_n_proc="1",
        PYTHONWARNINGS="ignore",
        **run_environment(),
    )
    env.update(variables)
    return env


def command(env: dict[str, str], name: str, *arguments: object, fails: bool = False, threads: bool = False) -> str:
    """Run an installed command and return what it printed; it must fail where ``fails`` says so and succeed else.

    Args:
        env: Its whole environment.
        name: Of the command.
        *arguments: Of the command.
        fails: Whether it is to fail.
        threads: See ``run_installed``.
    """
    code, printed = run_installed(name, [*map(str, arguments)], env, threads=threads)
    assert (code != 0) == fails, f"{name} {arguments} ended with {code}:\n{printed[-3000:]}"
    return printed


def make_trainer(home: Path, name: str = "MedDINOv3Trainer", configuration: str = "2d", fold: int = 0, **plans_changes):
    """Build a trainer on the CPU as nnU-Net's command does; ``plans_changes`` update the configuration's plans."""
    import torch

    folder = home / "preprocessed" / "Dataset998_Discs"
    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    plans["continue_training"] = False
    plans["configurations"][configuration].update(plans_changes)
    dataset = json.loads((folder / "dataset.json").read_text())
    return find_trainer(name)(plans, configuration, fold, dataset, torch.device("cpu"))
