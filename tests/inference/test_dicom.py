"""From a DICOM series to labels, a NIfTI file and a DICOM segmentation on its grid."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from highdicom.seg import segread
from numpy.typing import NDArray

from nnunetv2_meddino.errors import ConfigurationError
from nnunetv2_meddino.imaging.dicom_series import read_dicom_folder
from nnunetv2_meddino.inference import Predictor
from nnunetv2_meddino.inference.folders import predict_folder
from tests.imaging.dicom import by_simpleitk, write_series
from tests.inference.models import write_model
from tests.inference.test_predictor import smooth_noise


def series(folder: Path, plane: str = "sagittal") -> Path:
    return write_series(folder, smooth_noise((4, 48, 40))[0].astype(np.int16), plane)


def voxels_of(segmentation: Path, files: tuple[Path, ...]) -> NDArray[np.uint8]:
    """Return the labels of a segmentation in the order of the images that it refers to."""
    read = segread(segmentation)
    uids = [str(sitk.ReadImage(str(file)).GetMetaData("0008|0018")) for file in files]
    return read.get_pixels_by_source_instance(uids, combine_segments=True)


@pytest.mark.parametrize("kind", ["labelmap", "binary"])
def test_labels_of_a_series_lie_on_its_grid_in_both_formats(tmp_path: Path, kind: str) -> None:
    predictor = Predictor.from_folder(write_model(tmp_path / "model"), device="cpu")
    images = tmp_path / "images"
    for name in ("first", "second"):
        series(images / name)
    out = tmp_path / "out"
    assert predict_folder(predictor, images, out, dicom_seg=kind) == []  # type: ignore[arg-type]
    assert {path.name for path in out.iterdir() if path.suffix != ".json"} == {
        f"{name}{ending}" for name in ("first", "second") for ending in (".nii.gz", ".dcm")
    }
    image = by_simpleitk(images / "first")
    expected = predictor.predict(image)
    assert len(np.unique(expected)) > 1
    labels = sitk.ReadImage(str(out / "first.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(labels), expected)
    for get in ("GetSpacing", "GetOrigin", "GetDirection"):
        np.testing.assert_allclose(getattr(labels, get)(), getattr(image, get)(), atol=1e-5)
    np.testing.assert_array_equal(predictor.predict(images / "first"), expected)
    files = read_dicom_folder(images / "first").files
    np.testing.assert_array_equal(voxels_of(out / "first.dcm", files), expected)


def test_a_folder_of_images_is_one_case_and_a_damaged_series_stops_no_other(tmp_path: Path) -> None:
    predictor = Predictor.from_folder(write_model(tmp_path / "model"), device="cpu")
    images = series(tmp_path / "images" / "whole")
    assert predict_folder(predictor, images, tmp_path / "one") == []
    assert (tmp_path / "one" / "whole.nii.gz").is_file()
    shutil.copytree(images, tmp_path / "images" / "incomplete")
    files = read_dicom_folder(tmp_path / "images" / "incomplete").files
    files[1].unlink()
    (failed,) = predict_folder(predictor, tmp_path / "images", tmp_path / "two")
    assert failed.name == "incomplete"
    assert "are 2.5 to 5 mm apart" in failed.message
    assert (tmp_path / "two" / "whole.nii.gz").is_file()


def test_classes_that_a_label_map_cannot_hold_are_refused_before_prediction(tmp_path: Path) -> None:
    regions = {"background": 0, "whole": [1, 2], "core": 2}
    folder = write_model(tmp_path / "model", labels=regions, regions_class_order=[1, 2])
    predictor = Predictor.from_folder(folder, device="cpu")
    series(tmp_path / "images" / "one")
    with pytest.raises(ConfigurationError, match="Choose 'binary'"):
        predict_folder(predictor, tmp_path / "images", tmp_path / "out", dicom_seg="labelmap")
    assert not (tmp_path / "out").exists()
    assert predict_folder(predictor, tmp_path / "images", tmp_path / "out", dicom_seg="binary") == []


def test_a_model_of_another_reader_is_not_given_dicom(tmp_path: Path) -> None:
    predictor = Predictor.from_folder(write_model(tmp_path / "model", reader="NibabelIO"), device="cpu")
    series(tmp_path / "images" / "one")
    with pytest.raises(ConfigurationError, match="models of nnU-Net's SimpleITKIO"):
        predict_folder(predictor, tmp_path / "images", tmp_path / "out")
