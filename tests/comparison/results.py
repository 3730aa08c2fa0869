"""A small nnUNet_results, written file by file: real segmentations, fake checkpoints, real plans."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813
import torch

from nnunetv2_meddino.comparison.folders import Folders, Method
from nnunetv2_meddino.networks.vit import BACKBONES

SPACING_XYZ = (1.0, 1.0, 2.5)
LABELS = {"background": 0, "liver": 1, "spleen": 2}
SHAPE = (8, 40, 44)
U_NET = {
    "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
    "arch_kwargs": {
        "n_stages": 2,
        "features_per_stage": [4, 8],
        "conv_op": "torch.nn.modules.conv.Conv2d",
        "kernel_sizes": [[3, 3], [3, 3]],
        "strides": [[1, 1], [2, 2]],
        "n_conv_per_stage": [1, 1],
        "n_conv_per_stage_decoder": [1],
        "conv_bias": True,
        "norm_op": None,
        "norm_op_kwargs": {},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    },
    "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
}
VIT = {
    "network_class_name": "nnunetv2_meddino.networks.meddinov3.MedDINOv3",
    "arch_kwargs": {
        "vit": BACKBONES["tiny"].to_dict(),
        "blocks": [0, 1, 2, 3],
        "drop_path": 0.2,
        "aggregation": "concat",
    },
    "_kw_requires_import": [],
}


def write_volume(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(values)
    image.SetSpacing(SPACING_XYZ)
    sitk.WriteImage(image, path, True)


def make_folders(home: Path) -> Folders:
    folders = Folders(home / "raw", home / "preprocessed", home / "results")
    for folder in (folders.raw, folders.preprocessed, folders.results):
        folder.mkdir(parents=True)
    return folders


def anatomy(case: int, *, grow: float = 0.0, without: int | None = None) -> np.ndarray:
    """Two ellipsoids that differ from case to case; ``grow`` adds to their radii, in voxels."""
    rng = np.random.default_rng(case)
    z, y, x = np.mgrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]].astype(float)
    cy, cx = rng.uniform(-1.5, 1.5, 2)
    labels = np.zeros(SHAPE, np.uint8)
    for label, (centre, radius) in {1: ((18 + cy, 15 + cx), 9.0), 2: ((24 + cy, 33 + cx), 5.5)}.items():
        inside = ((z - 3.5) / 3.2) ** 2 + ((y - centre[0]) ** 2 + (x - centre[1]) ** 2) / (radius + grow) ** 2 < 1
        if label != without:
            labels[inside] = label
    return labels


def write_dataset(folders: Folders, name: str, cases: int, labels: dict[str, Any] | None = None) -> dict[str, Any]:
    """Write images and references of ``case_000`` and so on, and dataset.json; return its content."""
    content = {
        "channel_names": {"0": "CT"},
        "labels": labels or LABELS,
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
    for case in range(cases):
        truth = anatomy(case)
        noise = np.random.default_rng(1000 + case).normal(0, 12, SHAPE)
        write_volume(
            folders.raw / name / "imagesTr" / f"case_{case:03d}_0000.nii.gz",
            (truth * 60.0 + noise - 20).astype(np.float32),
        )
        for folder in (folders.raw / name / "labelsTr", folders.preprocessed / name / "gt_segmentations"):
            write_volume(folder / f"case_{case:03d}.nii.gz", truth)
    for folder in (folders.raw, folders.preprocessed):
        (folder / name / "dataset.json").write_text(json.dumps(content))
    return content


def plans(
    dataset: str, name: str = "nnUNetPlans", *, architecture: dict[str, Any] = U_NET, **configurations: Any
) -> dict[str, Any]:
    """Return plans with a 2d configuration; ``configurations`` adds others that inherit from it."""
    two_d = {
        "data_identifier": f"{name}_2d",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 12,
        "patch_size": [48, 32],
        "spacing": [1.0, 1.0],
        "median_image_size_in_voxels": [40, 44],
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "architecture": architecture,
    }
    return {
        "dataset_name": dataset,
        "plans_name": name,
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"2d": two_d, **configurations},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
    }


def write_method(
    folders: Folders,
    dataset: str,
    method: str,
    *,
    grow: float = 0.0,
    spread: float = 0.5,
    folds: int = 2,
    without: dict[int, int] | None = None,
    epochs: tuple[int, int] = (10, 10),
    weights: dict[str, Any] | None = None,
    loader: str | None = None,
    slices_of: str | None = None,
    fine_tuning: str | None = None,
    labels: dict[str, Any] | None = None,
    architecture: dict[str, Any] = U_NET,
    **two_d: Any,
) -> Path:
    """Write a trained and validated model as stock nnU-Net leaves it, without surface metrics.

    ``grow`` and ``spread`` make its errors, ``without`` names a class that is missed in a case. Case i is in fold
    i modulo ``folds``, which is written as the split of the dataset too. ``epochs``: done, planned.
    """
    model = folders.results / dataset / method
    known = Method.from_name(method)
    assert known is not None
    content = json.loads((folders.raw / dataset / "dataset.json").read_text()) | ({"labels": labels} if labels else {})
    cases = content["numTraining"]
    own = plans(dataset, known.plans, architecture=architecture)
    own["configurations"][known.configuration] = {**own["configurations"]["2d"], **two_d}
    model.mkdir(parents=True)
    write_splits(folders, dataset, [range(fold, cases, folds) for fold in range(folds)])
    (model / "plans.json").write_text(json.dumps(own))
    (model / "dataset.json").write_text(json.dumps(content))
    rng = np.random.default_rng(len(method))
    errors = grow + spread * rng.normal(size=cases)
    for fold in range(folds):
        kept = {"weights": weights, "loader": loader, "slices_of": slices_of, "fine_tuning": fine_tuning}
        write_fold(model / f"fold_{fold}", epochs=epochs, **kept)
        for case in range(fold, cases, folds):
            labels_of_case = anatomy(case, grow=errors[case], without=(without or {}).get(case))
            write_volume(model / f"fold_{fold}" / "validation" / f"case_{case:03d}.nii.gz", labels_of_case)
        (model / f"fold_{fold}" / "validation" / "summary.json").write_text("{}")
    return model


def write_splits(folders: Folders, dataset: str, validated: Sequence[Iterable[int]]) -> None:
    """Write splits_final.json: the numbers of the validation cases of each fold."""
    splits = [{"train": [], "val": [f"case_{case:03d}" for case in cases]} for cases in validated]
    (folders.preprocessed / dataset / "splits_final.json").write_text(json.dumps(splits))


def write_fold(
    folder: Path,
    *,
    epochs: tuple[int, int] = (10, 10),
    weights: dict[str, Any] | None = None,
    loader: str | None = None,
    slices_of: str | None = None,
    fine_tuning: str | None = None,
) -> None:
    """Write debug.json and a checkpoint with the keys that nnU-Net writes; each epoch lasts 90 s."""
    done, planned = epochs
    folder.mkdir(parents=True)
    kept: dict[str, Any] = {"weights": weights} if weights else {}
    kept |= {"loader": {"name": loader, "seed": 1, "slices_of": slices_of}} if loader else {}
    kept |= {"fine_tuning": {"name": fine_tuning}} if fine_tuning else {}
    starts = [1_700_000_000.0 + 100 * np.float64(epoch) for epoch in range(done)]
    checkpoint = {
        "network_weights": {"weight": torch.zeros(3)},
        "logging": {"epoch_start_timestamps": starts, "epoch_end_timestamps": [start + 90 for start in starts]},
        "current_epoch": done,
        "init_args": {"meddino": kept} if kept else {},
        "trainer_name": folder.parent.name.split("__")[0],
        "inference_allowed_mirroring_axes": (0, 1),
    }
    torch.save(checkpoint, folder / ("checkpoint_final.pth" if done == planned else "checkpoint_latest.pth"))
    debug = {"num_epochs": str(planned), "num_iterations_per_epoch": "250", "device": "cuda:0", "gpu_name": "GPU X"}
    (folder / "debug.json").write_text(json.dumps(debug))


def set_environment(folders: Folders, monkeypatch: Any) -> None:
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(getattr(folders, name)))
    for name in [name for name in os.environ if name.startswith("MEDDINO_")]:
        monkeypatch.delenv(name)
