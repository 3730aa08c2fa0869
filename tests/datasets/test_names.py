"""Names that stand for two images."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from nnunetv2_meddino.datasets.convert import convert_dataset
from nnunetv2_meddino.datasets.layouts import LAYOUTS, find_release
from nnunetv2_meddino.datasets.names import check_names, shared_names
from nnunetv2_meddino.errors import DataError
from tests.datasets.releases import files, write_amos, write_case


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A dataset in which one test image has a training image's name, and one is a copy of a training image."""
    for path, content in {
        "imagesTr/a_0000.nii": "1",
        "imagesTr/b_0000.nii": "2",
        "imagesTs/a_0000.nii": "3",
        "imagesTs/b_0000.nii": "2",
        "imagesTs/c_0000.nii": "4",
    }.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(content)
    return tmp_path


def test_names_of_other_images_are_told_and_copies_are_not(folder: Path) -> None:
    assert shared_names(folder / "imagesTs") == ["a_0000.nii"]
    assert shared_names(folder / "imagesTr") == []
    with pytest.raises(DataError, match=r"1 images in .*imagesTs, a_0000\.nii among them.*rename them"):
        check_names(folder / "imagesTs")
    shutil.rmtree(folder / "imagesTr")
    check_names(folder / "imagesTs")


def test_a_data_set_that_an_earlier_version_made_is_recognised(lits: Path) -> None:
    made = convert_dataset("lits", lits, 1).folder
    (made / "imagesTs" / "lits_test_000_0000.nii").rename(made / "imagesTs" / "lits_000_0000.nii")
    with pytest.raises(DataError, match="lits_000_0000.nii among them"):
        convert_dataset("lits", lits, 1)


def test_what_an_earlier_version_left_unfinished_is_not_kept_under_its_name(lits: Path) -> None:
    partial = lits.parent / "nnUNet_raw" / ".Dataset001_LiTS.partial"
    (partial / "imagesTs").mkdir(parents=True)
    shutil.copy2(next(lits.rglob("test-volume-0.nii")), partial / "imagesTs" / "lits_000_0000.nii")
    made = convert_dataset("lits", lits, 1).folder
    assert files(made / "imagesTs") == ["lits_test_000_0000.nii"]


def test_a_release_whose_test_images_have_the_numbers_of_cases_is_refused(home: Path) -> None:
    write_amos(home / "release")
    write_case(home / "release" / "imagesTs" / "amos_0004.nii.gz", None, top=1)
    with pytest.raises(
        DataError, match=r"amos_0004\.nii\.gz and the test image .*amos_0004\.nii\.gz have the same number"
    ):
        find_release(LAYOUTS["amos22"], home / "release")
