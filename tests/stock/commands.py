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
HALF_PRECISION = 2e-3
"""Error of probabilities where nnU-Net keeps logits in half precision."""
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


def predict(home: Path, out: Path, *arguments: object, streamed: bool = False, **variables: str) -> None:
    """Predict the test cases with nnU-Net's command or, ``streamed``, with ``meddino predict``."""
    env = environment(home, **variables)
    images = next((home / "raw").iterdir()) / "imagesTs"
    dataset_id = re.search(r"Dataset(\d+)_", str(images)).group(1)
    arguments = arguments or ("-tr", TRAINER)
    name = ("meddino", "predict") if streamed else ("nnUNetv2_predict",)
    command(env, *name, "-i", images, "-o", out, "-d", dataset_id, "-c", "2d", "-f", 0, *PREDICT, *arguments)


def check_streamed_like(home: Path, stock: Path, *arguments: object) -> None:
    """Check that ``meddino predict`` writes what nnU-Net has written with the same arguments and probabilities.

    nnU-Net keeps logits in half precision, ours are single: where its two best probabilities tie, either label is
    right, and of a network that has hardly been trained that may be any share of an image.
    """
    streamed = stock.with_name(f"{stock.name}_streamed")
    predict(home, streamed, *arguments, streamed=True)
    evaluated = {"summary.json"}  # of a test that may have run before
    assert {file.name for file in streamed.iterdir()} == {file.name for file in stock.iterdir()} - evaluated
    mine, expected = labels_of(streamed), labels_of(stock)
    assert any(len(np.unique(labels)) > 1 for labels in expected.values())
    for name, labels in expected.items():
        file = name.replace(".nii.gz", ".npz")
        probabilities, own = (np.load(folder / file)["probabilities"] for folder in (stock, streamed))
        apart = np.abs(own - probabilities).max(axis=0)
        assert apart.max() < 5 * HALF_PRECISION  # voxels at the corners of tiles lose more than the others
        assert np.count_nonzero(apart > HALF_PRECISION) <= 1e-3 * apart.size
        differ = mine[name] != labels
        second, best = np.sort(probabilities[:, differ], axis=0)[-2:]
        assert (best - second <= 2 * apart[differ]).all()


def train_losses(out: str) -> list[float]:
    return [float(v) for v in re.findall(r"train_loss (-?[\d.]+)", out)]
