"""What a training's own evaluation measures, and of which cases."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import tifffile
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO

from nnunetv2_meddino.errors import DataError
from nnunetv2_meddino.evaluation.validation import evaluate_validation, mean_lines, validation_cases
from tests.nnunet import make_trainer

ORGAN = {"labels": {"background": 0, "organ": 1}}


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """The validation folder of fold 0 and gt_segmentations."""
    validation, gt = tmp_path / "results" / "fold_0" / "validation", tmp_path / "preprocessed" / "gt_segmentations"
    validation.mkdir(parents=True)
    gt.mkdir(parents=True)
    return validation, gt


def evaluate(validation: Path, gt: Path, ending: str = ".nii.gz") -> dict:
    return json.loads(evaluate_validation(validation, gt, {**ORGAN, "file_ending": ending}).read_text())


def voxel(shape: tuple[int, ...], *at: int) -> np.ndarray:
    labels = np.zeros(shape, np.uint8)
    labels[at] = 1
    return labels


def write(path: Path, labels: np.ndarray, spacing_xyz=(1.0, 1.0, 1.0)) -> None:
    image = sitk.GetImageFromArray(labels)
    image.SetSpacing(spacing_xyz)
    sitk.WriteImage(image, path)


def split(gt: Path, *validated: list[str]) -> None:
    content = [{"train": ["old"], "val": cases} for cases in validated]
    (gt.parent / "splits_final.json").write_text(json.dumps(content))


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_the_spacing_is_that_of_the_image_which_nnunet_gives_its_predictions(folders, tmp_path, ending):
    """The label's header says 1 mm: stock nnU-Net trains on it and scores it."""
    validation, gt = folders
    image = tmp_path / f"a_0000{ending}"
    write(image, np.zeros((6, 20, 20), np.int16), (0.8, 0.8, 5.0))
    write(gt / f"a{ending}", voxel((6, 20, 20), 2, 10, 10))
    _, properties = SimpleITKIO().read_images([str(image)])
    SimpleITKIO().write_seg(voxel((6, 20, 20), 3, 10, 10), str(validation / f"a{ending}"), properties)
    content = evaluate(validation, gt, ending)
    assert content["failed"] == []
    assert content["metric_per_case"][0]["spacing_zyx_mm"] == [5.0, 0.8, 0.8]
    assert content["foreground_mean"]["HD_voxel_mm"] == 5.0  # one slice apart


def test_the_spacing_of_a_tiff_is_in_the_file_that_nnunet_writes_beside_the_prediction(folders):
    """nnU-Net copies the label to gt_segmentations, and not the JSON file beside it."""
    validation, gt = folders
    tifffile.imwrite(gt / "a.tif", voxel((6, 20, 20), 2, 10, 10))
    Tiff3DIO().write_seg(voxel((6, 20, 20), 3, 10, 10), str(validation / "a.tif"), {"spacing": [3.0, 2.0, 2.0]})
    content = evaluate(validation, gt, ".tif")
    assert content["metric_per_case"][0]["spacing_zyx_mm"] == [3.0, 2.0, 2.0]
    assert content["foreground_mean"]["HD_voxel_mm"] == 3.0


def test_a_picture_is_measured_in_pixels_of_1_mm(folders):
    validation, gt = folders
    NaturalImage2DIO().write_seg(voxel((1, 20, 20), 0, 10, 10), str(gt / "a.png"), {})
    NaturalImage2DIO().write_seg(voxel((1, 20, 20), 0, 10, 12), str(validation / "a.png"), {})
    content = evaluate(validation, gt, ".png")
    assert content["metric_per_case"][0]["dimensions"] == 2
    assert content["foreground_mean"]["HD_voxel_mm"] == 2.0


def test_a_prediction_of_another_shape_is_still_refused(folders):
    validation, gt = folders
    write(gt / "a.nii.gz", voxel((6, 20, 20), 2, 10, 10))
    write(validation / "a.nii.gz", voxel((6, 20, 19), 2, 10, 10))
    assert "shape" in evaluate(validation, gt)["failed"][0]["message"]


def test_only_the_folds_validation_list_is_scored(folders):
    validation, gt = folders
    split(gt, ["new", "missing"], ["old"])
    for case in ("old", "new", "missing"):
        write(gt / f"{case}.nii.gz", voxel((6, 20, 20), 2, 10, 10))
    for case in ("old", "new"):
        write(validation / f"{case}.nii.gz", voxel((6, 20, 20), 2, 10, 10))
    content = evaluate(validation, gt)
    assert [case["case"] for case in content["metric_per_case"]] == ["new"]
    assert [failure["case"] for failure in content["failed"]] == ["missing"]
    assert (
        "missing.nii.gz does not exist, but the case is in the fold's validation list"
        in content["failed"][0]["message"]
    )
    (note,) = content["notes"]
    assert note.endswith(
        "not in the fold's validation list; they were not scored, but nnU-Net's summary.json counts them: old."
    )


def test_without_a_split_every_prediction_counts_and_a_note_says_so(folders):
    validation, gt = folders
    for folder in folders:
        write(folder / "a.nii.gz", voxel((6, 20, 20), 2, 10, 10))
    content = evaluate(validation, gt)
    assert [case["case"] for case in content["metric_per_case"]] == ["a"]
    assert content["notes"][0].startswith("The validation cases of fold_0 are not known")


@pytest.mark.parametrize("text", ["{", '{"val": []}', '[{"train": []}]', '[["a"]]'])
def test_a_damaged_split_is_refused(folders, text):
    validation, gt = folders
    (gt.parent / "splits_final.json").write_text(text)
    with pytest.raises(DataError, match=r"splits_final.json is not a list of splits .*Restore it"):
        validation_cases(validation, gt, ".nii.gz")


@pytest.mark.parametrize("fold", [0, 3, 5, 11, "all"])
def test_a_folds_validation_cases_are_those_of_nnunet(nnunet_home, fold):
    trainer = make_trainer(nnunet_home, fold=fold)
    trainer.do_split()  # writes splits_final.json where there is none; it has five folds
    _, expected = trainer.do_split()
    gt = nnunet_home / "preprocessed" / "Dataset998_Discs" / "gt_segmentations"
    assert validation_cases(Path(trainer.output_folder) / "validation", gt, ".nii.gz") == sorted(expected)


def test_the_log_names_the_cases_that_are_in_no_mean():
    means = {"NSD_voxel_1mm": 0.5, "ASSD_voxel_mm": 2.0}
    content = {"foreground_mean": means, "metric_per_case": [{}] * 9, "failed": []}
    assert mean_lines(content) == ["Mean Validation NSD_voxel_1mm: 0.5", "Mean Validation ASSD_voxel_mm: 2.0"]
    content["failed"] = [{"case": "a"}, {"case": "b"}]
    assert mean_lines(content)[0] == "Mean Validation NSD_voxel_1mm: 0.5 over 9 of 11 cases; not evaluated: a, b"
    content |= {"foreground_mean": {}, "metric_per_case": []}
    assert mean_lines(content) == ["No surface metrics: none of 2 validation cases could be evaluated: a, b"]
