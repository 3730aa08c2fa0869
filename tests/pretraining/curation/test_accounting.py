"""Nothing disappears: every file of a folder with inputs of every kind is part of one outcome that is reported."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import nibabel
import numpy as np
import pytest

from pretraining.cli.main import main
from pretraining.corpus.storage import StoreSettings
from pretraining.curation.cases import survey
from pretraining.curation.collections import own_collection
from pretraining.curation.gather import CollectionFolder, curate
from pretraining.curation.merge import merge
from pretraining.curation.readers.read import Candidate, input_files
from pretraining.modality import Modality
from tests.imaging.test_text_headers import AS_SIMPLEITK, VALID, WRONG
from tests.pretraining.curation.awkward import KINDS, PLAIN, write_dicom, write_nifti
from tests.pretraining.curation.folders import source

CT_KINDS = {name: kind for name, kind in KINDS.items() if kind.modality == Modality.CT}
HEADERS = {
    **{f"valid_{name}": (None, files) for name, files in (AS_SIMPLEITK | VALID).items()},
    **{f"wrong_{name}": wrong for name, wrong in WRONG.items()},
}
NO_IMAGE = {"volume_mgz": "unreadable", "pair_img": "unreadable", "link_to_nothing": "unreadable", "pipe": "unreadable",
            "link_to_itself": "unreadable", "text": "unreadable", "no_utf_8": "truncated"}  # fmt: skip
UNUSED = Counter({".raw": 13, ".gz": 1})
"""Planes that short lists and patterns leave out, and the files of headers whose byte skip makes no sense."""

PASSED_OVER = {"unnamed/label.nii.gz", "unnamed/readme.txt", "unnamed/list.csv"}
"""With the images of ``unnamed/series``."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each input, named after what it is."""
    root = tmp_path_factory.mktemp("accounting") / "data"
    for name, kind in CT_KINDS.items():
        (root / name).mkdir(parents=True)
        kind.make(root / name)
    for name, (_, files) in HEADERS.items():
        (root / name).mkdir()
        for file, content in files.items():
            (root / name / (file.removeprefix("../") or name)).write_bytes(content.replace(b"../", b""))
    for name in NO_IMAGE:
        (root / name).mkdir()
    nibabel.save(nibabel.MGHImage(PLAIN.T.astype(np.float32), np.eye(4)), root / "volume_mgz" / "scan.mgz")
    nibabel.save(nibabel.Nifti1Pair(PLAIN.T, np.eye(4)), root / "pair_img" / "scan.img")
    (root / "link_to_nothing" / "scan.nii.gz").symlink_to("nowhere.nii.gz")
    (root / "link_to_itself" / "scan.nii.gz").symlink_to("scan.nii.gz")
    os.mkfifo(root / "pipe" / "scan.nii.gz")
    (root / "text" / "notes.txt").write_text("a patient without a scan")
    (root / "no_utf_8" / os.fsdecode(b"caf\xe9.nii.gz")).write_bytes(b"")
    (root / "dicom" / "list.csv").write_text("image000.dcm")  # beside what is read
    (root / "dicom" / "empty.nii.gz").mkdir()
    write_dicom(root / "unnamed" / "series", PLAIN)
    write_nifti(root / "unnamed" / "label.nii.gz", (PLAIN > 0).astype(np.uint8))
    (root / "unnamed" / "readme.txt").write_text("not an image")
    (root / "unnamed" / "list.csv").write_text("series")
    return root


def _files(folder: Path) -> set[Path]:
    return {Path(parent) / name for parent, _, names in os.walk(folder) for name in names}


def _named_by_records(corpus: Path, folder: Path) -> list[Path]:
    """The files of all records, with the voxels of detached headers; names that are no UTF-8 are turned back."""
    records = [json.loads(path.read_text()) for path in (corpus / "parts" / "records").rglob("*.json")]
    named = [folder / os.fsdecode(name.replace("\\xe9", "\udce9")) for own in records for name in own["files"]]
    kinds = {".nrrd": "nrrd", ".nhdr": "nrrd", ".mhd": "metaimage", ".mha": "metaimage"}
    headers = [path for path in named if path.suffix.lower() in kinds]
    voxels = {file for path in headers for file in input_files(Candidate(path, (path,), kinds[path.suffix.lower()]))}
    return [*named, *(voxels - set(headers))]


def test_every_input_ends_as_it_should_and_is_counted_once(folder: Path, tmp_path: Path) -> None:
    """Case ids are the names of the inputs."""
    named = source("named", images=(r"^/(?P<case>(?!unnamed)[^/]+)/",))
    corpus = tmp_path / "corpus"
    curate([CollectionFolder(named, folder)], corpus, settings=StoreSettings())
    content = merge(corpus)
    counts = content["counts"]
    reasons = {name: kind.reason for name, kind in CT_KINDS.items()} | {name: own for name, (own, _) in HEADERS.items()}
    expected = {name: reason for name, reason in (reasons | NO_IMAGE).items() if reason}
    rejected = [json.loads(line) for line in (corpus / "rejected.jsonl").read_text().splitlines()]
    assert {line["case"]: line["reason"] for line in rejected} == expected
    assert counts["found"] == len(reasons) + len(NO_IMAGE)
    assert counts["found"] == counts["curated"] + counts["rejected"] + counts["duplicates"] + counts["excluded"]
    assert counts["rejected"] == len(expected)
    assert content["passed_over"]["named"] == {
        "dicom_folders": ["unnamed/series"],
        "images": 1,
        "other_files": {**UNUSED, ".csv": 2, ".txt": 1},
        "unlisted_folders": [],
    }
    passed_over = {folder / name for name in PASSED_OVER} | set((folder / "unnamed" / "series").iterdir())
    times = Counter([*_named_by_records(corpus, folder), *passed_over, folder / "dicom" / "list.csv"])
    existing = {path for path in times if path.exists() or path.is_symlink()}
    unused = _files(folder) - existing
    assert existing <= _files(folder)
    assert Counter(path.suffix for path in unused) == UNUSED
    assert max(times.values()) == 1, times.most_common(3)


def test_a_source_of_ones_own_accounts_for_all_of_them_too(folder: Path) -> None:
    findings = survey(own_collection("our_ct"), folder)
    no_format = {"volume_mgz", "pair_img", "link_to_nothing", "link_to_itself", "pipe", "text"}
    assert len(findings.cases) == len(CT_KINDS) + len(HEADERS) + len(NO_IMAGE) - len(no_format) + 2  # series and label
    assert findings.unmatched == findings.unlisted == []
    others = UNUSED + Counter({".mgz": 1, ".img": 1, ".hdr": 1, ".gz": 3, ".txt": 2, ".csv": 2})
    assert Counter(path.suffix for path in findings.others) == others
    used = {file for _, candidate in findings.cases for file in input_files(candidate) if file.exists()}
    assert len(_files(folder)) == len(used) + sum(others.values())


def test_the_sum_and_what_was_passed_over_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, record = tmp_path / "data", tmp_path / "named.yaml"
    record.write_text("name: named\nmodality: CT\nimages: ['^/(?P<case>scan[^/]*)/']\n")
    write_dicom(folder / "scan_1", PLAIN)
    write_dicom(folder / "unnamed" / "series", PLAIN)
    write_nifti(folder / "unnamed" / "label.nii.gz", PLAIN)
    write_nifti(folder / "scan_2" / "cut.nii", PLAIN).write_bytes(b"")
    (folder / "readme").write_text("")
    assert main(["curate", "--source", f"{record}={folder}", "--out", str(tmp_path / "corpus"), "-np", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "2 volumes found = 1 curated + 1 rejected + 0 duplicates + 0 excluded"
    assert [line for line in lines if line.startswith("passed over")] == [
        "passed over: 1 folders with DICOM images that no pattern names (named: unnamed/series)",
        "passed over: 1 images that no pattern names, such as label maps",
        "passed over: 1 files of formats that are not read here (1 without ending)",
    ]


def test_what_another_source_names_was_not_passed_over(tmp_path: Path) -> None:
    """Two collections unpacked into one folder, once by way of a link."""
    write_dicom(tmp_path / "data" / "one", PLAIN)
    write_dicom(tmp_path / "data" / "two", PLAIN)
    (tmp_path / "link").symlink_to("data")
    sources = [
        CollectionFolder(source(name, images=(rf"^/(?P<case>{name})$",)), tmp_path / folder)
        for name, folder in (("one", "data"), ("two", "link"))
    ]
    curate(sources, tmp_path / "corpus", settings=StoreSettings())
    passed_over = [own["dicom_folders"] for own in merge(tmp_path / "corpus")["passed_over"].values()]
    assert passed_over == [[], []]
