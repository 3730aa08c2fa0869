"""A scan whose header states another spacing is the same scan, in a corpus, in exclusions, and when it is asked for."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from nnunetv2_meddino.errors import DataError
from pretraining.curation.contamination import SeenScans
from pretraining.curation.deduplicate import EXACT, NEAR, Match, deduplicate
from pretraining.curation.exclusions import read_exclusions
from pretraining.curation.merge import merge
from pretraining.curation.process_volume import VolumeRecord
from tests.pretraining.curation.folders import curated, phantom, write_volume

SHAPE = (24, 96, 96)
TRUE_MM, LOST_MM = (3.0, 0.8, 0.8), (1.0, 1.0, 1.0)


def noisy(seed: int) -> np.ndarray:
    noise = np.random.default_rng(99).normal(0, 15, SHAPE)
    return (phantom(seed, SHAPE) + noise).round().clip(-1000, 1000).astype(np.int16)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """``one`` has scans 0 to 2; ``two`` has scan 0 as it is and scan 1 with noise, both said to be of 1 mm."""
    for seed in range(3):
        write_volume(phantom(seed, SHAPE), tmp_path / "one" / f"case_{seed}.nii.gz", TRUE_MM)
    write_volume(phantom(0, SHAPE), tmp_path / "two" / "exact.nii.gz", LOST_MM)
    write_volume(noisy(1), tmp_path / "two" / "near.nii.gz", LOST_MM)
    return tmp_path


def lines(path: Path) -> dict[str, dict]:
    return {line["case"]: line for line in map(json.loads, path.read_text().splitlines())}


def test_copies_are_dropped_and_the_disagreement_is_flagged(data: Path) -> None:
    content = curated(data / "corpus", ("two", data / "two"), ("one", data / "one"))
    assert content["duplicates"] == {"exact": 1, "near": 1, "near_kept": 0, "spacing_disagrees": 2}
    rows = pq.read_table(data / "corpus" / "volumes.parquet").to_pylist()
    flags = {row["case"]: row["flags"] for row in rows}
    assert flags == {"case_0": ["spacing_disagrees"], "case_1": ["spacing_disagrees"], "case_2": []}
    found = lines(data / "corpus" / "duplicates.jsonl")
    assert {case: (line["kind"], line["of"]) for case, line in found.items()} == {
        "exact": (EXACT, "one/case_0"),
        "near": (NEAR, "one/case_1"),
    }
    for line in found.values():
        assert line["spacing_disagrees"]
        assert line["spacing_mm"] == list(LOST_MM)
        assert line["of_spacing_mm"] == pytest.approx(TRUE_MM)


def test_an_excluded_scan_is_found_by_an_image_of_another_spacing(data: Path) -> None:
    for name, voxels in (("e_0", phantom(0, SHAPE)), ("e_1", noisy(1)), ("e_5", phantom(5, SHAPE))):
        write_volume(voxels, data / "images" / f"{name}_0000.nii.gz", LOST_MM)
    (data / "list.txt").write_text("e_0\ne_1\ne_5\n")
    listed = read_exclusions(data / "list.txt", None, data / "images")
    content = curated(data / "corpus", ("one", data / "one"), exclusions=[listed])
    assert set(lines(data / "corpus" / "excluded.jsonl")) == {"case_0", "case_1"}
    assert content["exclusions"]["not_found"] == ["e_5"]


@pytest.mark.parametrize("spacing_mm", [TRUE_MM, LOST_MM, (5.0, 0.8, 0.8), (3.0, 1.2, 0.7)])
def test_scans_are_seen_whatever_the_header_says(data: Path, spacing_mm: tuple[float, float, float]) -> None:
    curated(data / "corpus", ("one", data / "one"))
    (exact,) = SeenScans(data / "corpus").find(write_volume(phantom(0, SHAPE), data / "a.nrrd", spacing_mm))
    assert (exact.name, exact.kind) == ("one/case_0", EXACT)
    assert exact.spacing_disagrees is (spacing_mm != TRUE_MM)
    (near,) = SeenScans(data / "corpus").find(write_volume(noisy(1), data / "b.nrrd", spacing_mm))
    assert (near.name, near.kind) == ("one/case_1", NEAR)
    assert SeenScans(data / "corpus").find(write_volume(phantom(5, SHAPE), data / "c.nrrd", spacing_mm)) == []


def test_of_copies_the_one_that_says_1_mm_goes() -> None:
    def record(name: str, slices: int, spacing_mm: tuple[float, float, float]) -> VolumeRecord:
        source, case = name.split("/")
        return VolumeRecord(source, case, (), "", native_spacing_mm=spacing_mm, shape=(slices, 64, 64))

    alike = {"a/lost": [Match("b/true", EXACT, 1.0, True)]}
    kept = deduplicate([record("a/lost", 20, LOST_MM), record("b/true", 20, (5.0, 1.4, 1.4))], alike, ["a", "b"])
    assert [own.name for own in kept.kept] == ["b/true"]
    assert kept.marks == {"b/true": ["spacing_disagrees"]}
    longer = deduplicate([record("a/lost", 21, LOST_MM), record("b/true", 20, (5.0, 1.4, 1.4))], alike, ["a", "b"])
    assert [own.name for own in longer.kept] == ["a/lost"]


def make_old(corpus: Path) -> None:
    """Give the records and tables of a corpus the fingerprints of the version before."""
    for path in (corpus / "parts" / "records").rglob("*.json"):
        content = json.loads(path.read_text())
        content["fingerprint"] = base64.b64encode(b"F1" + base64.b64decode(content["fingerprint"])[2:]).decode()
        path.write_text(json.dumps(content))
    table = pq.read_table(corpus / "volumes.parquet")
    old = [b"F1" + value[2:] for value in table["fingerprint"].to_pylist()]
    where = table.column_names.index("fingerprint")
    pq.write_table(table.set_column(where, table.schema.field(where), [old]), corpus / "volumes.parquet")


def test_a_corpus_of_an_earlier_version_is_never_said_not_to_hold_a_scan(data: Path) -> None:
    corpus, asked = data / "corpus", write_volume(phantom(0, SHAPE), data / "a.nrrd", LOST_MM)
    whole = curated(corpus, ("one", data / "one"))
    make_old(corpus)
    with pytest.raises(DataError, match=r"volumes.parquet was made by an earlier version.*curate command again"):
        SeenScans(corpus).find(asked)
    with pytest.raises(DataError, match=r"case_0.json was made by an earlier version.*curate command again"):
        merge(corpus)
    assert curated(corpus, ("one", data / "one")) == whole
    assert [match.kind for match in SeenScans(corpus).find(asked)] == [EXACT]
