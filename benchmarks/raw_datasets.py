"""Datasets in nnU-Net's raw format, written from arrays."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813 (the name everyone gives it)
from numpy.typing import NDArray
from scipy import ndimage

from nnunetv2_meddino.files import write_json
from nnunetv2_meddino.inference.benchmark import synthetic_ct


def write_ct_dataset(
    folder: Path, cases: Iterable[tuple[NDArray, NDArray]], classes: int, spacing_mm: tuple[float, float, float]
) -> None:
    """Write training cases of CT.

    Args:
        folder: To be made, ``DatasetXXX_Name``.
        cases: Image in HU and labels of each, ``(z, y, x)``.
        classes: How many, with the background.
        spacing_mm: In the same order.
    """
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    number = 0
    for number, (values, labels) in enumerate(cases, start=1):
        for part, name, array in (("imagesTr", f"c{number}_0000", values), ("labelsTr", f"c{number}", labels)):
            image = sitk.GetImageFromArray(array)
            image.SetSpacing(spacing_mm[::-1])
            sitk.WriteImage(image, folder / part / f"{name}.nii.gz")
    content = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, **{f"organ {i}": i for i in range(1, classes)}},
        "numTraining": number,
        "file_ending": ".nii.gz",
    }
    write_json(content, folder / "dataset.json")


def write_ct_with_organs(folder: Path, cases: int, slices: int, image_px: int, classes: int) -> None:
    """Write training cases of CT whose organs lie anywhere in the body; voxels of 3 x 0.75 x 0.75 mm.

    Args:
        folder: To be made, ``DatasetXXX_Name``.
        cases: How many.
        slices: Of each.
        image_px: Rows and columns of each slice, a multiple of 64.
        classes: With the background.
    """
    values = synthetic_ct(slices, image_px)
    body = ndimage.gaussian_filter(values, (0, 3, 3)) > -500
    enlarge = (1, 1, image_px / 64, image_px / 64)
    written = []
    for seed in range(cases):
        noise = np.random.default_rng(seed).standard_normal((classes, slices, 64, 64))
        organs = ndimage.zoom(ndimage.gaussian_filter(noise, (0, 1, 4, 4)), enlarge, order=1)
        written.append((values, (organs.argmax(0) * body).astype(np.uint8)))
    write_ct_dataset(folder, written, classes, (3.0, 0.75, 0.75))
