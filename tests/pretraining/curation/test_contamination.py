"""Whether a corpus holds a scan."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from nnunetv2_meddino.errors import DataError
from pretraining.corpus import format as corpus_format
from pretraining.corpus.storage import StoreSettings
from pretraining.curation.contamination import SeenScans
from pretraining.curation.exclusions import read_exclusions
from pretraining.curation.gather import CollectionFolder, curate
from pretraining.curation.merge import merge
from pretraining.modality import Modality
from tests.pretraining.curation.awkward import PLAIN, write_dicom
from tests.pretraining.curation.folders import curated, phantom, source, write_volume

SHAPE = (20, 80, 72)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Source ``one`` with case_0 to case_2, ``two`` with a copy of case_1; case_0 is excluded from the corpus."""
    root = tmp_path_factory.mktemp("seen")
    for seed in range(3):
        write_volume(phantom(seed, SHAPE), root / "one" / f"case_{seed}.nii.gz")
    write_volume(phantom(1, SHAPE), root / "two" / "renamed.mha")
    write_volume(phantom(50, SHAPE), root / "new.nii.gz")
    (root / "broken.nii.gz").write_text("broken")
    (root / "list.txt").write_text("case_0\n")
    curated(
        root / "corpus",
        *((name, root / name) for name in ("one", "two")),
        exclusions=[read_exclusions(root / "list.txt", None, None)],
    )
    return root


def test_exact_and_near_copies_are_seen_and_others_are_not(data, tmp_path):
    scans = SeenScans(data / "corpus")
    (match,) = scans.find(data / "one" / "case_1.nii.gz")
    assert (match.name, match.kind, match.similarity) == ("one/case_1", "exact", 1.0)
    assert scans.names(match) == ["one/case_1", "two/renamed"]
    part = write_volume(np.ascontiguousarray(phantom(2, SHAPE)[4:]), tmp_path / "part.nrrd")
    (match,) = scans.find(part)
    assert (match.name, match.kind) == ("one/case_2", "near")
    assert scans.find(data / "one" / "case_0.nii.gz") == [], "it was excluded"
    assert scans.find(data / "new.nii.gz") == []
    assert SeenScans(data / "corpus").find(part) == [match]


def test_what_cannot_be_compared_is_said(data, tmp_path):
    scans = SeenScans(data / "corpus")
    with pytest.raises(DataError, match=r"broken.nii.gz cannot be compared"):
        scans.find(data / "broken.nii.gz")
    for path in (data / "list.txt", data / "absent.nii.gz"):
        with pytest.raises(DataError, match="not an image"):
            scans.find(path)
    with pytest.raises(DataError, match="no finished corpus"):
        SeenScans(tmp_path).find(data / "new.nii.gz")


def test_tables_are_read_once_for_many_images(data, monkeypatch):
    reads: list[Path] = []
    original = corpus_format.read_table
    monkeypatch.setattr(corpus_format, "read_table", lambda path, *rest: reads.append(path) or original(path, *rest))
    scans = SeenScans(data / "corpus")
    for seed in range(3):
        scans.find(data / "one" / f"case_{seed}.nii.gz")
    assert len(reads) == 1


def test_a_file_does_not_make_its_folder_be_searched(data, monkeypatch):
    def searched(folder):
        raise AssertionError(f"{folder} was searched")

    scans = SeenScans(data / "corpus")
    monkeypatch.setattr(os, "scandir", searched)
    monkeypatch.setattr(os, "listdir", searched)
    assert scans.find(data / "one" / "case_2.nii.gz")


def _curate(root: Path, **fields: object) -> None:
    curate([CollectionFolder(source("one", **fields), root / "data")], root / "c", settings=StoreSettings())
    assert merge(root / "c")["volumes"] == 1


def test_a_dicom_series_is_found_by_its_folder_and_by_a_file_of_it(tmp_path):
    write_dicom(tmp_path / "data" / "patient", PLAIN)
    shutil.copytree(tmp_path / "data" / "patient", tmp_path / "bench" / "series")
    write_volume(phantom(0), tmp_path / "bench" / "series" / "other.nii.gz")
    _curate(tmp_path, images=(r"/(?P<case>patient)$",))
    first = min((tmp_path / "bench" / "series").glob("*[!z]"))
    assert [match.kind for match in SeenScans(tmp_path / "c").find(first)] == ["exact"]
    assert [match.kind for match in SeenScans(tmp_path / "c").find(tmp_path / "bench")] == ["exact"]


def test_a_corpus_of_mr_is_compared_as_mr(tmp_path):
    """Read as CT the image would be refused: its values are no Hounsfield units."""
    voxels = (phantom(3) + 1024).clip(0).astype(np.int16)
    write_volume(voxels, tmp_path / "data" / "a.nii.gz")
    _curate(tmp_path, modality=Modality.MR)
    (match,) = SeenScans(tmp_path / "c").find(write_volume(voxels, tmp_path / "b.nrrd"))
    assert (match.name, match.kind) == ("one/a", "exact")
    assert SeenScans(tmp_path / "c").names(match) == ["one/a"]
