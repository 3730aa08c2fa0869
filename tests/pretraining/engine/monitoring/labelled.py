"""Writes a small labelled dataset in nnU-Net's raw format: bright balls in soft tissue."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813

SPACING_XYZ_MM = (0.8, 0.8, 3.0)


def write_image(path: Path, voxels: np.ndarray) -> None:
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing(SPACING_XYZ_MM)
    sitk.WriteImage(image, str(path))


def write_balls(folder: Path, *, cases: int = 4, side: int = 96, slices: int = 6, labels: dict | None = None) -> Path:
    """Write cases with a ball (1, 250 HU) and a darker box (2, -100 HU) in tissue (40 HU); slice 0 shows neither."""
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    rng = np.random.default_rng(5)
    z, y, x = np.mgrid[:slices, :side, :side]
    for case in range(cases):
        centre = rng.uniform(0.3 * side, 0.7 * side, 2)
        corner = rng.integers(4, side // 2, 2)
        classes = np.zeros(z.shape, np.uint8)
        box = (abs(y - corner[0]) < side // 6) & (abs(x - side + corner[1]) < side // 6)
        classes[box & (z > 0)] = 2
        classes[(np.hypot(y - centre[0], x - centre[1]) < side / 5) & (z > 0)] = 1
        values = np.choose(classes, (40.0, 250.0, -100.0)) + rng.normal(0, 20, z.shape)
        values[:, :3] = values[:, -3:] = -1000
        write_image(folder / "imagesTr" / f"ball_{case:03d}_0000.nii.gz", values.astype(np.int16))
        write_image(folder / "labelsTr" / f"ball_{case:03d}.nii.gz", classes)
    content = {"channel_names": {"0": "CT"}, "labels": labels or {"background": 0, "ball": 1, "box": 2}}
    (folder / "dataset.json").write_text(json.dumps({**content, "numTraining": cases, "file_ending": ".nii.gz"}))
    return folder
