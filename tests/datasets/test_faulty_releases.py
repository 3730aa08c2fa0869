"""Releases with faults: what is corrected, what is refused, and going on after the repair."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

from nnunetv2_meddino.datasets import convert
from nnunetv2_meddino.datasets.convert import ConversionResult, convert_dataset
from nnunetv2_meddino.errors import ConfigurationError, DataError
from tests.datasets.releases import (
    RELEASES,
    SAGITTAL,
    SHAPE,
    files,
    voxels,
    with_identity_header,
    write,
    write_case,
)

# --- headers ---------------------------------------------------------------------------------------------------------


def test_wrong_headers_of_lits_label_maps_are_replaced_by_the_images(lits: Path) -> None:
    (faulty,) = lits.rglob("segmentation-28.nii")
    with_identity_header(faulty)
    before = faulty.read_bytes()
    result = convert_dataset("lits", lits, 1)
    assert result.corrected_headers == ["lits_028"]
    assert faulty.read_bytes() == before
    image, labels = (
        sitk.ReadImage(str(result.folder / name)) for name in ("imagesTr/lits_028_0000.nii", "labelsTr/lits_028.nii")
    )
    for get in ("GetSpacing", "GetOrigin", "GetDirection", "GetSize"):
        assert getattr(labels, get)() == getattr(image, get)()
    np.testing.assert_array_equal(sitk.GetArrayFromImage(labels), voxels(faulty))
    verify_dataset_integrity(str(result.folder), num_processes=1)


def test_a_second_run_keeps_corrected_label_maps_and_still_reports_them(
    lits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_identity_header(next(lits.rglob("segmentation-28.nii")))
    labels = next(lits.rglob("segmentation-130.nii"))
    good = labels.read_bytes()
    labels.write_bytes(good[:-30])
    with pytest.raises(DataError, match=r"segmentation-130\.nii cannot be read"):
        convert_dataset("lits", lits, 1)
    labels.write_bytes(good)
    checked = count_checked(monkeypatch)
    assert convert_dataset("lits", lits, 1).corrected_headers == ["lits_028"]
    assert [path.name for path in checked] == ["segmentation-130.nii"]


def test_a_label_map_that_was_linked_and_is_corrected_later_is_not_changed_in_the_release(lits: Path) -> None:
    broken, linked = next(lits.rglob("segmentation-130.nii")), next(lits.rglob("segmentation-100.nii"))
    good, before = broken.read_bytes(), linked.read_bytes()
    broken.write_bytes(good[:-30])
    with pytest.raises(DataError, match=r"segmentation-130\.nii cannot be read"):
        convert_dataset("lits", lits, 1)
    assert linked.stat().st_nlink == 2
    broken.write_bytes(good)
    image = next(lits.rglob("volume-100.nii"))
    content = image.read_bytes()
    image.unlink()  # a download takes the place of the file, which the dataset still has
    image.write_bytes(content)
    with_identity_header(image)
    assert convert_dataset("lits", lits, 1).corrected_headers == ["lits_100"]
    assert linked.read_bytes() == before


def test_a_label_map_of_another_size_is_refused_for_lits_too(lits: Path) -> None:
    (faulty,) = lits.rglob("segmentation-28.nii")
    write(faulty, np.zeros((4, 6, 7), np.uint8))
    with pytest.raises(DataError, match=r"segmentation-28\.nii is not on the grid .*volume-28\.nii.*\(4, 6, 7\)"):
        convert_dataset("lits", lits, 1)


def test_a_label_map_on_another_grid_is_refused(kits: Path) -> None:
    with_identity_header(kits / "dataset/case_00007/segmentation.nii.gz")
    with pytest.raises(DataError, match=r"case_00007/segmentation\.nii\.gz is not on the grid .*spacing"):
        convert_dataset("kits23", kits, 1)


# --- what is refused, and going on afterwards ------------------------------------------------------------------------


def count_checked(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return a list to which every label map is added that is read from now on."""
    checked: list[Path] = []
    original = convert.read_segmentation

    def counted(path: Path) -> Any:
        checked.append(path)
        return original(path)

    monkeypatch.setattr(convert, "read_segmentation", counted)
    return checked


def run_again_after(kits: Path, spoil: Callable[[Path], object], message: str) -> ConversionResult:
    """Spoil a label map, see the message, repair it, and convert again."""
    labels = kits / "dataset/case_00299/segmentation.nii.gz"
    good = labels.read_bytes()
    spoil(labels)
    with pytest.raises(DataError, match=message):
        convert_dataset("kits23", kits, 1)
    assert not (kits.parent / "nnUNet_raw" / "Dataset001_KiTS23").exists()
    labels.unlink()
    labels.write_bytes(good)
    return convert_dataset("kits23", kits, 1)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda path: write(path, np.full(SHAPE, 4, np.uint8), SAGITTAL),
            r"holds the labels \[4\]; KiTS23 declares 0 to 3",
        ),
        (lambda path: write(path, np.full(SHAPE, -1, np.int16), SAGITTAL), r"holds the labels \[-1\]"),
        (lambda path: write(path, np.full(SHAPE, 0.5, np.float32), SAGITTAL), "holds the value 0.5"),
        (lambda path: path.write_bytes(path.read_bytes()[:-30]), "cannot be read as a segmentation"),
    ],
)
def test_faulty_label_maps_are_named_and_the_rest_is_kept(
    kits: Path, spoil: Callable[[Path], object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = rf"1 of 5 cases cannot be converted:\n .*case_00299/segmentation\.nii\.gz {message}"
    checked = count_checked(monkeypatch)
    result = run_again_after(kits, spoil, message)
    assert [path.parent.name for path in checked] == [
        *RELEASES["kits23"][2],
        "case_00299",
    ]  # the second run checks only what was repaired
    verify_dataset_integrity(str(result.folder), num_processes=1)


def test_a_replaced_source_is_checked_and_placed_anew(kits: Path) -> None:
    (kits / "dataset/case_00588/segmentation.nii.gz").rename(kits / "away")
    with pytest.raises(DataError, match=r"case_00588/imaging\.nii\.gz has no label map"):
        convert_dataset("kits23", kits, 1)
    (kits / "away").rename(kits / "dataset/case_00588/segmentation.nii.gz")
    spoiled = kits / "dataset/case_00299/segmentation.nii.gz"
    write(spoiled, np.full(SHAPE, 9, np.uint8), SAGITTAL)
    with pytest.raises(DataError, match="1 of 5 cases"):
        convert_dataset("kits23", kits, 1)
    for path, value in ((spoiled, 1), (kits / "dataset/case_00007/segmentation.nii.gz", 2)):
        path.unlink()
        write(path, np.full(SHAPE, value, np.uint8), SAGITTAL)
        os.utime(path, (1_000_000_000, 1_000_000_000))
    folder = convert_dataset("kits23", kits, 1).folder
    assert set(voxels(folder / "labelsTr" / "case_00007.nii.gz").ravel()) == {2}


def test_cases_that_left_the_release_leave_the_data_set(kits: Path) -> None:
    write(kits / "dataset/case_00299/segmentation.nii.gz", np.full(SHAPE, 9, np.uint8), SAGITTAL)
    with pytest.raises(DataError, match="1 of 5 cases"):
        convert_dataset("kits23", kits, 1)
    for number in ("00299", "00588"):
        (kits / f"dataset/case_{number}").rename(kits / f"dataset/set_aside_{number}")
    folder = convert_dataset("kits23", kits, 1).folder
    assert files(folder / "labelsTr") == ["case_00000.nii.gz", "case_00007.nii.gz", "case_00400.nii.gz"]
    verify_dataset_integrity(str(folder), num_processes=1)


def test_an_existing_data_set_is_left_as_it_is(kits: Path) -> None:
    folder = convert_dataset("kits23", kits, 1).folder
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(DataError, match="Dataset001_KiTS23 exists and is left as it is"):
        convert_dataset("kits23", kits, 1)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.parametrize("folder", ["nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"])
def test_an_id_that_is_taken_is_refused(kits: Path, folder: str) -> None:
    (kits.parent / folder / "Dataset001_Mine").mkdir()
    with pytest.raises(DataError, match="id 1 belongs to Dataset001_Mine"):
        convert_dataset("kits23", kits, 1)


@pytest.mark.parametrize("name", RELEASES)
def test_a_folder_without_the_release_is_refused_with_what_is_expected(home: Path, name: str) -> None:
    other = "lits" if name != "lits" else "btcv"
    RELEASES[other][0](home / "release")
    example = {"amos22": "amos_0001", "btcv": "img0001", "kits23": "imaging", "lits": "volume-0"}[name]
    with pytest.raises(DataError, match=rf"release holds no case of .*such as .*{example}"):
        convert_dataset(name, home / "release", 218)
    assert files(home / "nnUNet_raw") == []


def test_a_case_that_is_there_twice_is_refused(lits: Path) -> None:
    write_case(lits / "again" / "volume-2.nii", None, top=2)
    with pytest.raises(DataError, match=r"several files for one case: .*again/volume-2\.nii, .*Batch 1/volume-2\.nii"):
        convert_dataset("lits", lits, 1)


def test_a_label_map_without_an_image_is_refused(kits: Path) -> None:
    (kits / "dataset/case_00400/imaging.nii.gz").unlink()
    with pytest.raises(DataError, match=r"case_00400/segmentation\.nii\.gz has no image"):
        convert_dataset("kits23", kits, 1)


def test_many_problems_are_counted(home: Path) -> None:
    for n in range(13):
        write(home / f"release/case_{n:05d}/imaging.nii.gz", np.zeros(SHAPE, np.int16))
    with pytest.raises(DataError, match=r"case_00009/imaging\.nii\.gz has no label map\n  and 3 more"):
        convert_dataset("kits23", home / "release", 1)


def test_settings_that_cannot_be_used_are_refused(kits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="choose one of amos22, btcv, kits23, lits"):
        convert_dataset("acdc", kits, 1)
    for number in (0, 1000):
        with pytest.raises(ConfigurationError, match=f"1 to 999, not {number}"):
            convert_dataset("kits23", kits, number)
    with pytest.raises(DataError, match="absent is not a folder"):
        convert_dataset("kits23", kits / "absent", 1)
    monkeypatch.delenv("nnUNet_preprocessed")
    with pytest.raises(ConfigurationError, match="Not set: nnUNet_preprocessed"):
        convert_dataset("kits23", kits, 1)
