"""Which files of two folders make a case."""

from __future__ import annotations

from pathlib import Path

import pytest

from nnunetv2_meddino.errors import DataError
from nnunetv2_meddino.evaluation.pairs import Pair, case_name, pair_files


def test_cases_are_paired_by_name_whatever_their_format(tmp_path):
    for folder, names in {
        "reference": ["a.1.nii.gz", "b.nrrd", "c.nii.gz", "d.mha", ".hidden.nii.gz", "dataset.json"],
        "prediction": ["a.1.mha", "b.nrrd", "d.mha", "d.nrrd", "extra.nii.gz", "a.1.npz"],
    }.items():
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).touch()
    found = pair_files(tmp_path / "reference", tmp_path / "prediction")
    assert [(p.case, p.reference.name, p.prediction.name) for p in found.pairs] == [
        ("a.1", "a.1.nii.gz", "a.1.mha"),
        ("b", "b.nrrd", "b.nrrd"),
    ]
    assert [f.case for f in found.failures] == ["c", "d"]
    assert str(tmp_path / "reference" / "c.nii.gz") in found.failures[0].message
    assert "d.mha" in found.failures[1].message and "d.nrrd" in found.failures[1].message
    assert len(found.notes) == 1 and "extra.nii.gz" in found.notes[0]


def test_paths_may_be_strings(tmp_path):
    for folder in ("reference", "prediction"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.nii.gz").touch()
    reference, prediction = (tmp_path / folder / "a.nii.gz" for folder in ("reference", "prediction"))
    for given in ((reference, prediction), (reference.parent, prediction.parent)):
        assert pair_files(*map(str, given)).pairs == [Pair("a", reference, prediction)]
    with pytest.raises(DataError, match="absent does not exist"):
        pair_files(str(tmp_path / "absent"), str(prediction))


def test_folders_and_files_are_not_mixed_and_must_exist(tmp_path):
    (tmp_path / "empty").mkdir()
    file = tmp_path / "case.nii.gz"
    file.touch()
    with pytest.raises(DataError, match="give two folders or two files"):
        pair_files(file, tmp_path)
    with pytest.raises(DataError, match="absent does not exist"):
        pair_files(file, tmp_path / "absent")
    with pytest.raises(DataError, match="empty holds no segmentation"):
        pair_files(tmp_path, tmp_path / "empty")


def test_the_name_of_a_case_keeps_its_dots():
    assert case_name(Path("x/patient.1.NII.GZ")) == "patient.1"
    assert case_name(Path("patient.1.dcm")) == "patient.1"
