"""NRRD and MetaImage: their text headers, and the voxels that follow or lie in other files, verified to the last byte.

SimpleITK 2.5.7 reads a truncated or altered compressed MetaImage without an error, leaves memory uninitialised if a
list of files is too short, cannot read bzip2, and crashes or hangs on some damaged headers.

Sources: http://teem.sourceforge.net/nrrd/format.html and https://itk.org/Wiki/ITK/MetaIO.
"""

from __future__ import annotations

import bz2
import math
import os
import re
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

NRRD_ENDINGS = (".nrrd", ".nhdr")
METAIMAGE_ENDINGS = (".mha", ".mhd")

_MAX_HEADER_BYTES = 1 << 20
"""A header with the names of ten thousand files is smaller."""

_MAX_FILES = 10_000

_CHUNK = 1 << 16

_TYPES = {
    **dict.fromkeys(("signed char", "int8", "int8_t"), "i1"),
    **dict.fromkeys(("uchar", "unsigned char", "uint8", "uint8_t"), "u1"),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), "i2"),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), "u2"),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t"), "i4"),
    **dict.fromkeys(("uint", "unsigned int", "uint32", "uint32_t"), "u4"),
    **dict.fromkeys(("longlong", "long long", "long long int", "int64", "int64_t"), "i8"),
    **dict.fromkeys(("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"), "u8"),
    "float": "f4",
    "double": "f8",
    # MetaImage's names that NRRD lacks
    **{"met_char": "i1", "met_long": "i4", "met_ulong": "u4", "met_long_long": "i8", "met_ulong_long": "u8"},
}

_ENCODINGS = {
    "raw": "raw",
    **dict.fromkeys(("ascii", "text", "txt"), "text"),
    "hex": "hex",
    **dict.fromkeys(("gzip", "gz"), "gzip"),
    **dict.fromkeys(("bzip2", "bz2"), "bzip2"),
}

_DECODERS: dict[str, Any] = {
    **dict.fromkeys(("gzip", "zlib"), partial(zlib.decompressobj, 47)),  # either: some write MetaImage with gzip
    "bzip2": bz2.BZ2Decompressor,
}


class DamagedError(ValueError):
    """A file does not hold what its header declares, or uses a type or an encoding that is not supported."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        """``truncated``, ``corrupt`` or ``unreadable``."""


class _Fields(dict[str, str]):
    """Fields of a header; one that is required and missing is damage."""

    def __missing__(self, name: str) -> str:
        raise DamagedError("corrupt", f"the header has no field '{name}'")


@dataclass(frozen=True)
class TextHeader:
    """A header, and where its voxels are."""

    fields: _Fields
    """By name, in lower case and without spaces."""
    files: tuple[Path, ...]
    """Files with equally many voxels each, in order; the header's own file where the voxels follow the header."""
    encoding: str
    """``raw``, ``text``, ``hex``, ``gzip``, ``bzip2`` or ``zlib``."""
    start: int = 0
    """Bytes before the encoded data."""
    skip_lines: int = 0
    """Lines to skip from there."""
    skip_bytes: int = 0
    """Decoded bytes before the voxels; -1 where the voxels are the last bytes of a raw file."""

    @property
    def sizes(self) -> list[int]:
        """Number of voxels along each axis, the fastest first."""
        return [int(size) for size in self.fields["dimsize" if "elementdatafile" in self.fields else "sizes"].split()]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the stored values."""
        if "elementdatafile" in self.fields:
            name = self.fields["elementtype"].lower().removesuffix("_array")
            known = _TYPES.get(name, _TYPES.get(name.removeprefix("met_")))
            msb = self.fields.get("elementbyteordermsb", self.fields.get("binarydatabyteordermsb", ""))
            big = msb.lower() == "true"
        else:
            name = self.fields["type"].lower()
            known = _TYPES.get(name)
            big = self.encoding != "text" and known not in ("i1", "u1", None) and self.fields["endian"].lower() == "big"
        if known is None:
            raise DamagedError("unreadable", f"values of type '{name}'")
        return np.dtype(known if self.encoding == "text" else f"{'>' if big else '<'}{known}")

    def values(self) -> NDArray[Any]:
        """Return the values in the order of the file, one axis; every file must hold its share, no less and no more.

        Raises:
            DamagedError: ``truncated``, ``corrupt`` or ``unreadable``.
        """
        dtype = self.dtype
        count = math.prod(self.sizes) * int(self.fields.get("elementnumberofchannels", "1"))
        if missing := [file.name for file in self.files if not os.path.isfile(file)]:  # noqa: PTH113 - never raises
            some = ", ".join(missing[:3]) + (" ..." if len(missing) > 3 else "")
            raise DamagedError("truncated", f"{len(missing)} files with voxels are missing: {some}")
        if not self.files or count % len(self.files):
            raise DamagedError("corrupt", f"{len(self.files)} files cannot hold {count} values in equal parts")
        pieces = [self._piece(file, count // len(self.files), dtype) for file in self.files]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _piece(self, file: Path, count: int, dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return the values in one file."""
        try:
            with file.open("rb") as stored:
                stored.seek(self.start)
                for _ in range(self.skip_lines):
                    stored.readline()
                if self.encoding == "text":
                    return _numbers(stored.read()[self.skip_bytes :], count, dtype)
                content = self._content(stored, count * dtype.itemsize)
        except DamagedError as damaged:
            raise damaged if len(self.files) == 1 else DamagedError(damaged.reason, f"{file.name}: {damaged}") from None
        return np.frombuffer(content, dtype)

    def _content(self, stored: BinaryIO, size: int) -> bytes | memoryview:
        """Return the ``size`` bytes of the voxels of one file."""
        content: bytes | memoryview
        if self.encoding == "raw":
            rest = os.fstat(stored.fileno()).st_size - stored.tell()
            stored.seek(max(0, rest - size) if self.skip_bytes == -1 else self.skip_bytes, os.SEEK_CUR)
            content = stored.read(min(rest, size + 1))
        elif self.encoding == "hex":
            try:
                content = bytes.fromhex(stored.read().decode("ascii"))[self.skip_bytes :]
            except ValueError as error:
                raise DamagedError("corrupt", f"holds text that is not hexadecimal ({error})") from error
        else:
            content = memoryview(_decompress(stored, self.encoding, self.skip_bytes + size))[self.skip_bytes :]
        if len(content) < size:
            raise DamagedError("truncated", f"holds {len(content)} bytes of voxels where {size} are declared")
        if len(content) > size:
            raise DamagedError("corrupt", f"holds more than the {size} bytes of voxels that are declared")
        return content


def read_header(path: Path) -> TextHeader:
    """Read a header, whose voxels may lie in other files.

    Raises:
        DamagedError: ``corrupt``, ``truncated``, or ``unreadable`` where the encoding is not supported.
        ValueError: A number in the header cannot be parsed.
    """
    with path.open("rb") as file:
        return (_nrrd if path.name.lower().endswith(NRRD_ENDINGS) else _metaimage)(path, file)


def _nrrd(path: Path, file: BinaryIO) -> TextHeader:
    lines = _lines(file)
    if not next(lines, "").startswith("NRRD"):
        raise DamagedError("corrupt", "does not begin with NRRD")
    fields = _Fields()
    names: list[str] = []
    for line in lines:
        name, colon, value = line.partition(":")
        if not line:
            break
        if line.startswith("#") or not colon or value.startswith("="):  # comments, and key:=value
            continue
        name = name.replace(" ", "").lower()
        fields[name] = value.strip()
        if name == "datafile" and value.split()[:1] == ["LIST"]:  # the last field
            names = [text.strip() for text in lines if text.strip()]
    encoding = _ENCODINGS.get(fields["encoding"].lower())
    if encoding is None:
        raise DamagedError("unreadable", f"NRRD data in encoding '{fields['encoding']}'")
    skip_lines, skip_bytes = (int(fields.get(skip, "0")) for skip in ("lineskip", "byteskip"))
    if skip_lines < 0 or skip_bytes < -1 or (skip_bytes == -1 and encoding != "raw"):
        raise DamagedError("corrupt", f"line skip {skip_lines}, byte skip {skip_bytes} in encoding {encoding}")
    if "datafile" not in fields:
        return TextHeader(fields, (path,), encoding, file.tell(), skip_lines, skip_bytes)
    words = fields["datafile"].split()
    if len(words) in (4, 5) and "%" in words[0]:
        names = _numbered(words[0], *(int(word) for word in words[1:4]))
    elif words[:1] != ["LIST"]:
        names = [fields["datafile"]]
    return TextHeader(fields, tuple(path.parent / name for name in names), encoding, 0, skip_lines, skip_bytes)


def _metaimage(path: Path, file: BinaryIO) -> TextHeader:
    fields = _Fields()
    lines = _lines(file)
    for line in lines:
        name, equals, value = (part.strip() for part in line.partition("="))
        name = name.lower()
        if equals:
            fields[name] = value
        if name == "elementdatafile":  # the last field by definition
            break
    else:
        raise DamagedError("truncated" if "ndims" in fields else "corrupt", "holds no complete MetaImage header")
    compressed = fields.get("compresseddata", "").lower() == "true"
    binary = fields.get("binarydata", "true").lower() == "true"
    encoding = "text" if not binary else "zlib" if compressed else "raw"
    skip = int(fields.get("headersize", "0"))
    start, skip_bytes = max(skip, 0), -1 if skip == -1 and encoding == "raw" else 0
    words = value.split()
    if value.upper() == "LOCAL":
        return TextHeader(fields, (path,), encoding, file.tell() + start, 0, skip_bytes)
    names = [value]
    if words[:1] == ["LIST"]:
        names = [text.strip() for text in lines if text.strip()]
    elif "%" in words[0]:  # pattern, first number (1), last (for all slices), step
        slices = int(fields["dimsize"].split()[-1])
        first = int(words[1]) if len(words) > 1 else 1
        last = int(words[2]) if len(words) > 2 else first + slices - 1
        step = int(words[3]) if len(words) > 3 else max(1, (last - first + 1) // slices)
        names = _numbered(words[0], first, last, step)
    return TextHeader(fields, tuple(path.parent / name for name in names), encoding, start, 0, skip_bytes)


def _lines(file: BinaryIO) -> Iterator[str]:
    """Yield the lines of a text header without their ends; the file then stands at the beginning of the next line."""
    while file.tell() < _MAX_HEADER_BYTES and (line := file.readline(_MAX_HEADER_BYTES)):
        yield os.fsdecode(line.rstrip(b"\r\n"))


def _numbered(pattern: str, first: int, last: int, step: int) -> list[str]:
    """Return the names that a pattern such as ``slice%03d.raw`` has for numbers from ``first`` to ``last``."""
    parts = re.fullmatch(r"([^%]*)(%0?[0-9]{0,2}d)([^%]*)", pattern)
    numbers = range(first, last + (1 if step > 0 else -1), step)
    if parts is None or not 0 < len(numbers) <= _MAX_FILES:
        raise DamagedError("corrupt", f"names no files with voxels: {pattern} {first} {last} {step}")
    return [f"{parts[1]}{parts[2] % number}{parts[3]}" for number in numbers]


def _decompress(stored: BinaryIO, encoding: str, limit: int) -> bytearray:
    """Decompress one stream or several, each verified by its end and checksum; stop after ``limit`` bytes.

    The size that a header declares is not trusted: memory is allocated for what is there.
    """
    plain = bytearray()
    engine = _DECODERS[encoding]()
    try:
        while len(plain) <= limit and (chunk := stored.read(_CHUNK)):
            while chunk := (chunk.lstrip(b"\0") if engine.eof else chunk):  # streams may be padded
                if engine.eof and encoding == "zlib":
                    return plain  # MetaImage has one stream
                if engine.eof:
                    engine = _DECODERS[encoding]()
                plain += engine.decompress(chunk)
                chunk = engine.unused_data
    except (zlib.error, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the disk; a damaged bzip2 stream has no number
            raise
        raise DamagedError("corrupt", f"the compressed data are damaged ({error})") from error
    if len(plain) <= limit and not engine.eof:
        raise DamagedError("truncated", f"the compressed data end after {len(plain)} of {limit} bytes")
    return plain


def _numbers(text: bytes, count: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Parse numbers separated by spaces, line ends or commas."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", DeprecationWarning)  # numpy's reaction to anything else
            values = np.fromstring(text.replace(b",", b" "), f"{dtype.kind}8", sep=" ")
    except (ValueError, DeprecationWarning) as error:
        raise DamagedError("corrupt", "holds text that is not a number") from error
    if len(values) != count:
        reason = "truncated" if len(values) < count else "corrupt"
        raise DamagedError(reason, f"holds {len(values)} values where {count} are declared")
    narrow = values.astype(dtype)
    if dtype.kind in "iu" and (narrow != values).any():
        raise DamagedError("corrupt", f"holds values outside the range of {dtype.name}")
    return narrow
