"""Datasets in nnU-Net's raw format, written from arrays."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import SimpleITK as sitk  # noqa: N813 (the name everyone gives it)
from numpy.typing import NDArray

from nnunetv2_meddino.files import write_json


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
