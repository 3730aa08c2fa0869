"""``meddino viewers`` and ``meddino predict --viewers``: which files they write, and what they say."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import slicerio

from nnunetv2_meddino.cli.main import main
from nnunetv2_meddino.evaluation.pairs import pair_files
from tests.inference.models import write_model
from tests.inference.test_folders import VOLUME, write_simpleitk

TABLES = {"labels.ctbl", "labels_itksnap.txt"}
NAMES = {"background": 0, "liver": 1, "spleen": 2}


def viewers(*arguments: object) -> int:
    return main(["viewers", *map(str, arguments)])


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A raw dataset of two label maps."""
    folder = tmp_path / "Dataset900_Demo"
    (folder / "labelsTr").mkdir(parents=True)
    (folder / "dataset.json").write_text(json.dumps({"labels": NAMES, "file_ending": ".nii.gz"}))
    for i, name in enumerate(("a", "b")):
        labels = np.zeros((5, 6, 7), np.uint8)
        labels[i : i + 2, 1:4, 2:5] = 1
        nibabel.save(nibabel.Nifti1Image(labels, np.diag([0.8, 0.9, 2.5, 1])), folder / "labelsTr" / f"{name}.nii.gz")
    return folder


def test_label_maps_of_a_raw_dataset_get_the_names_of_the_dataset_json_above(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert viewers(dataset / "labelsTr", "-o", out) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert {file.name for file in out.iterdir()} == {"a.seg.nrrd", "b.seg.nrrd", *TABLES}
    read = slicerio.read_segmentation(str(out / "b.seg.nrrd"))
    assert slicerio.segment_names(read) == ["liver", "spleen"]
    expected = np.asarray(nibabel.load(dataset / "labelsTr" / "b.nii.gz").dataobj)
    np.testing.assert_array_equal(read["voxels"], expected)


def test_beside_the_label_maps_by_default_and_again_without_taking_copies_for_cases(dataset: Path) -> None:
    for _ in range(2):
        assert viewers(dataset / "labelsTr") == 0
        assert {file.name for file in (dataset / "labelsTr").iterdir()} == {
            *(f"{case}{ending}" for case in "ab" for ending in (".nii.gz", ".seg.nrrd")),
            *TABLES,
        }
    pairing = pair_files(dataset / "labelsTr", dataset / "labelsTr")
    assert ([pair.case for pair in pairing.pairs], pairing.notes, pairing.failures) == (["a", "b"], [], [])


def test_a_label_map_that_cannot_be_written_stops_no_other(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "fewer.json").write_text(json.dumps({"labels": {"background": 0, "spleen": 2}}))
    nibabel.save(nibabel.Nifti1Image(np.full((2, 2, 2), 2, np.uint8), np.eye(4)), dataset / "labelsTr" / "c.nii.gz")
    assert viewers(dataset / "labelsTr", "-l", tmp_path / "fewer.json", "-o", tmp_path / "out") == 1
    said = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in said] == ["FAILED a", "FAILED b"]
    assert said[0].endswith("to this label map.")
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"c.seg.nrrd", *TABLES}


def test_slips_are_told_in_one_line(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*arguments: object) -> str:
        assert viewers(*arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    lonely = tmp_path / "one" / "two" / "three"
    lonely.mkdir(parents=True)
    assert "There is no dataset.json in" in said(lonely)
    assert "holds no segmentation" in said(lonely, "-l", dataset / "dataset.json")
    assert "does not exist or is not a folder" in said(tmp_path / "none")
    assert "cannot be read as JSON" in said(dataset / "labelsTr", "-l", tmp_path / "none.json")
    (tmp_path / "other.json").write_text('{"name": "plans"}')
    assert "has no entry 'labels'" in said(dataset / "labelsTr", "-l", tmp_path / "other.json")


def test_copies_do_not_become_cases_of_a_dataset_of_nrrd_files(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in (dataset / "labelsTr").iterdir():
        sitk.WriteImage(sitk.ReadImage(file), file.with_name(file.name.replace(".nii.gz", ".nrrd")))
        file.unlink()
    assert viewers(dataset / "labelsTr") == 2
    assert "nnU-Net would take NAME.seg.nrrd beside them for another case" in capsys.readouterr().err
    assert viewers(dataset / "labelsTr", "-o", tmp_path / "out") == 0
    assert (tmp_path / "out" / "a.seg.nrrd").is_file()


def test_predictions_get_them_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = {"background": 0, "disc": 1, "ring": 2}
    model = write_model(tmp_path / "model", labels=labels)
    (tmp_path / "images").mkdir()
    write_simpleitk(tmp_path / "images" / "x_0000.nii.gz", VOLUME)
    arguments = ["predict", "-m", model, "-i", tmp_path / "images", "-o", tmp_path / "out", "-device", "cpu"]
    assert main([str(word) for word in (*arguments, "--viewers")]) == 0
    names = {file.name for file in (tmp_path / "out").iterdir() if file.suffix != ".json"}
    assert names == {"x.nii.gz", "x.seg.nrrd", *TABLES}
    image, segments = (sitk.ReadImage(tmp_path / "out" / f"x{ending}") for ending in (".nii.gz", ".seg.nrrd"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(segments), sitk.GetArrayFromImage(image))
    assert sitk.GetArrayFromImage(segments).any()
    for get in ("GetSpacing", "GetOrigin", "GetDirection"):
        np.testing.assert_allclose(getattr(segments, get)(), getattr(image, get)(), atol=1e-5)
    assert slicerio.segment_names(slicerio.read_segmentation(str(tmp_path / "out" / "x.seg.nrrd"))) == ["disc", "ring"]
    (tmp_path / "out" / "x.seg.nrrd").unlink()
    assert main([str(word) for word in (*arguments, "--viewers", "--continue_prediction")]) == 0
    assert (tmp_path / "out" / "x.seg.nrrd").is_file()


def test_models_of_nrrd_files_are_refused_before_prediction(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_model(tmp_path / "model", file_ending=".nrrd")
    (tmp_path / "images").mkdir()
    write_simpleitk(tmp_path / "images" / "x_0000.nrrd", VOLUME)
    words = ["predict", "-m", model, "-i", tmp_path / "images", "-o", tmp_path / "out", "-device", "cpu", "--viewers"]
    assert main([str(word) for word in words]) == 2
    assert "meddino viewers FOLDER -o OTHER" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
