"""How slices are stored: at which size, and in one compressed file for each volume.

The layout, one chunk for each slice with ZSTD level 1 and bitshuffle, was chosen by measurement: 0.78 bytes a voxel,
and reading a random slice decodes one chunk (about 0.3 ms on one core).
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from nnunetv2_meddino.errors import ConfigurationError, DataError
from nnunetv2_meddino.files import replacing

MAX_SIZE_PX = 512
"""Slices with a longer side are downsampled: nearly all CT is reconstructed at this size, and no crop needs more."""

CURATE_AGAIN = "Curate this volume again: delete the file and run the curation."
"""What to do about a damaged volume. A file of the right size counts as finished until it is deleted."""

STORE_FLAGS = {
    "downsampled": f"slices larger than {MAX_SIZE_PX} pixels were made smaller (antialiased, proportions kept)",
    "resampled": "slices were resampled in plane to the requested spacing",
    "resized": "slices were resized to the requested square",
}
"""Flags for what curation itself did to a volume."""


@dataclass(frozen=True)
class StoreSettings:
    """How slices are kept.

    256 and 0.45 are the two steps of the MedDINOv3 paper (section 3.2). With both None, only slices beyond
    ``MAX_SIZE_PX`` change.
    """

    store_size: int | None = None
    """Side in pixels of the square every slice is resized to, or None for its own size."""
    spacing_mm: float | None = None
    """In-plane spacing in mm that slices are resampled to first, or None for their own."""

    def __post_init__(self) -> None:
        if self.store_size is not None and not 16 <= self.store_size <= 4096:
            raise ConfigurationError(f"--store-size must be 16 to 4096 pixels, not {self.store_size}.")
        if self.spacing_mm is not None and not 0.05 <= self.spacing_mm <= 20:
            raise ConfigurationError(f"--spacing must be 0.05 to 20 mm, not {self.spacing_mm}.")

    def to_json(self) -> dict[str, Any]:
        """Return everything that decides what a stored voxel is."""
        return asdict(self) | {"max_size_px": MAX_SIZE_PX}


@dataclass(frozen=True)
class Resizing:
    """The steps from a slice as read to a slice as stored."""

    sizes: tuple[tuple[int, int], ...]
    """Height and width after each step; empty where the slice is kept as it is."""
    spacing_mm: tuple[float, float]
    """Spacing ``(y, x)`` after the last step: the field of view stays, so it follows from the sizes."""
    flags: tuple[str, ...]
    """Names from ``STORE_FLAGS``."""


def plan_resizing(size: tuple[int, int], spacing_mm: tuple[float, float], settings: StoreSettings) -> Resizing:
    """Return how slices of ``size`` (height, width) and ``spacing_mm`` (y, x) are resized before they are stored."""
    now, sizes, flags = size, [], []
    if settings.spacing_mm is not None:
        wanted = settings.spacing_mm
        target = (max(1, round(size[0] * spacing_mm[0] / wanted)), max(1, round(size[1] * spacing_mm[1] / wanted)))
        if target != now:
            sizes.append(now := target)
            flags.append("resampled")
    if settings.store_size is not None:
        target = (settings.store_size, settings.store_size)
        if target != now:
            sizes.append(now := target)
            flags.append("resized")
    elif settings.spacing_mm is None and max(size) > MAX_SIZE_PX:
        factor = MAX_SIZE_PX / max(size)
        sizes.append(now := (max(1, round(size[0] * factor)), max(1, round(size[1] * factor))))
        flags.append("downsampled")
    after = (spacing_mm[0] * size[0] / now[0], spacing_mm[1] * size[1] / now[1])
    return Resizing(tuple(sizes), after, tuple(flags))


class Resizer:
    """Resizes slices ``(H, W)`` int16 through the steps of a plan, rounding once at the end.

    A step is a product with one weight matrix for each axis: bilinear, antialiased where it downsamples (the triangle
    widens with the factor, as in Pillow's and torch's antialiased bilinear resize). Steps are linear, so their matrices
    are multiplied beforehand.
    """

    def __init__(self, size: tuple[int, int], plan: Resizing) -> None:
        self.size = size
        self._rows = self._columns = None
        for target in plan.sizes:
            rows, columns = (resize_weights(n, m) for n, m in zip(self.size, target, strict=True))
            self._rows = rows if self._rows is None else rows @ self._rows
            self._columns = columns if self._columns is None else columns @ self._columns
            self.size = target

    def __call__(self, image: NDArray[np.int16]) -> NDArray[np.int16]:
        """Return the slice as it is stored."""
        if self._rows is None or self._columns is None:
            return image
        return np.rint(self._rows @ image.astype(np.float32) @ self._columns.T).astype(np.int16)


def resize_weights(size: int, target: int) -> NDArray[np.float32]:
    """Return the matrix ``(target, size)`` that resizes an axis: half-pixel centres, triangle filter, rows sum to 1."""
    scale = size / target
    width = max(scale, 1.0)
    centres = (np.arange(target) + 0.5) * scale
    distance = np.abs(np.arange(size)[None] + 0.5 - centres[:, None]) / width
    weights = np.maximum(1 - distance, 0)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def encode(slices: Iterable[NDArray[np.int16]], count: int, size: tuple[int, int]) -> bytes:
    """Compress slices ``(H, W)`` to the content of a ``.b2nd`` file of shape ``(count, H, W)``.

    The file is made in memory, so that a full disk is noticed by a plain write. The same voxels give the same bytes,
    except for the number of threads in the header where ``BLOSC_NTHREADS`` is set.
    """
    chunk = (1, *size)
    settings = blosc2.CParams(codec=blosc2.Codec.ZSTD, clevel=1, filters=[blosc2.Filter.BITSHUFFLE], nthreads=1)
    array = blosc2.empty((count, *size), dtype=np.int16, chunks=chunk, blocks=chunk, cparams=settings)
    written = 0
    for index, image in enumerate(slices):
        array[index] = image
        written = index + 1
    if written != count:
        raise ValueError(f"encode: expected {count} slices, got {written}")
    return array.to_cframe()


def checksum(chunk: bytes) -> int:
    """Return the CRC-32 of a slice as it is stored, compressed; the same number as ``zlib.crc32``.

    Of the stored bytes and not the voxels: they are fewer, a damaged chunk never reaches the decoder, which trusts its
    input, and a corpus can be checked without decompressing it.
    """
    return isal_zlib.crc32(chunk)


def chunk_checksums(content: bytes) -> NDArray[np.uint32]:
    """Return the checksum of every slice of a ``.b2nd`` file, ``(count,)``, given what ``encode`` made.

    Chunks are read back from the file's content, so that they are what a reader will get: for a slice of zeros blosc2
    stores nothing but a mark, from which it makes the chunk.
    """
    array = blosc2.ndarray_from_cframe(content)
    return np.array([checksum(array.schunk.get_chunk(index)) for index in range(array.shape[0])], np.uint32)


def open_volume(path: Path) -> blosc2.NDArray:
    """Open a stored volume, int16 ``(slices, height, width)``; indexing decompresses.

    Raises:
        DataError: The file is missing or damaged.
    """
    try:
        return blosc2.open(str(path), mode="r")
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(f"{path} cannot be opened as a stored volume: {error}. {CURATE_AGAIN}") from error


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, safe from a power cut.

    Raises:
        DataError: The disk is full, or the folder cannot be written to.
    """
    try:
        with replacing(path, fsync=True) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise write_error(path, error) from error


def write_error(path: Path, error: OSError) -> DataError:
    """Return the error about a file of a corpus that cannot be written."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    advice = "Make room there" if full else "Make sure that the folder can be written to"
    return DataError(
        f"{path} cannot be written: {error.strerror or error}. {advice} and run the same command again; "
        "what is finished is kept."
    )
