"""Writes small corpora in the layout that the reader documents."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import blosc2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

SPACING_MM = (0.7, 0.8)


def write_volume(path: Path, volume: NDArray[np.int16]) -> None:
    """Write a volume ``(z, y, x)`` as one blosc2 file with one chunk a slice."""
    path.parent.mkdir(parents=True, exist_ok=True)
    slice_shape = (1, *volume.shape[1:])
    parameters = blosc2.CParams(
        codec=blosc2.Codec.ZSTD, clevel=1, filters=[blosc2.Filter.BITSHUFFLE], filters_meta=[0], nthreads=1
    )
    blosc2.asarray(volume, urlpath=str(path), mode="w", chunks=slice_shape, blocks=slice_shape, cparams=parameters)


def flip_silent_bit(path: Path, index: int) -> None:
    """Flip one bit in the second half of a stored slice, one that plain blosc2 decodes to other voxels unnoticed."""
    whole = path.read_bytes()
    array = blosc2.open(str(path), mode="r")
    voxels, chunk = array[index], array.schunk.get_chunk(index)
    start = whole.index(chunk)
    for bit in range(8 * (start + len(chunk) // 2), 8 * (start + len(chunk))):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            if (blosc2.open(str(path), mode="r")[index] != voxels).any():
                return
        except RuntimeError:
            pass
    msg = f"every bit of slice {index} of {path} is noticed by the decoder"
    raise AssertionError(msg)


def numbered_volume(number: int, slices: int, height: int, width: int) -> NDArray[np.int16]:
    """Return a volume in which every slice is different and every pixel names its row and column."""
    z, y, x = np.ogrid[:slices, :height, :width]
    return (1000 * number + 100 * z + y % 50 - x % 30).astype(np.int16)


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
    columns = {
        "source": [source for source, _, _ in volumes],
        "case": [case for _, case, _ in volumes],
        "path": [f"volumes/{source}/{case}.b2nd" for source, case, _ in volumes],
        "slices": pa.array(counts, pa.int32()),
        "height": pa.array([shape[1] for _, _, shape in volumes], pa.int32()),
        "width": pa.array([shape[2] for _, _, shape in volumes], pa.int32()),
        "spacing_y_mm": pa.array([SPACING_MM[0]] * len(volumes), pa.float32()),
        "spacing_x_mm": pa.array([SPACING_MM[1]] * len(volumes), pa.float32()),
    }
    pq.write_table(pa.table(columns), corpus / "volumes.parquet")
    volume = np.repeat(np.arange(len(volumes), dtype=np.int32), counts)
    index = np.concatenate([np.arange(count, dtype=np.int16) for count in counts])
    crc32 = [_checksums(corpus / path, count) for path, count in zip(columns["path"], counts, strict=True)]
    rows = {"volume": volume, "index": index, "crc32": np.concatenate(crc32)}
    if flags is None:
        rows["flags"] = pa.DictionaryArray.from_arrays(np.zeros(len(volume), np.int32), [""])
    else:
        rows["flags"] = pa.array([flags.get(key, "") for key in zip(volume, index, strict=True)]).dictionary_encode()
    pq.write_table(pa.table(rows), corpus / "slices.parquet", row_group_size=2**20)
    described = {"format": "nnunetv2_meddino corpus", "version": 1, "volumes": len(volumes), "slices": len(volume)}
    (corpus / "corpus.json").write_text(json.dumps(described))


def _checksums(path: Path, slices: int) -> NDArray[np.uint32]:
    if not path.exists():
        return np.random.default_rng(slices).integers(0, 2**32, slices, np.uint32)
    array = blosc2.open(str(path), mode="r")
    return np.array([zlib.crc32(array.schunk.get_chunk(index)) for index in range(slices)], np.uint32)


def write_corpus(corpus: Path) -> list[NDArray[np.int16]]:
    """Write three volumes of two sources, 11 slices of which one is air, and return the volumes."""
    layout = [("alpha", "a1", (4, 40, 48)), ("alpha", "a2", (2, 48, 32)), ("beta", "b1", (5, 48, 48))]
    arrays = [numbered_volume(number, *shape) for number, (_, _, shape) in enumerate(layout)]
    for (source, case, _), array in zip(layout, arrays, strict=True):
        write_volume(corpus / "volumes" / source / f"{case}.b2nd", array)
    write_manifest(corpus, layout, {(0, 3): "downsampled|empty", (2, 0): "not_empty"})
    return arrays
