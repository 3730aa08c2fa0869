"""Stock nnU-Net commands run as a user types them, and what they leave behind."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from tests.conftest import PROJECT
from tests.nnunet import command, nnunet_environment

TRAINER = "MedDINOv3TestTrainer"
DEVICE = ("-device", "cpu")
PREDICT = (*DEVICE, "-npp", 0, "-nps", 0, "--disable_tta")


def home_with(folder: Path, dataset: Path | None = None) -> Path:
    """Make nnU-Net's three folders, a raw dataset linked into the first."""
    for name in ("raw", "preprocessed", "results"):
        (folder / name).mkdir(parents=True)
    if dataset is not None:
        (folder / "raw" / dataset.name).symlink_to(dataset)
    return folder


def environment(home: Path, **variables: str) -> dict[str, str]:
    env = nnunet_environment(home, nnUNet_n_proc_DA="0")
    env["nnUNet_extTrainer"] += os.pathsep + str(PROJECT / "tests/ext_trainers")
    return {**env, **variables}


def plan_and_preprocess(home: Path, dataset_id: int, *, threads: bool = True) -> None:
    arguments = ("-d", dataset_id, "-c", "2d", "-np", 1, "-npfp", 1, "--verify_dataset_integrity")
    command(nnunet_environment(home), "nnUNetv2_plan_and_preprocess", *arguments, threads=threads)


def labels_of(folder: Path) -> dict[str, np.ndarray]:
    return {f.name: sitk.GetArrayFromImage(sitk.ReadImage(f)) for f in sorted(folder.glob("*.nii.gz"))}


def same_labels(a: Path, b: Path) -> bool:
    first, second = labels_of(a), labels_of(b)
    return len(first) > 0 and first.keys() == second.keys() and all(np.array_equal(first[k], second[k]) for k in first)


def model(home: Path, trainer: str = TRAINER) -> Path:
    return next((home / "results").glob(f"*/{trainer}__nnUNetPlans__2d"))


def predict(home: Path, out: Path, *arguments: object, **variables: str) -> None:
    env = environment(home, **variables)
    images = next((home / "raw").iterdir()) / "imagesTs"
    dataset_id = re.search(r"Dataset(\d+)_", str(images)).group(1)
    arguments = arguments or ("-tr", TRAINER)
    command(
        env, "nnUNetv2_predict", "-i", images, "-o", out, "-d", dataset_id, "-c", "2d", "-f", 0, *PREDICT, *arguments
    )


def train_losses(out: str) -> list[float]:
    return [float(v) for v in re.findall(r"train_loss (-?[\d.]+)", out)]
