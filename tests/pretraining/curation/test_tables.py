"""The layout of a corpus on disk, read with nothing but pyarrow, blosc2 and json."""

from __future__ import annotations

import hashlib
import json
import zlib
from pathlib import Path

import blosc2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nnunetv2_meddino.errors import DataError
from pretraining.corpus.format import read_corpus
from pretraining.curation.process_volume import VolumeRecord, file_name
from pretraining.curation.tables import slices_table, volumes_table
from tests.pretraining.curation.folders import SPACING_MM, curated, phantom, write_volume


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("layout")
    for seed in (3, 1, 2):
        write_volume(phantom(seed), root / "b" / f"case_{seed}.nii.gz")
    voxels = phantom(4, (9, 60, 80))
    voxels[8] = -1000
    write_volume(voxels, root / "a" / "last.mha")
    write_volume(phantom(1), root / "a" / "copy.nii.gz")
    (root / "a" / "bad.nii.gz").write_text("bad")
    curated(root / "corpus", ("b", root / "b"), ("a", root / "a"))
    return root / "corpus"


def test_the_files_of_a_corpus(corpus):
    names = {path.name for path in corpus.iterdir()}
    jsonl = {"rejected.jsonl", "duplicates.jsonl", "excluded.jsonl"}
    assert names == {"corpus.json", "volumes.parquet", "slices.parquet", "volumes", "parts", *jsonl}
    assert not [path for path in corpus.rglob("*") if "partial" in path.name or path.name.startswith(".")]


def test_volumes_parquet(corpus):
    table = pq.read_table(corpus / "volumes.parquet")
    types = {field.name: str(field.type) for field in table.schema}
    assert types == {
        **dict.fromkeys(("source", "case", "path", "hash"), "string"),
        "fingerprint": "binary",
        **dict.fromkeys(("slices", "height", "width"), "int32"),
        **dict.fromkeys(("spacing_z_mm", "spacing_y_mm", "spacing_x_mm"), "float"),
        **dict.fromkeys(("modality", "licence"), "string"),
        **dict.fromkeys(("flags", "names"), "list<element: string>"),
    }
    rows = table.to_pylist()
    assert [(row["source"], row["case"]) for row in rows] == [
        ("a", "last"),
        ("b", "case_1"),
        ("b", "case_2"),
        ("b", "case_3"),
    ]
    for row in rows:
        assert row["path"] == f"volumes/{row['source']}/{row['case']}.b2nd"
        array = blosc2.open(str(corpus / row["path"]), mode="r")
        assert array.shape == (row["slices"], row["height"], row["width"])
        assert array.chunks == array.blocks == (1, row["height"], row["width"])
        assert array.dtype == np.int16
        assert (array.cparams.codec, array.cparams.clevel) == (blosc2.Codec.ZSTD, 1)
        assert [f for f in array.cparams.filters if f != blosc2.Filter.NOFILTER] == [blosc2.Filter.BITSHUFFLE]
        spacing = [row[f"spacing_{axis}_mm"] for axis in "zyx"]
        assert spacing == pytest.approx(list(SPACING_MM))
        assert (row["modality"], row["licence"]) == ("CT", f"licence of {row['source']}")
        assert len(row["hash"]) == 64
    assert rows[1]["names"] == ["b/case_1", "a/copy"]
    assert rows[0]["flags"] == ["empty_slices"]


def test_slices_parquet(corpus):
    table = pq.read_table(corpus / "slices.parquet")
    types = {field.name: str(field.type) for field in table.schema}
    category = "dictionary<values=string, indices=int32, ordered=0>"
    statistics = ("body_fraction", "hu_mean", "hu_std", "hu_p005", "hu_p50", "hu_p995")
    assert types == {
        "volume": "int32",
        "index": "int16",
        **dict.fromkeys(("source", "case", "volume_hash"), category),
        **dict.fromkeys(("spacing_y_mm", "spacing_x_mm", *statistics), "float"),
        **dict.fromkeys(("licence", "flags"), category),
        "crc32": "uint32",
    }
    assert list(types) == table.column_names
    volumes = pq.read_table(corpus / "volumes.parquet").to_pylist()
    rows = table.to_pylist()
    assert [(row["volume"], row["index"]) for row in rows] == [
        (number, index) for number, volume in enumerate(volumes) for index in range(volume["slices"])
    ]
    for row in rows:
        volume = volumes[row["volume"]]
        assert (row["source"], row["case"], row["volume_hash"]) == (volume["source"], volume["case"], volume["hash"])
        array = blosc2.open(str(corpus / volume["path"]), mode="r")
        assert row["crc32"] == zlib.crc32(array.schunk.get_chunk(row["index"]))
        image = array[row["index"]].astype(np.float64)
        assert row["hu_mean"] == pytest.approx(image.mean(), rel=1e-5)
        assert row["hu_std"] == pytest.approx(image.std(), rel=1e-5)
        for name, percent in (("hu_p005", 0.5), ("hu_p50", 50), ("hu_p995", 99.5)):
            assert row[name] == np.percentile(image, percent, method="inverted_cdf")
        empty = row["source"] == "a" and row["index"] == 8
        assert row["flags"] == ("empty_slices|empty" if empty else "|".join(volume["flags"]))
        assert 0.2 < row["body_fraction"] < 0.7 or empty


def test_corpus_json(corpus):
    content = json.loads((corpus / "corpus.json").read_text())
    assert (content["format"], content["version"]) == ("nnunetv2_meddino corpus", 1)
    assert (content["volumes"], content["slices"]) == (4, 45)
    assert content["settings"] == {
        "store_size": None,
        "spacing_mm": None,
        "max_size_px": 512,
        "keep_near_duplicates": False,
    }
    assert list(content["sources"]) == ["b", "a"]
    assert content["sources"]["a"]["licence"] == "licence of a"
    assert content["exclusions"]["lists"] == []
    spacing = [40000, 9000, 8000]  # units of 1e-4 mm
    hashes = sorted(pq.read_table(corpus / "volumes.parquet")["hash"].to_pylist())
    named = {
        "volumes": [[volume_hash, *spacing] for volume_hash in hashes],
        "settings": content["settings"],
        "exclusions": content["exclusions"] | {"volumes": []},
    }
    assert content["hash"] == hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()


def test_refusals_and_duplicates_are_lines_of_json(corpus):
    (rejected,) = map(json.loads, (corpus / "rejected.jsonl").read_text().splitlines())
    assert set(rejected) == {"source", "case", "files", "reason", "message"}
    assert (rejected["source"], rejected["case"], rejected["files"]) == ("a", "bad", ["bad.nii.gz"])
    (duplicate,) = map(json.loads, (corpus / "duplicates.jsonl").read_text().splitlines())
    assert duplicate == {
        "source": "a",
        "case": "copy",
        "files": ["copy.nii.gz"],
        "of": "b/case_1",
        "kind": "exact",
        "similarity": 1.0,
        "spacing_mm": pytest.approx([4, 0.9, 0.8]),
        "of_spacing_mm": pytest.approx([4, 0.9, 0.8]),
        "spacing_disagrees": False,
    }
    assert (corpus / "excluded.jsonl").read_text() == ""


def test_a_record_survives_its_file(tmp_path):
    statistics = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
    crc32 = np.array([0, 1, 2**32 - 1], np.uint32)
    record = VolumeRecord(
        "a", "1", ("x",), "i", fingerprint=b"\x00\xff", shape=(3, 4, 5), spacing_mm=(1.5, 0.1, 0.2), empty=(1,),
        statistics=statistics, crc32=crc32, metadata={"kvp": 120},
    )  # fmt: skip
    (tmp_path / "r.json").write_bytes(record.to_bytes())
    again = VolumeRecord.read(tmp_path / "r.json")
    assert again is not None
    assert again.to_bytes() == record.to_bytes()
    assert again.statistics.dtype == np.float32
    assert np.array_equal(again.statistics, statistics)
    assert again.crc32.dtype == np.uint32
    assert np.array_equal(again.crc32, crc32)
    assert VolumeRecord.read(tmp_path / "absent.json") is None
    (tmp_path / "r.json").write_text('{"source": "a"}')
    with pytest.raises(DataError, match="not a record of a volume"):
        VolumeRecord.read(tmp_path / "r.json")


def test_a_record_without_checksums_is_said(tmp_path):
    content = json.loads(VolumeRecord("a", "1", (), "i").to_bytes())
    del content["crc32"]
    (tmp_path / "r.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"not a record of a volume \('crc32'\). Delete it and run the curation again"):
        VolumeRecord.read(tmp_path / "r.json")


@pytest.mark.parametrize(("statistics", "checksums"), [(2, 3), (3, 2), (0, 3), (3, 0)])
def test_a_record_that_does_not_fit_its_slices_is_said(statistics, checksums):
    record = VolumeRecord(
        "a", "1", (), "i", shape=(3, 4, 5), spacing_mm=(1.0, 1.0, 1.0),
        statistics=np.zeros((statistics, 6), np.float32), crc32=np.zeros(checksums, np.uint32),
    )  # fmt: skip
    with pytest.raises(DataError, match="record of a/1 does not fit its 3 slices"):
        slices_table([record], {"a": "free"}, {})


def test_tables_of_no_volume_have_all_columns():
    volumes, slices = volumes_table([], {}, {}, {}), slices_table([], {}, {})
    assert (len(volumes), len(slices)) == (0, 0)
    assert pa.types.is_int16(slices.schema.field("index").type)
    assert pa.types.is_uint32(slices.schema.field("crc32").type)


def test_something_else_is_no_corpus(tmp_path):
    with pytest.raises(DataError, match="no finished corpus"):
        read_corpus(tmp_path)
    (tmp_path / "corpus.json").write_text('{"format": "other"}')
    with pytest.raises(DataError, match="describes .other. version None; this release reads .* version 1"):
        read_corpus(tmp_path)


def test_file_names_stay_below_their_folder():
    assert file_name("case_0001") == "case_0001"
    assert "/" not in file_name("../../etc/passwd")
