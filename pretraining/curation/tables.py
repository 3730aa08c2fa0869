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
from pretraining.corpus.format import EMPTY, FLAG_SEPARATOR, SLICE_COLUMNS, VOLUME_COLUMNS, VOLUMES_FOLDER
from pretraining.corpus.slice_statistics import SliceStatistics
from pretraining.corpus.storage import write_whole
from pretraining.curation.process_volume import VolumeRecord, file_name


def volume_path(source: str, case: str) -> str:
    """Return where the slices of a volume lie, relative to the corpus."""
    return f"{VOLUMES_FOLDER}/{file_name(source)}/{file_name(case)}.b2nd"


def volumes_table(
    records: Sequence[VolumeRecord],
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


def volume_flags(record: VolumeRecord, marks: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the flags of a volume in the corpus, those that follow from its copies last."""
    return [*record.flags, *marks.get(record.name, ())]


def slices_table(
    records: Sequence[VolumeRecord], licences: Mapping[str, str], marks: Mapping[str, Sequence[str]]
) -> pa.Table:
    """Return ``slices.parquet``; arguments as in ``volumes_table``."""
    _check_rows(records)
    counts = np.asarray([record.shape[0] for record in records], np.int64)
    rows = np.repeat(np.arange(len(records), dtype=np.int32), counts)
    spacing = np.asarray([record.spacing_mm for record in records], np.float32).reshape(-1, 3)
    no_statistics = np.empty((0, len(SliceStatistics._fields)), np.float32)
    statistics = np.concatenate([no_statistics] + [record.statistics for record in records])
    plain = [FLAG_SEPARATOR.join(volume_flags(record, marks)) for record in records]
    flags = np.asarray(plain, object)[rows]
    starts = np.concatenate([[0], np.cumsum(counts)])
    for start, record, text in zip(starts, records, plain, strict=False):
        if record.empty:
            flags[start + np.asarray(record.empty)] = f"{text}{FLAG_SEPARATOR}{EMPTY}" if text else EMPTY
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


def _check_rows(records: Sequence[VolumeRecord]) -> None:
    """Reject records that do not have the statistics and the checksum of every slice."""
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


def corpus_hash(records: Iterable[VolumeRecord], settings: Mapping[str, Any], exclusions: Mapping[str, Any]) -> str:
    """Return what names the content of a corpus: SHA-256 of its volumes, its settings and its exclusions.

    A volume is named by its hash and its spacing in units of 1e-4 mm: its slices are resampled by it.
    """
    volumes = sorted([record.hash, *(round(size * 1e4) for size in record.native_spacing_mm)] for record in records)
    content = {"volumes": volumes, "settings": settings, "exclusions": exclusions}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
