"""The image that prediction is measured with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunetv2_meddino.inference.benchmark import synthetic_ct, write_image
from nnunetv2_meddino.inference.model import read_model
from tests.inference.models import write_model


def test_image_has_the_slices_that_the_network_sees(tmp_path: Path) -> None:
    """Of sagittal slices: the plans put the last axis of an image first."""
    model = read_model(write_model(tmp_path / "model", channels=2, transpose=(2, 0, 1)), None)
    write_image(model, tmp_path / "images", 3, 16)
    files = sorted((tmp_path / "images").iterdir())
    assert [file.name for file in files] == ["case_0000.nii.gz", "case_0001.nii.gz"]
    for file in files:
        image = sitk.ReadImage(file)
        assert (image.GetSize(), image.GetSpacing()) == ((3, 16, 16), (3.0, 1.0, 1.0))  # (x, y, z)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(image).transpose(2, 0, 1), synthetic_ct(3, 16))
