"""The tables of a corpus: one row a volume, one row a slice, and what was left out and why.

Everything is a function of the records alone, sorted, without times or absolute paths: the same volumes give the same
bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nnunetv2_meddino.errors import DataError
from nnunetv2_meddino.files import read_json
from pretraining.corpus.slice_statistics import SliceStatistics
from pretraining.corpus.storage import write_whole
from pretraining.curation.process_volume import Record, file_name

FORMAT, VERSION = "nnunetv2_meddino corpus", 1
CORPUS_FILE = "corpus.json"
VOLUMES_FILE, SLICES_FILE = "volumes.parquet", "slices.parquet"
REJECTED_FILE, DUPLICATES_FILE, EXCLUDED_FILE = "rejected.jsonl", "duplicates.jsonl", "excluded.jsonl"
VOLUMES_FOLDER = "volumes"
EMPTY = "empty"
"""Flag of a slice that holds air alone."""

_CATEGORY = pa.dictionary(pa.int32(), pa.string())

VOLUME_COLUMNS = pa.schema(
    [
        ("source", pa.string()),
        ("case", pa.string()),
        ("path", pa.string()),
        ("hash", pa.string()),
        ("fingerprint", pa.binary()),
        *((name, pa.int32()) for name in ("slices", "height", "width")),
        *((f"spacing_{axis}_mm", pa.float32()) for axis in "zyx"),
        ("modality", pa.string()),
        ("licence", pa.string()),
        ("flags", pa.list_(pa.string())),
        ("names", pa.list_(pa.string())),
    ]
)

SLICE_COLUMNS = pa.schema(
    [
        ("volume", pa.int32()),
        ("index", pa.int16()),
        *((name, _CATEGORY) for name in ("source", "case", "volume_hash")),
        ("spacing_y_mm", pa.float32()),
        ("spacing_x_mm", pa.float32()),
        *((name, pa.float32()) for name in SliceStatistics._fields),
        ("licence", _CATEGORY),
        ("flags", _CATEGORY),
        ("crc32", pa.uint32()),
    ]
)


def volume_path(source: str, case: str) -> str:
    """Return where the slices of a volume lie, relative to the corpus."""
    return f"{VOLUMES_FOLDER}/{file_name(source)}/{file_name(case)}.b2nd"


def volumes_table(
    records: Sequence[Record],
    names: Mapping[str, Sequence[str]],
    licences: Mapping[str, str],
    marks: Mapping[str, Sequence[str]],
) -> pa.Table:
    """Return ``volumes.parquet``.

    Args:
        records: The volumes of the corpus, sorted by source and case.
        names: All names of each, its own first.
        licences: Of each source.
        marks: Flags that follow from the copies of volumes, by name.
    """
    spacing = np.asarray([record.spacing_mm for record in records], np.float32).reshape(-1, 3)
    shape = np.asarray([record.shape for record in records], np.int32).reshape(-1, 3)
    columns = {
        "source": [record.source for record in records],
        "case": [record.case for record in records],
        "path": [volume_path(record.source, record.case) for record in records],
        "hash": [record.hash for record in records],
        "fingerprint": [record.fingerprint for record in records],
        **{name: shape[:, i] for i, name in enumerate(("slices", "height", "width"))},
        **{f"spacing_{axis}_mm": spacing[:, i] for i, axis in enumerate("zyx")},
        "modality": [record.modality for record in records],
        "licence": [licences[record.source] for record in records],
        "flags": [volume_flags(record, marks) for record in records],
        "names": [list(names[record.name]) for record in records],
    }
    return pa.table(columns, schema=VOLUME_COLUMNS)


def volume_flags(record: Record, marks: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the flags of a volume in the corpus, those that follow from its copies last."""
    return [*record.flags, *marks.get(record.name, ())]


def slices_table(
    records: Sequence[Record], licences: Mapping[str, str], marks: Mapping[str, Sequence[str]]
) -> pa.Table:
    """Return ``slices.parquet``; arguments as in ``volumes_table``."""
    _check_rows(records)
    counts = np.asarray([record.shape[0] for record in records], np.int64)
    rows = np.repeat(np.arange(len(records), dtype=np.int32), counts)
    spacing = np.asarray([record.spacing_mm for record in records], np.float32).reshape(-1, 3)
    no_statistics = np.empty((0, len(SliceStatistics._fields)), np.float32)
    statistics = np.concatenate([no_statistics] + [record.statistics for record in records])
    plain = ["|".join(volume_flags(record, marks)) for record in records]
    flags = np.asarray(plain, object)[rows]
    starts = np.concatenate([[0], np.cumsum(counts)])
    for start, record, text in zip(starts, records, plain, strict=False):
        if record.empty:
            flags[start + np.asarray(record.empty)] = f"{text}|{EMPTY}" if text else EMPTY
    columns = {
        "volume": rows,
        "index": np.concatenate([np.empty(0, np.int16)] + [np.arange(n, dtype=np.int16) for n in counts]),
        "source": _category([record.source for record in records], rows),
        "case": _category([record.case for record in records], rows),
        "volume_hash": _category([record.hash for record in records], rows),
        "spacing_y_mm": spacing[rows, 1],
        "spacing_x_mm": spacing[rows, 2],
        **{name: statistics[:, i] for i, name in enumerate(SliceStatistics._fields)},
        "licence": _category([licences[record.source] for record in records], rows),
        "flags": pa.array(flags, pa.string()).dictionary_encode(),
        "crc32": np.concatenate([np.empty(0, np.uint32)] + [record.crc32 for record in records]),
    }
    return pa.table(columns, schema=SLICE_COLUMNS)


def _check_rows(records: Sequence[Record]) -> None:
    """Refuse records that do not have the statistics and the checksum of every slice."""
    for record in records:
        slices = record.shape[0]
        if record.statistics.shape != (slices, len(SliceStatistics._fields)) or record.crc32.shape != (slices,):
            raise DataError(f"The record of {record.name} does not fit its {slices} slices. Run the curation again.")


def _category(values: Sequence[str], rows: np.ndarray) -> pa.DictionaryArray:
    """Return one value a volume as a dictionary-encoded column of one value a slice."""
    dictionary = {value: code for code, value in enumerate(dict.fromkeys(values))}
    codes = np.asarray([dictionary[value] for value in values], np.int32)
    return pa.DictionaryArray.from_arrays(pa.array(codes[rows]), pa.array(list(dictionary), pa.string()))


def write_table(table: pa.Table, path: Path) -> None:
    """Write a Parquet file, whole or not at all."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", row_group_size=1 << 18)
    write_whole(path, buffer.getvalue())


def write_lines(lines: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Write a JSON Lines file, whole or not at all."""
    write_whole(path, "".join(json.dumps(line) + "\n" for line in lines).encode())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a JSON Lines file.

    Raises:
        DataError: It cannot be read.
    """
    try:
        return [json.loads(line) for line in path.read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}. Run meddino-pretrain merge on the corpus again.") from error


def corpus_hash(records: Iterable[Record], settings: Mapping[str, Any], exclusions: Mapping[str, Any]) -> str:
    """Return what names the content of a corpus: SHA-256 of its volumes, its settings and its exclusions.

    A volume is named by its hash and its spacing in units of 1e-4 mm: its slices are resampled by it.
    """
    volumes = sorted([record.hash, *(round(size * 1e4) for size in record.native_spacing_mm)] for record in records)
    content = {"volumes": volumes, "settings": settings, "exclusions": exclusions}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_corpus(corpus: Path) -> dict[str, Any]:
    """Return ``corpus.json``.

    Raises:
        DataError: There is no finished corpus in the folder, or one of another version.
    """
    path = corpus / CORPUS_FILE
    if not path.is_file():
        msg = f"{corpus} holds no finished corpus: there is no {CORPUS_FILE}. Run meddino-pretrain curate or merge."
        raise DataError(msg)
    content = read_json(path, DataError, "Run meddino-pretrain merge on the corpus again.")
    if content.get("format") != FORMAT or content.get("version") != VERSION:
        raise DataError(f"{path} is no corpus of version {VERSION}. Curate it anew.")
    return content


def read_volumes(corpus: Path) -> dict[str, list[Any]]:
    """Return the columns of ``volumes.parquet``.

    Raises:
        DataError: It cannot be read.
    """
    return read_table(corpus / VOLUMES_FILE).to_pydict()


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Return a Parquet file, or some of its columns.

    Raises:
        DataError: It cannot be read.
    """
    try:
        return pq.read_table(path, columns=columns)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read: {error}. Run meddino-pretrain merge on the corpus again.") from error
