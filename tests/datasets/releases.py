"""Small stand-ins for the four releases."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK as sitk  # noqa: N813

SHAPE = (4, 6, 8)
SAGITTAL = (0, 0, 1, 1, 0, 0, 0, 1, 0)


def write(path: Path, voxels: np.ndarray, direction: tuple[int, ...] | None = None) -> Path:
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing((0.75, 0.8, 2.5))
    image.SetOrigin((-30.0, 12.0, -700.0))
    if direction:
        image.SetDirection(direction)
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))
    return path


def all_labels(top: int, seed: int) -> np.ndarray:
    return ((np.arange(np.prod(SHAPE)) + seed) % (top + 1)).reshape(SHAPE).astype(np.uint8)


def write_case(
    image: Path, labels: Path | None, top: int, seed: int = 0, direction: tuple[int, ...] | None = None
) -> None:
    """Write an image of noise and a label map with all labels up to ``top``."""
    generator = np.random.default_rng(seed)
    write(image, generator.normal(0, 100, SHAPE).astype(np.int16), direction)
    if labels:
        write(labels, all_labels(top, seed), direction)


def write_amos(source: Path) -> None:
    root = source / "amos22"
    for split, numbers in (("Tr", (1, 4, 410, 507)), ("Va", (8, 13, 599))):
        for n in numbers:
            write_case(
                root / f"images{split}/amos_{n:04d}.nii.gz", root / f"labels{split}/amos_{n:04d}.nii.gz", top=15, seed=n
            )
    for n in (2, 500, 551):
        write_case(root / f"imagesTs/amos_{n:04d}.nii.gz", None, top=15, seed=n)
    (root / "imagesTr" / "._amos_0001.nii.gz").write_bytes(b"resource fork")
    (source / "__MACOSX" / "imagesTr").mkdir(parents=True)
    (source / "__MACOSX" / "imagesTr" / "amos_0009.nii.gz").write_bytes(b"resource fork")


def write_btcv(source: Path) -> None:
    root = source / "averaged-training-images" / "RawData"
    for n in (1, 2, 3, 10, 40):
        write_case(
            root / f"Training/img/img{n:04d}.nii.gz", root / f"Training/label/label{n:04d}.nii.gz", top=13, seed=n
        )
    write_case(root / "Testing/img/img0061.nii.gz", None, top=13)


def write_kits(source: Path) -> None:
    for n in (0, 7, 299, 400, 588):
        folder = source / "dataset" / f"case_{n:05d}"
        write_case(folder / "imaging.nii.gz", folder / "segmentation.nii.gz", top=3, seed=n, direction=SAGITTAL)
        write_case(folder / "instances" / "kidney_instance-1_annotation-1.nii.gz", None, top=1)


def write_lits(source: Path) -> None:
    for n in (0, 2, 28, 100, 130):
        batch = source / "media/nas/01_Datasets/CT/LITS" / f"Training Batch {1 if n < 28 else 2}"
        write_case(batch / f"volume-{n}.nii", batch / f"segmentation-{n}.nii", top=2, seed=n)
    write_case(source / "LITS-Challenge-Test-Data" / "test-volume-0.nii", None, top=2, seed=7)


RELEASES: dict[str, tuple[Callable[[Path], None], str, list[str], list[str], str]] = {
    "amos22": (
        write_amos,
        "Dataset218_AMOS22CT",
        ["amos_0001", "amos_0004", "amos_0008", "amos_0013", "amos_0410"],
        ["amos_0002", "amos_0500"],
        ".nii.gz",
    ),
    "btcv": (
        write_btcv,
        "Dataset218_BTCV",
        ["btcv_0001", "btcv_0002", "btcv_0003", "btcv_0010", "btcv_0040"],
        ["btcv_0061"],
        ".nii.gz",
    ),
    "kits23": (
        write_kits,
        "Dataset218_KiTS23",
        ["case_00000", "case_00007", "case_00299", "case_00400", "case_00588"],
        [],
        ".nii.gz",
    ),
    "lits": (
        write_lits,
        "Dataset218_LiTS",
        ["lits_000", "lits_002", "lits_028", "lits_100", "lits_130"],
        ["lits_test_000"],
        ".nii",
    ),
}


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def voxels(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def with_identity_header(path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(np.asanyarray(nibabel.load(path).dataobj), np.eye(4)), path)  # type: ignore
