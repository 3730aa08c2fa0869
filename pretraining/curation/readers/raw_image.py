"""A volume as a file holds it, and files read to the last byte.

Nothing here trusts a library that fills what a damaged file lacks with zeros: SimpleITK opens a truncated or altered
``.nii.gz`` without an error. Compressed streams are decompressed to their end, which verifies checksum and length.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from pretraining.curation.volume import Refused

_HIGHEST_COMPRESSION = 1032
"""Of deflate: 258 bytes become 2 bits."""

_ONE = np.ones((1, 1, 1))

MM_PER_UNIT = {
    **dict.fromkeys(("m", "meter", "meters", "metre", "metres"), 1000.0),
    **dict.fromkeys(("cm", "centimeter", "centimeters", "centimetre", "centimetres"), 10.0),
    **dict.fromkeys(("um", "\N{MICRO SIGN}m", "micron", "microns", "micrometer", "micrometers"), 0.001),
}
"""Units of length that headers may count in; whatever else they say, or nothing, is millimetres."""


@dataclass(eq=False)
class Stored:
    """Stored values and what the header says about them.

    Attributes:
        values: Three axes, the fastest last; any type.
        axes_mm: ``(3, 3)``; row ``i`` is the step along array axis ``i`` in (L, P, S). None where the format or the
            image (a projection) has no place in the patient.
        spacing_mm: Along the array axes; read only where ``axes_mm`` is None.
        slope: ``(1, 1, 1)``, or with one value for each index along the first axis: value = slope * stored + intercept.
        intercept: The same shape.
        padding: Values (after rescaling) that the header calls padding.
        flags: Keys of ``FLAGS``.
        metadata: What the header adds to ``Volume.metadata``.
        unit: What the header counts lengths in, for messages; the fields above are in millimetres whatever it is.
    """

    values: NDArray[Any]
    axes_mm: NDArray[np.float64] | None
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
    slope: NDArray[np.float64] = field(default_factory=_ONE.copy)
    intercept: NDArray[np.float64] = field(default_factory=lambda: _ONE * 0)
    padding: frozenset[int] = frozenset()
    flags: set[str] = field(default_factory=set)
    metadata: dict[str, Any] = field(default_factory=dict)
    unit: str = "mm"


def as_three_axes(shape: Sequence[int]) -> tuple[int, int, int]:
    """Return a stored shape, slowest axis first, without the axes of length 1 in front of the last three.

    Raises:
        Refused: ``4d``, ``single_slice`` (two axes) or ``bad_geometry`` (an axis without voxels).
    """
    sizes = [int(size) for size in shape]
    while len(sizes) > 3 and sizes[0] == 1:
        del sizes[0]
    if len(sizes) > 3:
        raise Refused("4d", f"{len(sizes)} axes of {' x '.join(map(str, reversed(sizes)))} values")
    if any(size < 1 for size in sizes) or not sizes:
        raise Refused("bad_geometry", f"axes of {sizes} voxels")
    if len(sizes) < 3:
        raise Refused("single_slice", f"a picture of {' x '.join(map(str, sizes))} pixels")
    return sizes[0], sizes[1], sizes[2]


def check_possible(stored_bytes: int, count: int) -> None:
    """Refuse, before memory is asked for, sizes that even an all but empty picture cannot be compressed from."""
    if count > _HIGHEST_COMPRESSION * stored_bytes:
        raise Refused("truncated", f"{stored_bytes} bytes cannot hold the {count} bytes of voxels that are declared")


def read_exactly(stream: BinaryIO, count: int) -> bytearray:
    """Read a stream that must end after ``count`` bytes, and a gzip stream's checksum with it.

    Raises:
        Refused: ``truncated`` or ``corrupt``.
    """
    try:
        content = bytearray(count)
        view, filled = memoryview(content), 0
        while filled < count and (read := stream.readinto(view[filled:])):  # type: ignore[attr-defined]
            filled += read
        if filled < count:
            raise Refused("truncated", f"holds {filled} bytes of voxels where {count} are declared")
        if stream.read(1):
            raise Refused("corrupt", f"holds more than the {count} bytes of voxels that are declared")
    except EOFError as error:
        raise Refused("truncated", "the compressed stream ends before its end mark") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise Refused("corrupt", f"the compressed stream is damaged ({error})") from error
    except OSError as error:
        if error.errno is not None:  # the disk; a damaged bzip2 stream has no number
            raise
        raise Refused("corrupt", f"the compressed stream is damaged ({error})") from error
    return content


def open_stream(path: Path) -> BinaryIO:
    """Open a file for reading, decompressed if it begins as gzip does, whatever its name."""
    with path.open("rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
    return cast(BinaryIO, gzip.open(path) if compressed else path.open("rb"))


def inflate(content: bytes, count: int, wbits: int) -> bytearray:
    """Decompress a zlib (``wbits`` 15) or gzip (31) stream that must give ``count`` bytes and be complete.

    Raises:
        Refused: ``truncated`` or ``corrupt``.
    """
    check_possible(len(content), count)
    engine = zlib.decompressobj(wbits)
    try:
        plain = bytearray(engine.decompress(content, count + 1))
        if len(plain) <= count:
            plain += engine.flush()
    except zlib.error as error:
        raise Refused("corrupt", f"the compressed stream is damaged ({error})") from error
    if len(plain) < count or not engine.eof:
        if len(plain) > count:
            raise Refused("corrupt", f"holds more than the {count} bytes of voxels that are declared")
        raise Refused("truncated", f"the compressed stream ends after {len(plain)} of {count} bytes")
    if len(plain) > count:
        raise Refused("corrupt", f"holds {len(plain)} bytes of voxels where {count} are declared")
    return plain
