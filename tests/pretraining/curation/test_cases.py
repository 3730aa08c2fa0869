"""What a folder holds of a source: case ids, files that no reader takes, and files that are odd in themselves."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from nnunetv2_meddino.imaging.dicom_files import group, identity
from pretraining.corpus.case_ids import listed_ids
from pretraining.corpus.storage import StoreSettings
from pretraining.curation.cases import survey
from pretraining.curation.collections import own_collection
from pretraining.curation.exclusions import ExclusionList, find_images
from pretraining.curation.gather import CollectionFolder, curate
from pretraining.curation.merge import merge
from pretraining.curation.readers.read import UNKNOWN, read_volume
from pretraining.curation.volume import Rejected
from pretraining.modality import Modality
from tests.pretraining.curation.awkward import PLAIN, write_dicom, write_nifti
from tests.pretraining.curation.folders import curated, phantom, source, write_volume

OWN = own_collection("our_ct")


def cases(folder: Path, *patterns: str) -> list[str]:
    return [case for case, _ in survey(source("one", images=patterns) if patterns else OWN, folder).cases]


def plain(names: list[str]) -> list[str]:
    return sorted(re.sub("-[0-9a-f]{8}$", "", name) for name in names)


def test_a_source_of_ones_own_names_cases_by_their_paths(tmp_path: Path) -> None:
    for name in ("a.nii.gz", "sub/b.nrrd", "sub/deep/c.MHA", "sub/d.nhdr"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    write_dicom(tmp_path / "patient 1" / "ct.old", PLAIN[:2])
    (tmp_path / "sub" / "notes.txt").touch()
    assert cases(tmp_path) == ["a", "patient 1_ct.old", "sub_b", "sub_d", "sub_deep_c"]
    assert cases(tmp_path / "patient 1" / "ct.old") == ["our_ct"], "the folder itself is the series"
    assert OWN.licence == "unknown"
    assert OWN.modality == Modality.CT


def test_ids_of_ones_own_are_unique_and_stay(tmp_path: Path) -> None:
    for name in ("x.nii.gz", "x.nrrd", "a/b.nii", "a_b.nii", "c.nii"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    names = cases(tmp_path)
    assert len(set(names)) == 5
    assert plain(names) == ["a_b", "a_b", "c", "x", "x"]
    (tmp_path / "d.nii").touch()
    assert set(cases(tmp_path)) == {*names, "d"}, "a new file changes no other's id"
    shutil.move(tmp_path, moved := tmp_path.with_name("moved"))
    assert set(cases(moved)) == {*names, "d"}, "nor does the place of the folder"


def test_a_series_that_was_copied_is_two_cases(tmp_path: Path) -> None:
    write_dicom(tmp_path / "patient1" / "a", PLAIN[:2])
    shutil.copytree(tmp_path / "patient1" / "a", tmp_path / "patient1" / "b")
    write_dicom(tmp_path / "patient1" / "c", PLAIN[:2])
    names = cases(tmp_path, r"/(?P<case>patient\d+)/")
    assert len(set(names)) == 3
    assert plain(names) == ["patient1"] * 3
    assert all("patient1" in listed_ids(name, {}) for name in names)


def test_series_of_nobody_are_grouped_by_folder_study_orientation_and_grid(tmp_path: Path) -> None:
    def change(i: int, header: Any) -> None:
        header.SeriesInstanceUID = ""
        header.StudyInstanceUID = "1.2" if i < 12 else "1.3"
        if i < 4:
            header.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
        elif i < 8:
            header.PixelSpacing = [0.5, 0.5]
        elif i < 16:
            header.PixelSpacing = [1, 1 + i % 2 * 1e-4]  # rounding

    write_dicom(tmp_path, PLAIN, change)
    images = [(path, own) for path in sorted(tmp_path.iterdir()) if (own := identity(path))]
    groups = dict(group(images))
    assert sorted(map(len, groups.values())) == [4, 4, 4, 8]
    assert sorted(path for files in groups.values() for path in files) == sorted(tmp_path.iterdir())
    names = cases(tmp_path)
    assert len(set(names)) == 4
    assert names == cases(tmp_path)


def test_what_a_pattern_names_and_no_reader_takes_is_refused(tmp_path: Path) -> None:
    for name in ("a.mgz", "sub/b.img", "sub/b.hdr", "sub/readme.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"content")
    (tmp_path / "c.nii.gz").symlink_to("nowhere")
    os.mkfifo(tmp_path / "d.nii.gz")
    (tmp_path / "e.nii.gz").mkdir()
    found = survey(source("one", images=(r"/(?P<case>[^/]+)\.(mgz|img|hdr|nii\.gz)$",)), tmp_path)
    assert plain([case for case, _ in found.cases]) == ["a", "b", "b", "c", "d"]
    assert [path.name for path in found.others] == ["readme.txt"]
    messages = {}
    for case, candidate in found.cases:
        assert candidate.kind == UNKNOWN
        with pytest.raises(Rejected) as caught:
            read_volume(candidate, Modality.CT)
        assert caught.value.reason == "unreadable"
        messages[case] = caught.value.message
    assert "format" in messages["a"]
    assert "broken link" in messages["c"]
    assert "not a regular file" in messages["d"]


@pytest.mark.parametrize(
    "pattern", [r"/(?P<case>patient\d+)(/|$)", r"/(?P<case>patient\d+)/", r"/(?P<case>patient\d+)$"]
)
def test_a_folder_that_is_named_is_refused_once_unless_something_in_it_is_read(pattern: str, tmp_path: Path) -> None:
    write_dicom(tmp_path / "patient1", PLAIN[:2])
    (tmp_path / "patient1" / "list.csv").touch()
    for name in ("scan.mgz", "other.mgz"):
        (tmp_path / "patient2").mkdir(exist_ok=True)
        (tmp_path / "patient2" / name).touch()
    found = survey(source("one", images=(pattern,)), tmp_path)
    assert [(case, candidate.kind, len(candidate.files)) for case, candidate in found.cases] == [
        ("patient1", "dicom", 2),
        ("patient2", UNKNOWN, 2),
    ]
    assert [path.name for path in found.others] == ["list.csv"]


def test_voxels_of_detached_headers_are_no_cases_and_are_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.mhd").write_text("NDims = 3\nElementDataFile = a.raw\n")
    (tmp_path / "a.raw").write_bytes(b"voxels")
    found = survey(source("one", images=(r"/(?P<case>[^/]+)\.(mhd|raw)$",)), tmp_path)
    assert [case for case, _ in found.cases] == ["a"]
    assert found.others == []


def test_a_folder_that_cannot_be_listed_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_nifti(tmp_path / "data" / "a.nii.gz", PLAIN)
    (tmp_path / "data" / "closed").mkdir()
    scandir = os.scandir

    def refuse(path: Any = ".") -> Any:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    content = curated(tmp_path / "corpus", ("one", tmp_path / "data"))
    assert content["passed_over"]["one"]["unlisted_folders"] == ["closed"]
    assert content["volumes"] == 1


@pytest.mark.parametrize("names", [("a.nii.gz", "b.nii.gz"), ("series/1", "series/2")])
def test_files_that_may_not_be_opened_are_refused_and_tried_again(
    names: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second time they can be read, and nothing else about them has changed."""
    folder = tmp_path / "data"
    if names[0].startswith("series"):
        write_dicom(folder / "series", PLAIN)
    else:
        for seed, name in enumerate(names):
            write_volume(phantom(seed), folder / name)
    closed = {path for path in folder.rglob("*") if path.name in ("a.nii.gz", "image003.dcm")}
    assert len(closed) == 1
    opened = open
    path_open = Path.open

    def refuse(path: Path, *arguments: Any, **options: Any) -> Any:
        if path in closed:
            raise PermissionError(13, "Permission denied", str(path))
        return path_open(path, *arguments, **options)

    def refuse_name(path: Any, *arguments: Any, **options: Any) -> Any:
        if not isinstance(path, int) and Path(path) in closed:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr("builtins.open", refuse_name)
    corpus = tmp_path / "corpus"
    every = source("one", images=(r"/(?P<case>[^/]+)\.nii\.gz$", r"/(?P<case>series)/?"))
    curate([CollectionFolder(every, folder)], corpus, settings=StoreSettings())
    merge(corpus)
    rejected = [json.loads(line) for line in (corpus / "rejected.jsonl").read_text().splitlines()]
    assert "unreadable" in {line["reason"] for line in rejected}
    monkeypatch.undo()
    curate([CollectionFolder(every, folder)], corpus, settings=StoreSettings())
    assert merge(corpus)["counts"]["rejected"] == 0


def test_a_file_that_vanishes_meanwhile_is_refused(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii.gz", PLAIN)
    write_dicom(tmp_path / "b", PLAIN[:2])
    found = survey(OWN, tmp_path).cases
    shutil.rmtree(tmp_path)
    for _, candidate in found:
        with pytest.raises(Rejected) as caught:
            read_volume(candidate, Modality.CT)
        assert caught.value.reason == "unreadable"


def test_names_that_are_no_text_or_too_long_end_nothing(tmp_path: Path) -> None:
    odd = os.fsdecode(b"caf\xe9")
    long = "/".join(["\N{LATIN SMALL LETTER E WITH ACUTE}" * 60] * 3)
    write_nifti(tmp_path / "data" / f"{odd}.nii.gz", PLAIN)
    write_volume(phantom(1), tmp_path / "data" / long / "scan.nii.gz")
    write_volume(phantom(2), tmp_path / "data" / long / "other.nii.gz")
    (tmp_path / "data" / f"{odd}.mha").write_text("no image")
    curate([CollectionFolder(OWN, tmp_path / "data")], tmp_path / "corpus", settings=StoreSettings())
    content = merge(tmp_path / "corpus")
    assert content["counts"] == {"found": 4, "curated": 3, "rejected": 1, "duplicates": 0, "excluded": 0}
    (line,) = map(json.loads, (tmp_path / "corpus" / "rejected.jsonl").read_text().splitlines())
    assert line["files"] == ["caf\\xe9.mha"]
    assert line["message"].startswith("caf\\xe9.mha: ")


def test_images_of_excluded_cases_that_no_reader_takes_are_told(tmp_path: Path) -> None:
    write_volume(phantom(1), tmp_path / "images" / "case_1_0000.nii.gz")
    (tmp_path / "images" / "case_2.mgz").write_bytes(b"content")
    (tmp_path / "images" / "case_1.json").write_text("{}")
    write_volume(phantom(1), tmp_path / "data" / "scan.nii.gz")
    write_volume(phantom(2), tmp_path / "data" / "other.nii.gz")
    listed = ExclusionList("list.txt", "", None, ("case_1", "case_2", "case_3"), tmp_path / "images")
    assert [len(find_images(listed)[case]) for case in listed.cases] == [2, 1, 0]
    report = curated(tmp_path / "corpus", ("one", tmp_path / "data"), exclusions=[listed])["exclusions"]
    assert report["by_content"] == 1
    assert [(image["case"], image["reason"]) for image in report["images_unreadable"]] == [("case_2", "unreadable")]
    assert report["lists"][0]["images_missing"] == ["case_3"]
