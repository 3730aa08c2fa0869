"""Small corpora of made-up volumes, for the benchmarks and the tests."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pretraining.corpus.format import CORPUS_FILE, FORMAT, SLICES_FILE, VERSION, VOLUMES_FILE, VOLUMES_FOLDER
from pretraining.corpus.storage import chunk_checksums, encode

SPACING_MM = (0.7, 0.8)


def write_volume(path: Path, volume: NDArray[np.int16]) -> None:
    """Write a volume ``(z, y, x)`` as the corpus keeps it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(volume, len(volume), volume.shape[1:]))


def write_manifest(
    corpus: Path,
    volumes: Sequence[tuple[str, str, tuple[int, int, int]]],
    flags: Mapping[tuple[int, int], str] | None = None,
) -> None:
    """Write ``corpus.json`` and both tables for volumes given as (source, case, shape); flags by (volume, slice).

    Checksums are those of the volumes already written, random for all others.
    """
    corpus.mkdir(parents=True, exist_ok=True)
    counts = np.array([shape[0] for _, _, shape in volumes])
    paths = [f"{VOLUMES_FOLDER}/{source}/{case}.b2nd" for source, case, _ in volumes]
    columns = {
        "source": [source for source, _, _ in volumes],
        "case": [case for _, case, _ in volumes],
        "path": paths,
        **{
            name: pa.array([shape[axis] for _, _, shape in volumes], pa.int32())
            for axis, name in enumerate(("slices", "height", "width"))
        },
        **{
            f"spacing_{axis}_mm": pa.array([size] * len(volumes), pa.float32())
            for axis, size in zip("yx", SPACING_MM, strict=True)
        },
    }
    pq.write_table(pa.table(columns), corpus / VOLUMES_FILE)
    volume = np.repeat(np.arange(len(volumes), dtype=np.int32), counts)
    index = np.concatenate([np.arange(count, dtype=np.int16) for count in counts])
    crc32 = [_checksums(corpus / path, count) for path, count in zip(paths, counts, strict=True)]
    rows = {"volume": volume, "index": index, "crc32": np.concatenate(crc32)}
    if flags is None:
        rows["flags"] = pa.DictionaryArray.from_arrays(np.zeros(len(volume), np.int32), [""])
    else:
        rows["flags"] = pa.array([flags.get(key, "") for key in zip(volume, index, strict=True)]).dictionary_encode()
    pq.write_table(pa.table(rows), corpus / SLICES_FILE, row_group_size=2**20)
    described = {"format": FORMAT, "version": VERSION, "volumes": len(volumes), "slices": len(volume)}
    (corpus / CORPUS_FILE).write_text(json.dumps(described))


def _checksums(path: Path, slices: int) -> NDArray[np.uint32]:
    if path.exists():
        return chunk_checksums(path.read_bytes())
    return np.random.default_rng(slices).integers(0, 2**32, slices, np.uint32)
