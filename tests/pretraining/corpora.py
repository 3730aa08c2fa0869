"""Small corpora with known voxels, and damage to them."""

from __future__ import annotations

from pathlib import Path

import blosc2
import numpy as np
from numpy.typing import NDArray

from benchmarks.corpora import write_manifest, write_volume


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


def write_corpus(corpus: Path) -> list[NDArray[np.int16]]:
    """Write three volumes of two sources, 11 slices of which one is air, and return the volumes."""
    layout = [("alpha", "a1", (4, 40, 48)), ("alpha", "a2", (2, 48, 32)), ("beta", "b1", (5, 48, 48))]
    arrays = [numbered_volume(number, *shape) for number, (_, _, shape) in enumerate(layout)]
    for (source, case, _), array in zip(layout, arrays, strict=True):
        write_volume(corpus / "volumes" / source / f"{case}.b2nd", array)
    write_manifest(corpus, layout, {(0, 3): "downsampled|empty", (2, 0): "not_empty"})
    return arrays
