"""Curation of folders: counts, resuming, parts, settings, errors."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import blosc2
import nibabel as nib
import numpy as np
import pyarrow.parquet as pq
import pytest

from nnunetv2_meddino.errors import BusyError, ConfigurationError, DataError
from pretraining.corpus.storage import StoreSettings
from pretraining.curation import job, process_volume, tables
from pretraining.curation.gather import CollectionFolder, Division, curate
from pretraining.curation.merge import merge
from pretraining.curation.readers.read import find_candidates
from pretraining.modality import Modality
from tests.conftest import shared_path
from tests.pretraining.curation.folders import corpus_bytes, curated, phantom, source, write_volume


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Path:
    """Two sources: good volumes, an exact copy in another format, a part of another one, and files that are no CT."""
    root = tmp_path_factory.mktemp("mixed")
    for seed in range(4):
        write_volume(phantom(seed), root / "one" / f"case_{seed}.nii.gz")
    write_volume(phantom(0), root / "two" / "scan_0.mha")
    write_volume(phantom(1)[2:], root / "two" / "scan_1.nrrd")
    write_volume(phantom(9), root / "two" / "scan_2.nii.gz")
    write_volume((phantom(8) // 16 + 64).clip(0, 255).astype(np.uint8), root / "two" / "picture.nii.gz")
    torn = write_volume(phantom(7), root / "two" / "torn.nii.gz")
    torn.write_bytes(torn.read_bytes()[:-2000])
    (root / "two" / "text.nii.gz").write_text("not an image")
    return root


@pytest.fixture(scope="module")
def single(mixed, tmp_path_factory) -> Path:
    """The corpus of the mixed folders, made in one go."""
    corpus = tmp_path_factory.mktemp("single") / "corpus"
    curated(corpus, ("one", mixed / "one"), ("two", mixed / "two"))
    return corpus


def test_every_volume_is_counted_once(single):
    content = json.loads((single / "corpus.json").read_text())
    assert content["counts"] == {"found": 10, "curated": 5, "rejected": 3, "duplicates": 2, "excluded": 0}
    assert content["duplicates"] == {"exact": 1, "near": 1, "near_kept": 0, "spacing_disagrees": 0}
    for own in content["sources"].values():
        assert own["found"] == own["curated"] + own["rejected"] + own["duplicates"] + own["excluded"]
    lines = {name: (single / name).read_text().splitlines() for name in ("rejected.jsonl", "duplicates.jsonl")}
    rejected = {(line["source"], line["case"]): line for line in map(json.loads, lines["rejected.jsonl"])}
    assert set(rejected) == {("two", "picture"), ("two", "torn"), ("two", "text")}
    assert rejected["two", "torn"]["reason"] == "truncated"
    assert rejected["two", "picture"]["reason"] == "8_bit"
    assert rejected["two", "torn"]["files"] == ["torn.nii.gz"]
    assert not any(str(single.parent.parent) in line for own in lines.values() for line in own), "an absolute path"
    duplicates = {line["case"]: (line["of"], line["kind"]) for line in map(json.loads, lines["duplicates.jsonl"])}
    assert duplicates == {"scan_0": ("one/case_0", "exact"), "scan_1": ("one/case_1", "near")}


def test_the_voxels_of_the_corpus_are_those_of_the_files(single):
    table = pq.read_table(single / "volumes.parquet").to_pydict()
    assert list(zip(table["source"], table["case"], strict=True)) == [
        *(("one", f"case_{i}") for i in range(4)),
        ("two", "scan_2"),
    ]
    for path, seed in zip(table["path"], (0, 1, 2, 3, 9), strict=True):
        assert np.array_equal(blosc2.open(str(single / path), mode="r")[:], phantom(seed))
    assert table["names"][:2] == [["one/case_0", "two/scan_0"], ["one/case_1", "two/scan_1"]]
    on_disk = sorted(path.relative_to(single).as_posix() for path in (single / "volumes").rglob("*") if path.is_file())
    assert on_disk == sorted(table["path"]), "dropped volumes must not lie in the corpus"


def test_parts_and_merge_give_the_same_corpus(single, mixed, tmp_path):
    corpus = tmp_path / "parts"
    sources = [CollectionFolder(source(name), mixed / name) for name in ("one", "two")]
    sizes = []
    for part in (2, 0, 1):
        with pytest.raises(DataError, match=r"no finished part|of 3 parts are not finished"):
            merge(corpus)
        summary = curate(sources, corpus, settings=StoreSettings(), division=Division(part, 3))
        sizes.append(summary.curated + summary.rejected)
    assert sorted(sizes) == [3, 3, 4]
    assert not (corpus / "corpus.json").exists()
    merge(corpus)
    assert corpus_bytes(corpus) == corpus_bytes(single)
    merge(corpus)
    assert corpus_bytes(corpus) == corpus_bytes(single)


def test_a_file_that_is_no_volume_keeps_no_parts_from_being_merged(mixed, tmp_path):
    """The log of a job, say."""
    folder = tmp_path / "data"
    shutil.copytree(mixed / "one", folder)
    for part in (0, 1):
        (folder / f"job_{part}.log").write_text("")
        curate(
            [CollectionFolder(source("one"), folder)],
            tmp_path / "c",
            settings=StoreSettings(),
            division=Division(part, 2),
        )
    assert merge(tmp_path / "c")["volumes"] == 4


def test_parts_of_a_version_that_did_not_say_what_was_passed_over_are_done_again(mixed, tmp_path):
    sources = [CollectionFolder(source("one"), mixed / "one")]
    curate(sources, tmp_path / "c", settings=StoreSettings())
    (part,) = (tmp_path / "c" / "parts").glob("part_*.json")
    content = json.loads(part.read_text())
    del content["passed_over"]
    part.write_text(json.dumps(content))
    with pytest.raises(DataError, match="made by another version"):
        merge(tmp_path / "c")
    curate(sources, tmp_path / "c", settings=StoreSettings())
    assert merge(tmp_path / "c")["volumes"] == 4


def test_parts_that_saw_other_files_are_not_merged(mixed, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(mixed / "one", folder)
    sources = [CollectionFolder(source("one"), folder)]
    curate(sources, tmp_path / "corpus", settings=StoreSettings(), division=Division(0, 2))
    (folder / "case_3.nii.gz").unlink()
    curate(sources, tmp_path / "corpus", settings=StoreSettings(), division=Division(1, 2))
    with pytest.raises(DataError, match="1 of 2 parts are not finished: --part-id 0"):
        merge(tmp_path / "corpus")


def test_processes_change_nothing(single, mixed, tmp_path):
    curated(tmp_path / "c", ("one", mixed / "one"), ("two", mixed / "two"), processes=2)
    assert corpus_bytes(tmp_path / "c") == corpus_bytes(single)


def test_what_is_finished_is_not_read_again(single, mixed, tmp_path, monkeypatch):
    corpus = tmp_path / "corpus"
    shutil.copytree(single, corpus)
    read: list[str] = []
    original = process_volume.read_volume

    def watched(candidate, rule):
        read.append(candidate.path.name)
        return original(candidate, rule)

    monkeypatch.setattr(process_volume, "read_volume", watched)
    folders = ("one", mixed / "one"), ("two", mixed / "two")
    curated(corpus, *folders)
    assert set(read) <= {"text.nii.gz"}, "only what could not be read at all is tried again"
    read.clear()
    (corpus / "volumes" / "one" / "case_2.b2nd").unlink()
    (corpus / "parts" / "records" / "one" / "case_3.json").unlink()
    curated(corpus, *folders)
    assert set(read) - {"text.nii.gz"} == {"case_2.nii.gz", "case_3.nii.gz"}
    assert corpus_bytes(corpus) == corpus_bytes(single)


def test_a_file_that_was_mended_is_read_again(mixed, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(mixed / "two", folder)
    before = curated(tmp_path / "corpus", ("two", folder))
    write_volume(phantom(7), folder / "torn.nii.gz")
    after = curated(tmp_path / "corpus", ("two", folder))
    assert after["counts"]["rejected"] == before["counts"]["rejected"] - 1
    assert after["counts"]["curated"] == before["counts"]["curated"] + 1
    assert after["hash"] != before["hash"]


@pytest.mark.parametrize(("header", "voxels"), [("a.mhd", "a.zraw"), ("a.nhdr", "a.raw.gz")])
def test_a_file_of_voxels_that_was_mended_is_read_again(header, voxels, tmp_path):
    """The header, which is what is found in the folder, stays the same."""
    write_volume(phantom(0), tmp_path / "data" / header)
    torn = tmp_path / "data" / voxels
    whole = torn.read_bytes()
    one = source("one", images=(r"/(?P<case>[^/]+)\.(mhd|nhdr)$",))
    for content, curated_volumes in ((whole[:-2000], 0), (whole, 1), (None, 0)):
        torn.unlink() if content is None else torn.write_bytes(content)
        summary = curate([CollectionFolder(one, torn.parent)], tmp_path / "corpus", settings=StoreSettings())
        assert summary.curated == curated_volumes


def test_a_part_that_is_being_done_again_is_not_merged(mixed, tmp_path, monkeypatch):
    """The files have changed and the second run was stopped half way: part of the corpus would be that of old files."""
    folder, corpus = tmp_path / "data", tmp_path / "corpus"
    shutil.copytree(mixed / "one", folder)
    sources = [CollectionFolder(source("one"), folder)]
    for part in (0, 1):
        curate(sources, corpus, settings=StoreSettings(), division=Division(part, 2))
    write_volume(phantom(20), folder / "case_1.nii.gz")

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(process_volume, "read_volume", stopped)
    with pytest.raises(KeyboardInterrupt):
        curate(sources, corpus, settings=StoreSettings(), division=Division(1, 2))
    monkeypatch.undo()
    with pytest.raises(DataError, match="1 of 2 parts are not finished: --part-id 1"):
        merge(corpus)
    curate(sources, corpus, settings=StoreSettings(), division=Division(1, 2))
    assert merge(corpus)["volumes"] == 4


def test_parts_that_start_at_once_on_machines_with_the_same_process_ids(tmp_path, monkeypatch):
    """As in containers: whoever comes second must not trip over the file that the first is writing."""
    corpus = tmp_path / "corpus"
    link, started = os.link, []

    def link_later(*paths: Path) -> None:
        if not started:
            started.append(True)
            job.prepare(corpus, StoreSettings())  # another machine, from beginning to end
        link(*paths)

    monkeypatch.setattr(job.os, "link", link_later)
    monkeypatch.setattr(job.os, "getpid", lambda: 1)
    job.prepare(corpus, StoreSettings())
    assert [file.name for file in (corpus / "parts").iterdir()] == ["settings.json"]


def test_a_corpus_grows_and_shrinks_with_the_sources_named(single, mixed, tmp_path):
    corpus = tmp_path / "corpus"
    one = curated(corpus, ("one", mixed / "one"))
    both = curated(corpus, ("one", mixed / "one"), ("two", mixed / "two"))
    assert both["volumes"] == one["volumes"] + 1
    assert corpus_bytes(corpus) == corpus_bytes(single)
    curated(corpus, ("one", mixed / "one"))
    assert {path.parent.name for path in (corpus / "volumes").rglob("*.b2nd")} == {"one"}


def test_air_only_slices_stay_and_are_flagged(tmp_path):
    voxels = phantom(3)
    voxels[[0, 11]] = -1000
    write_volume(voxels, tmp_path / "data" / "a.nii.gz")
    content = curated(tmp_path / "corpus", ("one", tmp_path / "data"))
    rows = pq.read_table(tmp_path / "corpus" / "slices.parquet").to_pydict()
    assert content["slices"] == len(rows["flags"]) == 12
    empty = [index for index, flags in zip(rows["index"], rows["flags"], strict=True) if "empty" in flags.split("|")]
    assert empty == [0, 11]
    assert [rows["body_fraction"][i] for i in empty] == [0.0, 0.0]
    assert min(rows["body_fraction"][1:11]) > 0.2


def test_the_paper_store_size_reaches_the_files(tmp_path):
    write_volume(phantom(3), tmp_path / "data" / "a.nii.gz", (4.0, 0.9, 0.9))
    settings = StoreSettings(store_size=256, spacing_mm=0.45)
    content = curated(tmp_path / "corpus", ("one", tmp_path / "data"), store=settings)
    assert content["settings"]["store_size"] == 256
    row = pq.read_table(tmp_path / "corpus" / "volumes.parquet").to_pylist()[0]
    assert (row["slices"], row["height"], row["width"]) == (12, 256, 256)
    assert row["spacing_y_mm"] == pytest.approx(72 * 0.9 / 256)
    assert row["spacing_x_mm"] == pytest.approx(64 * 0.9 / 256)
    assert row["flags"][-2:] == ["resampled", "resized"]
    with pytest.raises(ConfigurationError, match="store_size 256"):
        curated(tmp_path / "corpus", ("one", tmp_path / "data"))
    shutil.rmtree(tmp_path / "corpus" / "parts")
    with pytest.raises(ConfigurationError, match="store_size 256"):
        curated(tmp_path / "corpus", ("one", tmp_path / "data"))


def test_of_equal_copies_the_earlier_source_keeps_its_own(tmp_path):
    write_volume(phantom(0), tmp_path / "one" / "a.nii.gz")
    write_volume(phantom(0), tmp_path / "two" / "b.nii.gz")
    for order, kept in ((("one", "two"), "one/a"), (("two", "one"), "two/b")):
        corpus = tmp_path / f"corpus_{order[0]}"
        curated(corpus, *((name, tmp_path / name) for name in order))
        names = pq.read_table(corpus / "volumes.parquet")["names"].to_pylist()
        assert names == [[kept, *({"one/a", "two/b"} - {kept})]]


def test_wrong_arguments_are_said(mixed, tmp_path):
    one = CollectionFolder(source("one"), mixed / "one")
    settings = StoreSettings()
    with pytest.raises(ConfigurationError, match="given twice"):
        curate([one, one], tmp_path / "c", settings=settings)
    with pytest.raises(DataError, match="does not exist"):
        curate([CollectionFolder(source("one"), mixed / "absent")], tmp_path / "c", settings=settings)
    with pytest.raises(ConfigurationError, match="at least one"):
        curate([], tmp_path / "c", settings=settings)
    with pytest.raises(ConfigurationError, match="inside the folder of source one"):
        curate([one], mixed / "one" / "corpus", settings=settings)
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="No volume of source one was found"):
        curate([CollectionFolder(source("one"), tmp_path / "none")], tmp_path / "c", settings=settings)
    with pytest.raises(ConfigurationError, match="-np"):
        curate([one], tmp_path / "c", settings=settings, processes=0)
    with pytest.raises(ConfigurationError, match="--part-id must be 0 to 2"):
        Division(3, 3)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigurationError, match="not empty and holds no corpus"):
        curate([one], tmp_path / "other", settings=settings)


def test_a_folder_that_cannot_be_written_is_said(mixed, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        curate([CollectionFolder(source("one"), mixed / "one")], tmp_path / "file" / "c", settings=StoreSettings())


def test_a_full_disk_ends_the_run_and_loses_nothing(single, mixed, tmp_path, monkeypatch):
    corpus = tmp_path / "corpus"
    original, written = process_volume.write_whole, []

    def full(path: Path, content: bytes) -> None:
        written.append(path)
        if len(written) > 5:
            raise DataError("No space left on device")
        original(path, content)

    monkeypatch.setattr(process_volume, "write_whole", full)
    with pytest.raises(DataError, match="No space left"):
        curated(corpus, ("one", mixed / "one"), ("two", mixed / "two"))
    monkeypatch.undo()
    curated(corpus, ("one", mixed / "one"), ("two", mixed / "two"))
    assert corpus_bytes(corpus) == corpus_bytes(single)


def test_slices_that_find_no_room_are_no_fault_of_their_volume(mixed, tmp_path, monkeypatch):
    """The small record would still find room: the volume must not be noted as rejected."""
    original = process_volume.write_whole

    def full(path: Path, content: bytes) -> None:
        if path.suffix == ".b2nd":
            raise DataError("No space left on device")
        original(path, content)

    monkeypatch.setattr(process_volume, "write_whole", full)
    with pytest.raises(DataError, match="No space left"):
        curated(tmp_path / "c", ("one", mixed / "one"))
    assert not list((tmp_path / "c" / "parts" / "records").rglob("*.json"))


def test_an_error_nobody_foresaw_is_counted_and_tried_again(single, mixed, tmp_path, monkeypatch):
    def broken(candidate, rule):
        if candidate.path.name == "case_1.nii.gz":
            raise ZeroDivisionError("odd header")
        return original(candidate, rule)

    original = process_volume.read_volume
    monkeypatch.setattr(process_volume, "read_volume", broken)
    corpus = tmp_path / "corpus"
    content = curated(corpus, ("one", mixed / "one"), ("two", mixed / "two"))
    assert content["counts"]["rejected"] == 4
    line = json.loads((corpus / "rejected.jsonl").read_text().splitlines()[0])
    assert line["reason"] == "unforeseen"
    assert line["message"] == "case_1.nii.gz: ZeroDivisionError: odd header"
    monkeypatch.undo()
    curated(corpus, ("one", mixed / "one"), ("two", mixed / "two"))
    assert corpus_bytes(corpus) == corpus_bytes(single)


@pytest.mark.parametrize(
    ("error", "reason"), [(MemoryError(), "no_memory"), (RuntimeError("too large for a chunk"), "unforeseen")]
)
def test_a_volume_that_cannot_be_stored_does_not_end_the_run(mixed, tmp_path, monkeypatch, error, reason):
    """A localiser of huge pixels that --spacing blows up, say."""
    original, calls = process_volume.encode, []

    def broken(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise error
        return original(*arguments)

    monkeypatch.setattr(process_volume, "encode", broken)
    content = curated(tmp_path / "c", ("one", mixed / "one"))
    assert content["counts"] == {"found": 4, "curated": 3, "rejected": 1, "duplicates": 0, "excluded": 0}
    (line,) = map(json.loads, (tmp_path / "c" / "rejected.jsonl").read_text().splitlines())
    assert (line["case"], line["reason"]) == ("case_1", reason)


def test_odd_case_ids_become_file_names(tmp_path):
    write_volume(phantom(0), tmp_path / "data" / "case 1 (é).nii.gz")
    curated(tmp_path / "corpus", ("one", tmp_path / "data"))
    row = pq.read_table(tmp_path / "corpus" / "volumes.parquet").to_pylist()[0]
    assert row["case"] == "case 1 (é)"
    assert (tmp_path / "corpus" / row["path"]).is_file()
    assert row["path"].isascii()
    assert " " not in row["path"]


def test_case_ids_that_occur_twice_are_told_apart(tmp_path):
    for seed, name in enumerate(("a/x.nii.gz", "b/x.nii.gz", "b/y.nii.gz")):
        write_volume(phantom(seed), tmp_path / "data" / name)
    content = curated(tmp_path / "corpus", ("one", tmp_path / "data"))
    assert content["counts"]["curated"] == content["counts"]["found"] == 3
    cases = pq.read_table(tmp_path / "corpus" / "volumes.parquet")["case"].to_pylist()
    assert sorted(re.sub("-[0-9a-f]{8}$", "", case) for case in cases) == ["x", "x", "y"]
    assert len(set(cases)) == 3


def test_a_process_killed_twice_is_a_refusal_that_is_tried_again(single, mixed, tmp_path):
    corpus = tmp_path / "corpus"
    shutil.copytree(single, corpus)
    candidate = find_candidates(mixed / "one")[0]
    record, stored = (path(corpus, "one", "case_0") for path in (job.record_path, job.staging_path))
    task = process_volume.VolumeTask("one", "case_0", candidate, mixed / "one", Modality.CT, record, stored)
    assert process_volume.process_lost(task).reason == "no_memory"
    assert process_volume.process(task, StoreSettings()).reason == ""


def test_a_merge_that_stops_half_way_leaves_no_corpus_that_looks_finished(single, tmp_path, monkeypatch):
    corpus = tmp_path / "corpus"
    shutil.copytree(single, corpus)

    def full(table, path):
        raise DataError("No space left on device")

    monkeypatch.setattr(tables, "write_table", full)
    with pytest.raises(DataError, match="No space left"):
        merge(corpus)
    assert not (corpus / "corpus.json").exists()
    monkeypatch.undo()
    merge(corpus)
    assert corpus_bytes(corpus) == corpus_bytes(single)


def test_a_volume_that_vanished_is_noticed_by_the_merge(single, tmp_path):
    corpus = tmp_path / "corpus"
    shutil.copytree(single, corpus)
    (corpus / "volumes" / "one" / "case_2.b2nd").write_bytes(b"short")
    with pytest.raises(DataError, match=r"case_2.b2nd is missing or damaged. Run the curation again"):
        merge(corpus)


def _axial(path: Path) -> np.ndarray:
    """A NIfTI file read by nibabel: voxels (z, y, x) towards head, back and left."""
    image = nib.as_closest_canonical(nib.load(path))
    return np.rint(np.asarray(image.dataobj)).astype(np.int64).transpose(2, 1, 0)[:, ::-1, ::-1]


def test_real_volumes(tmp_path):
    """Against nibabel, in the slice with most bone; copies and the tilted gantry are as described."""
    folders = {
        "unlabelled": (r"^/(?P<case>[^/]+)\.(nii\.gz|nrrd|mha)$", r"^/(?P<case>dicom[^/]+)$"),
        "Dataset900_CTMini": (r"/images(Tr|Ts)/(?P<case>[^/]+)_0000\.nii\.gz$",),
        "Dataset902_CTSarcoma": (r"/images(Tr|Ts)/(?P<case>[^/]+)_0000\.nii\.gz$",),
    }
    sources = [
        CollectionFolder(source(name, images=images), shared_path(f"data/{name}")) for name, images in folders.items()
    ]
    corpus = tmp_path / "corpus"
    curate(sources, corpus, settings=StoreSettings(), keep_near=True)
    content = merge(corpus)
    assert content["counts"]["rejected"] == 2
    assert content["counts"]["found"] == content["volumes"] + 2 == 7 + 2 + 8 + 11
    rejected = [json.loads(line) for line in (corpus / "rejected.jsonl").read_text().splitlines()]
    assert {line["case"] for line in rejected} == {"mr_t1_cervical_cord", "mr_t2_cervical_cord_sagittal"}
    assert {line["reason"] for line in rejected} == {"not_hounsfield"}
    rows = pq.read_table(corpus / "volumes.parquet").to_pylist()
    compared = 0
    for row in rows:
        folder = shared_path(f"data/{row['source']}")
        for path in [*folder.glob(f"{row['case']}.nii.gz"), *folder.glob(f"images*/{row['case']}_0000.nii.gz")]:
            expected = _axial(path)
            stored = blosc2.open(str(corpus / row["path"]), mode="r")
            landmark = int((expected > 300).sum((1, 2)).argmax())
            assert stored.shape == expected.shape
            assert np.array_equal(stored[landmark], expected[landmark]) or "padding_replaced" in row["flags"]
            compared += 1
    assert compared == 3 + 8 + 11
    flags = {row["case"]: row["flags"] for row in rows}
    assert "gantry_tilt" in flags["dicom_head_gantry_tilt"]
    chest = {"chest_lidc0314_1mm", "chest_lidc0314_aniso8mm"}
    slabs = {"ctmini_004", "ctmini_005", "ctmini_006"}  # parts of abdomen_3mm_int32
    assert {case for case, own in flags.items() if "near_duplicate" in own} == {"chest_lidc0314_aniso8mm", *slabs}
    curate(sources, corpus, settings=StoreSettings())
    assert merge(corpus)["duplicates"] == {"exact": 0, "near": 4, "near_kept": 0, "spacing_disagrees": 0}
    lines = map(json.loads, (corpus / "duplicates.jsonl").read_text().splitlines())
    assert {line["case"] for line in lines if line["of"].split("/")[1] in chest} == {"chest_lidc0314_aniso8mm"}


def test_parts_are_done_beside_each_other_but_nothing_else_is(mixed, tmp_path):
    sources, corpus = [CollectionFolder(source("one"), mixed / "one")], tmp_path / "corpus"

    def part(number: int, num_parts: int) -> None:
        curate(sources, corpus, settings=StoreSettings(), division=Division(number, num_parts))

    part(1, 2)
    with job.locked_part(corpus, 0, 2):
        part(1, 2)
        with pytest.raises(BusyError, match=f"another command works in {corpus}"):
            part(0, 2)
        with pytest.raises(BusyError):
            part(0, 1)
    part(0, 2)
    with job.locked_part(corpus, 0, 2), pytest.raises(BusyError):
        merge(corpus)
    with job.locked_corpus(corpus):
        for work in (lambda: merge(corpus), lambda: part(0, 2)):
            with pytest.raises(BusyError):
                work()
    merge(corpus)
    assert not list(corpus.rglob("*.lock"))


def test_a_folder_without_parts_stays_as_it_was(tmp_path):
    with pytest.raises(DataError, match="no finished part to merge"):
        merge(tmp_path)
    assert list(tmp_path.iterdir()) == []
