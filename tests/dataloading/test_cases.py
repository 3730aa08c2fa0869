"""Slices and positions of foreground from nnU-Net's files, little at a time."""

from __future__ import annotations

import numpy as np
import pytest
from batchgenerators.utilities.file_and_folder_operations import load_pickle

from nnunetv2_meddino.dataloading import cases as cases_module
from nnunetv2_meddino.dataloading.cases import PreprocessedCases
from nnunetv2_meddino.errors import DataError
from tests.dataloading.datasets import SHAPE, volume, write_dataset, write_numpy_dataset


@pytest.mark.parametrize("files", ["blosc2", "npz", "npy"])
def test_a_box_of_a_slice_is_that_of_the_volume_in_every_format(files, tmp_path):
    dataset = write_dataset(tmp_path) if files == "blosc2" else write_numpy_dataset(tmp_path, unpacked=files == "npy")
    cases = PreprocessedCases(dataset)
    assert cases.names == ["case_0", "case_1", "case_2"]
    for number in (2, 0, 1, 2):
        image, labels = volume(number)
        assert cases.shape(f"case_{number}") == SHAPE
        for z, rows, columns in ((0, (0, 40), (0, 48)), (4, (7, 21), (30, 31))):
            read_image, read_labels = cases.read(f"case_{number}", z, rows, columns)
            np.testing.assert_array_equal(read_image, image[:, z, slice(*rows), slice(*columns)])
            np.testing.assert_array_equal(read_labels, labels[0, z, slice(*rows), slice(*columns)])
            assert (read_image.dtype, read_labels.dtype) == (np.float32, np.int16)


def test_positions_of_foreground_are_those_of_the_file_in_an_eighth_of_its_bytes(tmp_path):
    cases = PreprocessedCases(write_dataset(tmp_path, classes=(1, 2, 3, [1, 2])))
    found = cases.foreground("case_1")
    assert {label for label, voxels in found.items() if not len(voxels)} == {3}  # which is nowhere
    locations = load_pickle(str(tmp_path / "case_1.pkl"))["class_locations"]
    for label, voxels in found.items():
        expected = np.reshape(locations[label], (-1, 4))
        np.testing.assert_array_equal(np.stack(np.unravel_index(voxels, SHAPE), 1), expected[:, 1:])
        assert voxels.nbytes * 8 == expected.nbytes


def test_positions_are_read_when_they_are_asked_for_and_forgotten_when_they_are_too_many(tmp_path, monkeypatch):
    cases = PreprocessedCases(write_dataset(tmp_path))
    one = sum(voxels.nbytes for voxels in PreprocessedCases(cases.dataset).foreground("case_0").values())
    monkeypatch.setattr(cases_module, "FOREGROUND_BYTES", 2 * one)
    read: list[str] = []
    monkeypatch.setattr(cases_module, "load_pickle", lambda file: read.append(file[-5:-4]) or load_pickle(file))
    for name in cases.names:
        cases.read(name, 0, (0, 1), (0, 1))
    assert read == []
    for number in "010201":  # 2 takes the place of 1, which was asked for longest ago
        cases.foreground(f"case_{number}")
    assert "".join(read) == "0121"


def test_no_more_files_are_open_than_are_wanted(tmp_path, monkeypatch):
    monkeypatch.setattr(cases_module, "OPEN_CASES", 2)
    cases = PreprocessedCases(write_dataset(tmp_path))
    for name in cases.names * 2:
        cases.shape(name)
        assert len(cases._open) <= 2
    packed = PreprocessedCases(write_numpy_dataset(tmp_path / "packed", unpacked=False))
    for name in packed.names:
        packed.shape(name)
    assert list(packed._open) == ["case_2"]  # whole volumes


@pytest.mark.parametrize(
    ("file", "content"),
    [("case_1.b2nd", None), ("case_1_seg.b2nd", b""), ("case_1.b2nd", b"half"), ("case_1.pkl", b"half")],
)
def test_a_damaged_case_is_named_with_what_to_do(tmp_path, file, content):
    cases = PreprocessedCases(write_dataset(tmp_path))
    (tmp_path / file).unlink() if content is None else (tmp_path / file).write_bytes(content)
    with pytest.raises(DataError, match="case_1 in .* nnUNetv2_preprocess"):
        cases.foreground("case_1")
    cases.foreground("case_0")


def test_positions_outside_the_volume_are_an_error(tmp_path):
    write_dataset(tmp_path / "large", shape=(5, 40, 60))
    dataset = write_dataset(tmp_path / "small", shape=(5, 20, 60))
    (tmp_path / "large/case_0.pkl").rename(tmp_path / "small/case_0.pkl")
    with pytest.raises(DataError, match=r"case_0 in \S*small cannot be read \(ValueError"):
        PreprocessedCases(dataset).foreground("case_0")
