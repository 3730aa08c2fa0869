"""Reading slices of a corpus at training speed: a worker decompresses int16 pixels into a batch, nothing else."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from nnunetv2_meddino.errors import DataError
from pretraining.corpus.format import (
    CORPUS_FILE,
    EMPTY,
    FLAG_SEPARATOR,
    MERGE_AGAIN,
    SLICES_FILE,
    VOLUMES_FILE,
    read_corpus,
    read_table,
    unreadable,
)
from pretraining.corpus.storage import CURATE_AGAIN, checksum

PADDING_HU = -1024
"""Air; no crop ever reaches into it."""

OPEN_VOLUMES = 512
"""Volumes a worker keeps open, at about 90 KiB each."""

ROWS_PER_BATCH = 2**16
"""Rows of ``slices.parquet`` read at a time, so that a table of millions is never in memory whole."""


_VOLUME_COLUMNS = ["source", "path", "slices", "height", "width", "spacing_y_mm", "spacing_x_mm"]


@dataclass(frozen=True)
class Slices:
    """A batch of slices. Only ``pixels`` are moved to an accelerator: crops are drawn on the host."""

    pixels: Tensor
    """``(B, S, S)`` int16 in HU (in scanner units for MR), the slice at the top left, the rest ``PADDING_HU``."""
    sizes: Tensor
    """``(B, 2)`` int64, height and width of each slice in pixels."""
    spacing: Tensor
    """``(B, 2)`` float32, (y, x) in mm."""
    indices: Tensor
    """``(B,)`` int64, rows of the manifest."""
    global_index: Tensor
    """``(B,)`` int64, positions in the global batch of the step; they seed the views."""

    def to(self, device: torch.device | str) -> Slices:
        """Return the batch with its pixels on a device."""
        return Slices(self.pixels.to(device), self.sizes, self.spacing, self.indices, self.global_index)


class SliceDataset(Dataset[Slices]):
    """The slices of a corpus by their row in ``slices.parquet``.

    Holds 11 bytes a slice and a few hundred a volume. Volumes are opened by the process that reads them.
    """

    def __init__(self, corpus: str | Path) -> None:
        """Read the manifest.

        Args:
            corpus: Folder of the corpus.

        Raises:
            DataError: The folder is not a corpus or is of another version, or its manifest is damaged or contradicts
                itself.
        """
        self.corpus = Path(corpus)
        described = read_corpus(self.corpus)
        table = read_table(self.corpus / VOLUMES_FILE, _VOLUME_COLUMNS)
        self.paths: list[str] = table["path"].to_pylist()
        counts, heights, widths = (table[name].to_numpy().astype(np.int32) for name in ("slices", "height", "width"))
        self.sizes = np.stack((heights, widths), axis=1)
        self.counts = counts
        spacings = [table[name].to_numpy().astype(np.float32) for name in ("spacing_y_mm", "spacing_x_mm")]
        self.spacing = np.stack(spacings, axis=1)
        source = table["source"].combine_chunks().dictionary_encode()
        self.sources: list[str] = source.dictionary.to_pylist()
        self.source_of_volume = source.indices.to_numpy().astype(np.int16)
        self.volume, self.index, self.crc32, self.usable = _read_slices(
            self.corpus / SLICES_FILE, described.get("slices"), counts
        )
        self.side = int(self.sizes.max(initial=1))
        """Side S of a batch in pixels: the longest of any volume, so that all batches are alike."""
        self._open: OrderedDict[int, Any] = OrderedDict()

    def __len__(self) -> int:
        return len(self.volume)

    def rows_by_source(self) -> dict[str, NDArray[np.int32]]:
        """Return the usable rows of each source: all slices but those that hold nothing but air."""
        source = self.source_of_volume[self.volume]
        return {
            name: np.flatnonzero(self.usable & (source == code)).astype(np.int32)
            for code, name in enumerate(self.sources)
        }

    def usable_rows(self) -> NDArray[np.int32]:
        """Return all usable rows, in the order of the manifest."""
        return np.flatnonzero(self.usable).astype(np.int32)

    def __getitem__(self, row: int) -> Slices:
        return self.__getitems__([row])

    def __getitems__(self, rows: Sequence[int]) -> Slices:
        """Return the slices of these rows as one batch, at global indices 0 to B - 1.

        Raises:
            DataError: See ``decode``.
        """
        pixels = torch.empty((len(rows), self.side, self.side), dtype=torch.int16)
        wanted = np.asarray(rows, np.int64)
        self.decode(wanted, pixels)
        return self.described(wanted, np.arange(len(wanted)), pixels)

    def decode(self, rows: NDArray[np.int64], pixels: Tensor) -> None:
        """Decompress slices straight into a batch.

        Args:
            rows: ``(B,)`` rows of the manifest.
            pixels: ``(B, S, S)`` int16 on the host, contiguous; every element is written.

        Raises:
            DataError: A file is missing, short or damaged (a slice's checksum is not the manifest's), or holds a volume
                of another shape than the manifest says.
        """
        for target, row in zip(pixels.numpy(), rows, strict=True):
            self._decode_slice(int(row), target)

    def check(self, row: int) -> None:
        """Read a slice and compare its checksum, without decompressing it.

        Raises:
            DataError: See ``decode``.
        """
        with self._reading(row):
            self._chunk(row)

    def described(self, rows: NDArray[np.int64], global_index: NDArray[np.int64], pixels: Tensor) -> Slices:
        """Return decoded pixels with what the manifest knows of them; shapes as in ``Slices``."""
        volumes = self.volume[rows]
        return Slices(
            pixels,
            torch.from_numpy(self.sizes[volumes].astype(np.int64)),
            torch.from_numpy(self.spacing[volumes]),
            torch.from_numpy(rows),
            torch.from_numpy(global_index),
        )

    def _decode_slice(self, row: int, target: NDArray[np.int16]) -> None:
        height, width = (int(n) for n in self.sizes[self.volume[row]])
        in_place = width == target.shape[1]
        slice_ = target[:height] if in_place else np.empty((height, width), np.int16)
        with self._reading(row):
            chunk = self._chunk(row)
            # checked first: the decoder trusts the lengths that a chunk claims
            if blosc2.get_cbuffer_sizes(chunk)[:2] != (slice_.nbytes, len(chunk)):
                raise ValueError("wrong chunk length")
            # with the decoder that the process has: one for each open volume costs 0.2 ms to make and a megabyte
            blosc2.decompress(chunk, dst=slice_)
        if not in_place:
            target[:height, :width] = slice_
            target[:height, width:] = PADDING_HU
        target[height:] = PADDING_HU

    def _chunk(self, row: int) -> bytes:
        """Return a slice as it is stored, its checksum compared: most flipped bits would decode to other voxels."""
        chunk = self._opened(int(self.volume[row])).schunk.get_chunk(int(self.index[row]))
        found, expected = checksum(chunk), int(self.crc32[row])
        if found != expected:
            raise ValueError(f"the slice's checksum is {found:08x}, the manifest says {expected:08x}")
        return chunk

    @contextmanager
    def _reading(self, row: int) -> Iterator[None]:
        """Turn what goes wrong while a slice is read into an error that names it."""
        try:
            yield
        except (RuntimeError, OSError, ValueError) as error:
            volume = int(self.volume[row])
            self._open.pop(volume, None)
            path = self.corpus / self.paths[volume]
            raise DataError(f"cannot read slice {self.index[row] + 1} of {path}: {_reason(path, error)}") from error

    def _opened(self, volume: int) -> Any:
        """Return an open volume whose layout has been checked; the least recently used one makes room."""
        array = self._open.get(volume)
        if array is None:
            path = self.corpus / self.paths[volume]
            # plain reads, not a memory map: a file that shrinks under a map kills the process instead of failing
            array = blosc2.open(str(path), mode="r", dparams=blosc2.DParams(nthreads=1))
            height, width = (int(n) for n in self.sizes[volume])
            expected = (int(self.counts[volume]), height, width)
            found = (array.shape, array.chunks, array.blocks, array.dtype)
            if found != (expected, (1, height, width), (1, height, width), np.dtype(np.int16)):
                raise DataError(
                    f"{path} does not hold what the manifest says: {expected} int16, one chunk a slice; it is "
                    f"{array.shape} {array.dtype} in chunks of {array.chunks}. {CURATE_AGAIN}"
                )
            self._open[volume] = array
            if len(self._open) > OPEN_VOLUMES:
                self._open.popitem(last=False)
        self._open.move_to_end(volume)
        return array

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}


def _reason(path: Path, error: Exception) -> str:
    if not path.exists():
        return "the file does not exist. Was the corpus moved, or its curation not finished?"
    return f"the file is short or damaged ({error}). {CURATE_AGAIN}"


def _read_slices(
    path: Path, slices: int | None, counts: NDArray[np.int32]
) -> tuple[NDArray[np.int32], NDArray[np.int16], NDArray[np.uint32], NDArray[np.bool_]]:
    """Return volume, index in it, checksum, and whether it may be sampled, of every slice."""
    try:
        file = pq.ParquetFile(path)
        rows = file.metadata.num_rows
        if rows != slices:
            raise DataError(f"{path} has {rows} rows, {CORPUS_FILE} counts {slices} slices. {MERGE_AGAIN}")
        volume, index = np.empty(rows, np.int32), np.empty(rows, np.int16)
        crc32, usable = np.empty(rows, np.uint32), np.empty(rows, np.bool_)
        done = 0
        for batch in file.iter_batches(ROWS_PER_BATCH, columns=["volume", "index", "crc32", "flags"]):
            here = slice(done, done + batch.num_rows)
            volume[here], index[here] = batch["volume"].to_numpy(), batch["index"].to_numpy()
            crc32[here] = batch["crc32"].to_numpy()
            usable[here] = ~_is_empty(batch["flags"])
            done += batch.num_rows
    except (OSError, pa.ArrowException, KeyError) as error:
        raise unreadable(path, error) from error
    outside = (volume < 0) | (volume >= len(counts))
    if not outside.any():
        outside = (index < 0) | (index >= counts[volume])
    if outside.any():
        row = int(np.flatnonzero(outside)[0])
        raise DataError(f"{path}, row {row}: slice {index[row]} of volume {volume[row]} is not in volumes.parquet")
    return volume, index, crc32, usable


def _is_empty(flags: pa.Array) -> NDArray[np.bool_]:
    """Return which slices have the flag ``EMPTY`` among theirs, given the column of flags."""
    encoded = flags if isinstance(flags, pa.DictionaryArray) else flags.dictionary_encode()
    empty = [EMPTY in (text or "").split(FLAG_SEPARATOR) for text in encoded.dictionary.to_pylist()]
    having = np.array([*empty, False])  # the last for rows without flags
    return having[encoded.indices.fill_null(len(empty)).to_numpy(zero_copy_only=False)]
