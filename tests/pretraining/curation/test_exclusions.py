"""Evaluation cases stay out of a corpus, by id and by content."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from nnunetv2_meddino.errors import ConfigurationError, DataError
from pretraining.corpus.case_ids import corpus_record
from pretraining.corpus.storage import StoreSettings
from pretraining.curation.collections import COLLECTIONS
from pretraining.curation.exclusions import find_images, read_exclusions
from pretraining.curation.gather import CollectionFolder, curate
from pretraining.curation.merge import merge
from tests.pretraining.curation.folders import corpus_bytes, curated, phantom, write_volume

SHAPE = (20, 80, 72)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Source ``one`` with case_0 to case_3; ``two`` with another copy of case_1, and one volume of its own."""
    root = tmp_path_factory.mktemp("data")
    for seed in range(4):
        write_volume(phantom(seed, SHAPE), root / "one" / f"case_{seed}.nii.gz")
    write_volume(phantom(1, SHAPE), root / "two" / "renamed.mha")
    write_volume(phantom(6, SHAPE), root / "two" / "own.nii.gz")
    images = root / "imagesTr"
    write_volume(phantom(6, SHAPE)[3:], images / "bench_006_0000.nii.gz")
    write_volume(phantom(50, SHAPE), images / "bench_050_0000.nii.gz")
    (images / "bench_060_0000.nii.gz").write_text("broken")
    write_volume(phantom(2, SHAPE), images / "unlisted_0000.nii.gz")
    folds = [
        {"train": ["case_1"], "val": ["case_0"]},
        {"train": ["case_0"], "val": ["bench_006", "bench_050", "bench_060", "bench_070", "case_1"]},
    ]
    (root / "splits_final.json").write_text(json.dumps(folds))
    (root / "list.txt").write_text("# test cases\none/case_0\n\ncase_3  # by id alone\none/renamed\n")
    return root


def _folders(data: Path) -> list[tuple[str, Path]]:
    return [("one", data / "one"), ("two", data / "two")]


def _cases(corpus: Path) -> list[str]:
    table = pq.read_table(corpus / "volumes.parquet").to_pydict()
    return [f"{source}/{case}" for source, case in zip(table["source"], table["case"], strict=True)]


def _lines(corpus: Path) -> dict[str, dict]:
    lines = map(json.loads, (corpus / "excluded.jsonl").read_text().splitlines())
    return {f"{line['source']}/{line['case']}": line for line in lines}


def test_validation_cases_are_left_out_by_id_and_by_content(data, tmp_path):
    listed = read_exclusions(data / "splits_final.json", 1, data / "imagesTr")
    content = curated(tmp_path / "c", *_folders(data), exclusions=[listed])
    assert _cases(tmp_path / "c") == ["one/case_0", "one/case_2", "one/case_3"]
    lines = _lines(tmp_path / "c")
    assert {name: (line["how"], line["of"]) for name, line in lines.items()} == {
        "one/case_1": ("id", "case_1"),
        "two/renamed": ("content", "one/case_1"),
        "two/own": ("content", "bench_006"),
    }
    report = content["exclusions"]
    assert (report["cases_excluded"], report["by_id"], report["by_content"]) == (3, 1, 2)
    assert (report["cases_listed"], report["cases_found"]) == (5, 2)
    assert report["not_found"] == ["bench_050", "bench_060", "bench_070"]
    assert [image["case"] for image in report["images_unreadable"]] == ["bench_060"]
    (described,) = report["lists"]
    assert described["images_missing"] == ["bench_070", "case_1"]
    assert (described["file"], described["fold"], described["cases"]) == ("splits_final.json", 1, 5)
    assert content["counts"] == {"found": 6, "curated": 3, "rejected": 0, "duplicates": 0, "excluded": 3}


def test_a_case_listed_by_id_takes_its_copies_with_it(data, tmp_path):
    (tmp_path / "list.txt").write_text("two/renamed\n")
    curated(tmp_path / "c", *_folders(data), exclusions=[read_exclusions(tmp_path / "list.txt", None, None)])
    assert _cases(tmp_path / "c") == ["one/case_0", "one/case_2", "one/case_3", "two/own"]
    assert _lines(tmp_path / "c")["one/case_1"]["of"] == "two/renamed"


def test_a_plain_list_may_name_the_source(data, tmp_path):
    listed = read_exclusions(data / "list.txt", None, None)
    assert listed.cases == ("case_3", "one/case_0", "one/renamed")
    content = curated(tmp_path / "c", *_folders(data), exclusions=[listed])
    assert _cases(tmp_path / "c") == ["one/case_1", "one/case_2", "two/own"]
    assert content["exclusions"]["not_found"] == ["one/renamed"]


def test_ids_of_a_converted_data_set_are_those_of_its_source_alone(tmp_path):
    """``lits_002`` is volume-2 of LiTS; neither that of CT-ORG, which has the same file names, nor test-volume-2."""
    for name, seed in (("volume-2", 0), ("volume-12", 1), ("test-volume-2", 2)):
        write_volume(phantom(seed, SHAPE), tmp_path / "LiTS" / f"{name}.nii")
    write_volume(phantom(3, SHAPE), tmp_path / "CT-ORG" / "volume-2.nii")
    (tmp_path / "splits_final.json").write_text(json.dumps([{"train": [], "val": ["lits_002", "LiTS/lits_012"]}]))
    listed = read_exclusions(tmp_path / "splits_final.json", 0, None)
    folders = [CollectionFolder(COLLECTIONS[name], tmp_path / name) for name in ("LiTS", "CT-ORG")]
    curate(folders, tmp_path / "c", settings=StoreSettings(), exclusions=[listed])
    report = merge(tmp_path / "c")["exclusions"]
    assert _cases(tmp_path / "c") == ["CT-ORG/volume-2", "LiTS/test-volume-2"]
    assert {name: (line["how"], line["of"]) for name, line in _lines(tmp_path / "c").items()} == {
        "LiTS/volume-12": ("id", "LiTS/lits_012"),
        "LiTS/volume-2": ("id", "lits_002"),
    }
    assert report["not_found"] == []


def test_ids_of_test_images_are_their_own_and_lists_made_before_mean_either(tmp_path):
    """``lits_002`` was test-volume-2 too in datasets that earlier versions made; splits never held a test case."""
    for name, seed in (("volume-2", 0), ("test-volume-2", 1), ("volume-3", 2), ("test-volume-3", 3)):
        write_volume(phantom(seed, SHAPE), tmp_path / "LiTS" / f"{name}.nii")
    (tmp_path / "splits_final.json").write_text(json.dumps([{"train": [], "val": ["lits_002"]}]))
    (tmp_path / "list.txt").write_text("lits_002\n")
    (tmp_path / "test.txt").write_text("LiTS/lits_test_003\n")
    left = {}
    for file, fold in (("splits_final.json", 0), ("list.txt", None), ("test.txt", None)):
        listed = read_exclusions(tmp_path / file, fold, None)
        curate([CollectionFolder(COLLECTIONS["LiTS"], tmp_path / "LiTS")], tmp_path / "c", settings=StoreSettings(),
               exclusions=[listed])  # fmt: skip
        assert merge(tmp_path / "c")["exclusions"]["not_found"] == []
        left[file] = {"volume-2", "test-volume-2", "volume-3", "test-volume-3"} - {
            case.partition("/")[2] for case in _cases(tmp_path / "c")
        }
    assert left == {
        "splits_final.json": {"volume-2"},
        "list.txt": {"volume-2", "test-volume-2"},
        "test.txt": {"test-volume-3"},
    }


def test_images_whose_names_mean_two_patients_are_refused(tmp_path):
    for folder, seed in (("imagesTr", 0), ("imagesTs", 1)):
        write_volume(phantom(seed, SHAPE), tmp_path / folder / "lits_000_0000.nii.gz")
    (tmp_path / "list.txt").write_text("lits_000\n")
    assert read_exclusions(tmp_path / "list.txt", None, tmp_path / "imagesTr").cases == ("lits_000",)
    with pytest.raises(DataError, match="does not say which patient is meant"):
        read_exclusions(tmp_path / "list.txt", None, tmp_path / "imagesTs")


def test_a_mark_at_the_beginning_of_a_list_does_not_hide_its_first_case(tmp_path):
    (tmp_path / "list.txt").write_text("case_1\ncase_2\n", encoding="utf-8-sig")
    assert read_exclusions(tmp_path / "list.txt", None, None).cases == ("case_1", "case_2")


def test_other_exclusions_give_another_hash_and_need_no_volume_read_again(data, tmp_path):
    corpus = tmp_path / "c"
    listed = read_exclusions(data / "list.txt", None, None)
    free = curated(corpus, *_folders(data))
    before = corpus_bytes(corpus)
    bound = curated(corpus, *_folders(data), exclusions=[listed])
    assert bound["hash"] != free["hash"]
    assert not (corpus / "volumes" / "one" / "case_0.b2nd").exists()
    assert curated(corpus, *_folders(data))["hash"] == free["hash"]
    assert corpus_bytes(corpus) == before


def test_two_lists_may_use_one_id_for_two_scans(data, tmp_path):
    for number, seed in ((1, 2), (2, 3)):
        write_volume(phantom(seed, SHAPE), tmp_path / f"images{number}" / "x_0000.nii.gz")
        (tmp_path / f"list{number}.txt").write_text("x\n")
    lists = [read_exclusions(tmp_path / f"list{n}.txt", None, tmp_path / f"images{n}") for n in (1, 2)]
    curated(tmp_path / "c", *_folders(data), exclusions=lists)
    assert set(_lines(tmp_path / "c")) == {"one/case_2", "one/case_3"}


def test_images_are_found_under_nnunets_and_plain_names(data, tmp_path):
    for name in ("amos_0001_0000.nii.gz", "a.b_0000.nrrd", "plain.nii.gz", "amos_0002_0000.nii.gz"):
        write_volume(phantom(1), tmp_path / "images" / name)
    write_volume(phantom(1), tmp_path / "images" / "case_00003" / "imaging.nii.gz")
    (tmp_path / "list.txt").write_text("amos_0001\na.b\nplain\nsource/case_00003\nabsent\n")
    found = find_images(read_exclusions(tmp_path / "list.txt", None, tmp_path / "images"))
    assert {case: len(candidates) for case, candidates in found.items()} == {
        "amos_0001": 1,
        "a.b": 1,
        "plain": 1,
        "source/case_00003": 1,
        "absent": 0,
    }


@pytest.mark.parametrize(
    ("name", "content", "fold", "error", "message"),
    [
        ("s.json", '[{"train": [], "val": ["a"]}]', None, ConfigurationError, "--fold"),
        ("s.json", '[{"train": [], "val": ["a"]}]', 1, ConfigurationError, "no fold 1"),
        ("s.json", '[{"train": [], "val": []}]', 0, DataError, "lists no case"),
        ("s.json", '{"val": ["a"]}', 0, DataError, "not a splits file of nnU-Net"),
        ("s.json", "[", 0, DataError, "not a splits file of nnU-Net"),
        ("l.txt", "a\n", 0, ConfigurationError, "list of case ids"),
        ("l.txt", "# nothing\n", None, DataError, "lists no case"),
    ],
)
def test_lists_that_make_no_sense_are_refused(tmp_path, name, content, fold, error, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(error, match=message):
        read_exclusions(tmp_path / name, fold, None)


def test_missing_lists_and_folders_are_said(data, tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_exclusions(tmp_path / "absent.txt", None, None)
    with pytest.raises(DataError, match="does not exist"):
        read_exclusions(data / "list.txt", None, tmp_path / "absent")


def test_what_a_checkpoint_keeps_of_a_corpus(data, tmp_path):
    corpus = tmp_path / "c"
    content = curated(corpus, *_folders(data), exclusions=[read_exclusions(data / "list.txt", None, None)])
    record = corpus_record(corpus)
    assert record["hash"] == content["hash"]
    assert record["exclusions"]["by_id"] == 2
    assert record["sources"]["one"]["licence"] == "licence of one"
    assert str(tmp_path) not in json.dumps(record)
    with pytest.raises(DataError, match="no finished corpus"):
        corpus_record(tmp_path)


def test_a_checkpoint_keeps_every_id_that_names_a_case_of_the_corpus(tmp_path):
    """Merged copies count under their own source, ids of converted datasets too; what was left out does not."""
    for name, seed in (("volume-2", 0), ("volume-12", 1), ("volume-3", 2), ("test-volume-4", 3)):
        write_volume(phantom(seed, SHAPE), tmp_path / "LiTS" / f"{name}.nii")
    write_volume(phantom(0, SHAPE), tmp_path / "BTCV" / "Training" / "img" / "img0007.nii.gz")
    (tmp_path / "list.txt").write_text("lits_003\n")
    folders = [CollectionFolder(COLLECTIONS[name], tmp_path / name) for name in ("LiTS", "BTCV")]
    listed = read_exclusions(tmp_path / "list.txt", None, None)
    curate(folders, tmp_path / "c", settings=StoreSettings(), exclusions=[listed])
    assert merge(tmp_path / "c")["counts"]["duplicates"] == 1
    assert corpus_record(tmp_path / "c")["cases"] == {
        "BTCV": ["btcv_0007", "img0007"],
        "LiTS": ["lits_002", "lits_012", "lits_test_004", "test-volume-4", "volume-12", "volume-2"],
    }
