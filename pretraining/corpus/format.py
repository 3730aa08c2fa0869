"""The format of a corpus on disk: its files, the columns of its tables, and reading them.

CORPUS/corpus.json          what is in it: settings, sources, counts, and a hash that names its content
CORPUS/volumes.parquet      a row a volume
CORPUS/slices.parquet       a row a slice, in the order of the volumes
CORPUS/volumes/             a blosc2 file a volume, see ``pretraining.corpus.storage``
CORPUS/*.jsonl              what was left out, and why
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nnunetv2_meddino.errors import DataError
from nnunetv2_meddino.files import read_json
from pretraining.corpus.slice_statistics import SliceStatistics

FORMAT, VERSION = "nnunetv2_meddino corpus", 1
CORPUS_FILE = "corpus.json"
VOLUMES_FILE, SLICES_FILE = "volumes.parquet", "slices.parquet"
REJECTED_FILE, DUPLICATES_FILE, EXCLUDED_FILE = "rejected.jsonl", "duplicates.jsonl", "excluded.jsonl"
VOLUMES_FOLDER = "volumes"

EMPTY = "empty"
"""Flag of a slice that holds nothing but air; it is never sampled."""

FLAG_SEPARATOR = "|"
"""Between the flags of a slice, which are one text."""

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

MERGE_AGAIN = "Run meddino-pretrain merge on the corpus again."
"""What to do about a damaged table."""


def read_corpus(corpus: Path) -> dict[str, Any]:
    """Return ``corpus.json``.

    Raises:
        DataError: There is no finished corpus in the folder, or one of another version.
    """
    path = corpus / CORPUS_FILE
    if not path.is_file():
        msg = f"{corpus} holds no finished corpus: there is no {CORPUS_FILE}. Run meddino-pretrain curate or merge."
        raise DataError(msg)
    content = read_json(path, DataError, MERGE_AGAIN)
    found = content.get("format"), content.get("version")
    if found != (FORMAT, VERSION):
        raise DataError(
            f"{path} describes {found[0]!r} version {found[1]}; this release reads {FORMAT!r} version {VERSION}. "
            "Curate the corpus again, or use the release that made it."
        )
    for counts in (content.get("counts", {}), *content.get("sources", {}).values()):
        if "refused" in counts:  # what the release before this one called it; to be dropped with the next one
            counts["rejected"] = counts.pop("refused")
    return content


def read_volumes(corpus: Path) -> dict[str, list[Any]]:
    """Return the columns of ``volumes.parquet``.

    Raises:
        DataError: It cannot be read.
    """
    return read_table(corpus / VOLUMES_FILE).to_pydict()


def read_table(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Return a Parquet file, or some of its columns in this order.

    Raises:
        DataError: It cannot be read, or lacks a column.
    """
    try:
        return pq.read_table(path, columns=columns)
    except (OSError, pa.ArrowException) as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> DataError:
    """Return the error about a table that cannot be read."""
    return DataError(f"{path} cannot be read: {error}. {MERGE_AGAIN}")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a JSON Lines file.

    Raises:
        DataError: It cannot be read.
    """
    try:
        return [json.loads(line) for line in path.read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
