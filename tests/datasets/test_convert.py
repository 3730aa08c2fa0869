"""Converted releases, judged by nnU-Net's own integrity check."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

from nnunetv2_meddino.cli.main import main
from nnunetv2_meddino.datasets.convert import convert_dataset, split_cases
from nnunetv2_meddino.errors import DataError
from nnunetv2_meddino.planning.presets import load_overlay
from tests.datasets.releases import (
    RELEASES,
    SHAPE,
    all_labels,
    files,
    read,
    voxels,
    with_identity_header,
    write_amos,
)

# --- what is made ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RELEASES)
def test_converted_release_passes_nnunets_integrity_check(home: Path, name: str) -> None:
    write_release, folder_name, cases, tests, ending = RELEASES[name]
    write_release(home / "release")
    steps: list[tuple[int, int]] = []
    result = convert_dataset(name, home / "release", 218, on_case=lambda done, total: steps.append((done, total)))

    folder = home / "nnUNet_raw" / folder_name
    assert result.folder == folder
    assert files(folder / "imagesTr") == [f"{case}_0000{ending}" for case in cases]
    assert files(folder / "labelsTr") == [f"{case}{ending}" for case in cases]
    assert (files(folder / "imagesTs") if tests else []) == [f"{case}_0000{ending}" for case in tests]
    assert (folder / "imagesTs").exists() == bool(tests)
    verify_dataset_integrity(str(folder), num_processes=1)
    assert steps == [(n, 5) for n in range(1, 6)]
    assert (result.test_images, result.corrected_headers) == (len(tests), [])
    assert files(home / "nnUNet_raw") == [folder_name]


@pytest.mark.parametrize("name", RELEASES)
def test_dataset_json_declares_the_labels_of_the_plan_overlay(home: Path, name: str) -> None:
    RELEASES[name][0](home / "release")
    declared = read(convert_dataset(name, home / "release", 218).folder / "dataset.json")
    facts = load_overlay(name).dataset
    assert facts is not None
    assert declared["labels"] == facts.labels
    assert (declared["numTraining"], declared["channel_names"]) == (5, {"0": "CT"})
    reader = "NibabelIOWithReorient" if name in ("amos22", "kits23") else None
    assert declared.get("overwrite_image_reader_writer") == reader


@pytest.mark.parametrize("name", RELEASES)
def test_images_and_labels_of_a_case_belong_together(home: Path, name: str) -> None:
    write_release, _, cases, _, ending = RELEASES[name]
    write_release(home / "release")
    folder = convert_dataset(name, home / "release", 218).folder
    for case in cases:
        number = int(case.split("_")[1])
        expected = np.random.default_rng(number).normal(0, 100, SHAPE).astype(np.int16)  # drawn anew from the number
        np.testing.assert_array_equal(voxels(folder / "imagesTr" / f"{case}_0000{ending}"), expected)
        top = max(read(folder / "dataset.json")["labels"].values())
        np.testing.assert_array_equal(voxels(folder / "labelsTr" / f"{case}{ending}"), all_labels(top, number))


def test_mr_cases_of_amos_are_left_out(home: Path) -> None:
    write_amos(home / "release")
    folder = convert_dataset("amos22", home / "release", 218).folder
    numbers = [int(path.name[5:9]) for path in folder.glob("images*/*")]
    assert max(numbers) == 500


def test_files_are_linked_and_take_no_space(kits: Path) -> None:
    folder = convert_dataset("kits23", kits, 1).folder
    source = kits / "dataset" / "case_00007" / "imaging.nii.gz"
    assert (folder / "imagesTr" / "case_00007_0000.nii.gz").samefile(source)


def test_files_are_copied_where_links_are_impossible(kits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def other_device(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", other_device)
    folder = convert_dataset("kits23", kits, 1).folder
    source, copy = kits / "dataset/case_00007/imaging.nii.gz", folder / "imagesTr/case_00007_0000.nii.gz"
    assert copy.read_bytes() == source.read_bytes()
    assert not copy.samefile(source)
    verify_dataset_integrity(str(folder), num_processes=1)


def test_another_number_of_cases_than_published_is_said(kits: Path, caplog: pytest.LogCaptureFixture) -> None:
    convert_dataset("kits23", kits, 1)
    assert f"KiTS23 has 489 labelled cases, {kits} holds 5" in caplog.text


# --- the fold --------------------------------------------------------------------------------------------------------


def test_fold_holds_every_case_once_80_to_20(kits: Path) -> None:
    result = convert_dataset("kits23", kits, 1)
    assert result.splits_file == kits.parent / "nnUNet_preprocessed" / "Dataset001_KiTS23" / "splits_final.json"
    (fold,) = read(result.splits_file)
    assert sorted(fold["train"] + fold["val"]) == RELEASES["kits23"][2]
    assert (len(fold["train"]), len(fold["val"])) == (4, 1) == (result.training_cases, result.validation_cases)


@pytest.mark.parametrize(("cases", "validation"), [(300, 60), (30, 6), (489, 98), (131, 26)])
def test_split_of_the_published_numbers_of_cases(cases: int, validation: int) -> None:
    names = [f"case_{n:05d}" for n in range(cases)]
    fold = split_cases(names)
    assert len(fold["val"]) == validation
    assert set(fold["train"]) | set(fold["val"]) == set(names)
    assert len(fold["train"]) + len(fold["val"]) == cases
    assert fold == split_cases(names[::-1])
    assert fold["val"] == sorted(fold["val"]) != names[-validation:]


def test_split_never_changes() -> None:
    # pinned, so that two people who convert the same release train on the same cases
    assert split_cases([f"case_{n:02d}" for n in range(20)])["val"] == ["case_03", "case_08", "case_13", "case_16"]


def test_a_split_that_is_there_already_is_kept(kits: Path) -> None:
    folder = kits.parent / "nnUNet_preprocessed" / "Dataset001_KiTS23"
    folder.mkdir()
    (folder / "splits_final.json").write_text('[{"train": [], "val": []}]')
    with pytest.raises(DataError, match=r"splits_final\.json holds another split"):
        convert_dataset("kits23", kits, 1)
    assert files(kits.parent / "nnUNet_raw") == []


# --- the command -----------------------------------------------------------------------------------------------------


def test_command_says_what_was_made_and_what_comes_next(lits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_identity_header(next(lits.rglob("segmentation-28.nii")))
    assert main(["dataset", "lits", str(lits), "-d", "7"]) == 0
    home = lits.parent
    assert capsys.readouterr().out.splitlines() == [
        f"{home}/nnUNet_raw/Dataset007_LiTS",
        "5 labelled cases and 1 test images; fold 0 trains on 4 and validates on 1: "
        f"{home}/nnUNet_preprocessed/Dataset007_LiTS/splits_final.json",
        "label maps that got the header of their image: 1 (lits_028, ...)",
        "next: meddino plan -d 7 --overlay lits",
    ]


def test_command_reports_errors_in_one_line(kits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dataset", "lits", str(kits), "-d", "7"]) == 2
    assert capsys.readouterr().err.startswith("DataError: ")
