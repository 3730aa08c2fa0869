"""Voxels that a text header (NRRD, MetaImage) describes: behind it, in a file of their own, or in several.

SimpleITK does not read them here: 2.5.7 takes a damaged or cut compressed MetaImage for a whole one, leaves what a list
of files lacks as memory happened to be, reads no bzip2, and its parsers crash or hang on damaged headers.
"""

from __future__ import annotations

import bz2
import gzip
import math
import os
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from pretraining.curation.readers.raw_image import check_possible, inflate, read_exactly
from pretraining.curation.volume import Refused

_MAX_HEADER_BYTES = 1 << 20
"""More than a header with the names of ten thousand files."""

_MAX_FILES = 10_000

_ZLIB_OR_GZIP = 47
"""What zlib calls either: MetaImage is zlib by definition, and some writers use gzip."""


def header_lines(path: Path) -> Iterator[tuple[str, int]]:
    """Yield the lines of a text header, without their ends, each with the position behind it in the file."""
    with path.open("rb") as file:
        while file.tell() < _MAX_HEADER_BYTES and (line := file.readline(_MAX_HEADER_BYTES)):
            yield os.fsdecode(line.rstrip(b"\r\n")), file.tell()


def numbered(pattern: str, first: int, last: int, step: int) -> list[str]:
    """Return the names that a pattern such as ``slice%03d.raw`` has for numbers from ``first`` to ``last``.

    Raises:
        Refused: ``corrupt``: it is no such pattern, or there are no numbers, or far too many.
    """
    parts = re.fullmatch(r"([^%]*)(%0?[0-9]{0,2}d)([^%]*)", pattern)
    numbers = range(first, last + (1 if step > 0 else -1), step)
    if parts is None or not 0 < len(numbers) <= _MAX_FILES:
        raise Refused("corrupt", f"names no files of voxels: {pattern} {first} {last} {step}")
    return [f"{parts[1]}{parts[2] % number}{parts[3]}" for number in numbers]


@dataclass(frozen=True)
class Encoded:
    """Where voxels are and how they are written.

    Attributes:
        files: In the order of their voxels, all with equally many; the header's own file where they follow it.
        encoding: ``raw``, ``text``, ``hex``, ``gzip``, ``bzip2`` or ``zlib``.
        start: Bytes in front of what is encoded.
        skip_lines: Lines in front of it, behind ``start``.
        skip_bytes: Decoded bytes in front of the voxels; -1 where they are the last bytes of a raw file.
    """

    files: tuple[Path, ...]
    encoding: str
    start: int = 0
    skip_lines: int = 0
    skip_bytes: int = 0

    def read(self, shape: tuple[int, int, int], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return the voxels; every file must hold its share, no less and no more.

        Raises:
            Refused: ``truncated``, ``corrupt`` or ``unreadable``.
        """
        if missing := [file.name for file in self.files if not os.path.isfile(file)]:  # noqa: PTH113 - never raises
            some = ", ".join(missing[:3]) + (" ..." if len(missing) > 3 else "")
            raise Refused("truncated", f"{len(missing)} files with voxels are missing: {some}")
        if not self.files or math.prod(shape) % len(self.files):
            sizes = " x ".join(map(str, reversed(shape)))
            raise Refused("corrupt", f"{len(self.files)} files of voxels cannot make up {sizes} voxels")
        share = math.prod(shape) // len(self.files)
        pieces = [self._piece(file, share, dtype) for file in self.files]
        return (pieces[0] if len(pieces) == 1 else np.concatenate(pieces)).reshape(shape)

    def _piece(self, file: Path, count: int, dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return the ``count`` voxels of one file."""
        try:
            with file.open("rb") as stored:
                stored.seek(self.start)
                for _ in range(self.skip_lines):
                    stored.readline()
                if self.encoding == "text":
                    return _numbers(stored.read()[self.skip_bytes :], count, dtype)
                return np.frombuffer(self._bytes(stored, count * dtype.itemsize), dtype)
        except Refused as refused:
            if len(self.files) == 1:
                raise
            raise Refused(refused.reason, f"{file.name}: {refused.message}") from refused

    def _bytes(self, stored: BinaryIO, size: int) -> bytearray:
        rest = os.fstat(stored.fileno()).st_size - stored.tell()
        if self.encoding == "zlib":
            return inflate(stored.read(), size, _ZLIB_OR_GZIP)
        if self.encoding == "hex":
            return _from_hex(stored.read(), self.skip_bytes, size)
        skip = max(0, rest - size) if self.skip_bytes == -1 else self.skip_bytes
        if self.encoding == "raw":
            if rest - skip < size:
                raise Refused("truncated", f"holds {rest - skip} bytes of voxels where {size} are declared")
            stored.seek(skip, os.SEEK_CUR)
            return read_exactly(stored, size)
        if self.encoding == "gzip":
            check_possible(rest, size)
        stream: Any = gzip.GzipFile(fileobj=stored) if self.encoding == "gzip" else bz2.BZ2File(stored)
        return read_exactly(stream, skip + size)[skip:]


def _numbers(text: bytes, count: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return numbers that are written as text, with spaces, line ends or commas between them."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", DeprecationWarning)  # what numpy gives where it meets something else
            values = np.fromstring(text.replace(b",", b" "), f"{dtype.kind}8", sep=" ")
    except (ValueError, DeprecationWarning) as error:
        raise Refused("corrupt", "holds text that is no number") from error
    if len(values) != count:
        reason = "truncated" if len(values) < count else "corrupt"
        raise Refused(reason, f"holds {len(values)} values where {count} are declared")
    narrow = values.astype(dtype)
    if dtype.kind in "iu" and (narrow != values).any():
        raise Refused("corrupt", f"holds values that are no {dtype.name}")
    return narrow


def _from_hex(text: bytes, skip: int, size: int) -> bytearray:
    try:
        content = bytearray.fromhex(text.decode("ascii"))[skip:]
    except ValueError as error:
        raise Refused("corrupt", f"holds text that is not hexadecimal ({error})") from error
    if len(content) != size:
        reason = "truncated" if len(content) < size else "corrupt"
        raise Refused(reason, f"holds {len(content)} bytes of voxels where {size} are declared")
    return content
