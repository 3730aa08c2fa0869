"""NRRD, attached (``.nrrd``) and detached (``.nhdr`` with a data file); http://teem.sourceforge.net/nrrd/format.html."""

from __future__ import annotations

import bz2
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pretraining.corpus.stored import Stored, as_three_axes, beside, inflate
from pretraining.corpus.volume import Refused

_MAX_HEADER_BYTES = 1 << 20

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
}

_SPACES = {
    **dict.fromkeys(("left-posterior-superior", "lps", "left-posterior-superior-time", "lpst"), (1, 1, 1)),
    **dict.fromkeys(("right-anterior-superior", "ras", "right-anterior-superior-time", "rast"), (-1, -1, 1)),
    **dict.fromkeys(("left-anterior-superior", "las", "left-anterior-superior-time", "last"), (1, -1, 1)),
}
"""Space of the header -> signs that turn it into (L, P, S)."""


@dataclass(frozen=True)
class _Header:
    fields: dict[str, str]
    length: int

    def __getitem__(self, name: str) -> str:
        if name not in self.fields:
            raise Refused("corrupt", f"the NRRD header has no field '{name}'")
        return self.fields[name]


def read_nrrd(path: Path) -> Stored:
    """Read one file; raises ``Refused``."""
    content = path.read_bytes()
    header = _header(content)
    try:
        sizes = [int(size) for size in header["sizes"].split()]
        kinds, axes = _space(header, len(sizes))
    except ValueError as error:
        raise Refused("corrupt", f"the NRRD header is damaged ({error})") from error
    _check_kinds(sizes, kinds)
    if header["type"].lower() not in _TYPES:
        raise Refused("unreadable", f"NRRD values of type '{header['type']}'")
    dtype = np.dtype(_TYPES[header["type"].lower()])
    if dtype.itemsize > 1:
        dtype = dtype.newbyteorder(">" if header["endian"].lower() == "big" else "<")
    kept = [i for i, kind in enumerate(kinds) if kind != "extra"]
    shape = as_three_axes([sizes[i] for i in reversed(kept)])
    data = _data(path, content, header, math.prod(shape) * dtype.itemsize)
    steps = None if axes is None else np.array([axes[i] for i in kept])[::-1]
    if steps is None or steps.shape != (3, 3):
        raise Refused("no_orientation", "the NRRD header has no space, or no directions of its axes")
    return Stored(np.frombuffer(data, dtype).reshape(shape), steps, metadata={"format": "nrrd"})


def _header(content: bytes) -> _Header:
    if content[:4] != b"NRRD":
        raise Refused("corrupt", "does not begin with NRRD")
    start = content[:_MAX_HEADER_BYTES].replace(b"\r\n", b"\n")
    end = start.find(b"\n\n")
    removed = content[:_MAX_HEADER_BYTES][: end + 2 if end >= 0 else None].count(b"\r\n")
    text = start[: end if end >= 0 else None].decode("latin-1")
    fields = {}
    for line in text.splitlines()[1:]:
        name, colon, value = line.partition(":")
        if colon and not line.startswith("#") and not value.startswith("="):
            fields[name.strip().lower()] = value.strip()
    return _Header(fields, len(content) if end < 0 else end + 2 + removed)


def _space(header: _Header, dimension: int) -> tuple[list[str], NDArray[np.float64] | None]:
    """Return for every axis its kind (``extra`` for one outside space), and its step in (L, P, S)."""
    named = header.fields.get("kinds", "").lower().split() or ["domain"] * dimension
    directions: list[Any] = _vectors(header.fields.get("space directions", ""))
    if len(named) != dimension or (directions and len(directions) != dimension):
        raise ValueError("the numbers of sizes, kinds and space directions differ")
    generic = ("domain", "space", "???")
    spatial = [step is not None for step in directions] if directions else [kind in generic for kind in named]
    kinds = [
        "domain" if is_spatial else "list" if kind in generic else kind
        for is_spatial, kind in zip(spatial, named, strict=True)
    ]
    signs = _SPACES.get(header.fields.get("space", "").lower())
    if signs is None or not directions:
        return kinds, None
    steps = np.array([(np.nan,) * 3 if step is None else np.multiply(step, signs) for step in directions])
    return kinds, steps


def _vectors(text: str) -> list[tuple[float, ...] | None]:
    """Parse ``(a,b,c) none (d,e,f)``."""
    vectors: list[tuple[float, ...] | None] = []
    for part in text.replace(", ", ",").replace("( ", "(").replace(" )", ")").split():
        if part.lower() == "none":
            vectors.append(None)
            continue
        vector = tuple(float(number) for number in part.strip("()").split(","))
        if len(vector) != 3:
            raise ValueError(f"space direction {part}")
        vectors.append(vector)
    return vectors


def _check_kinds(sizes: list[int], kinds: list[str]) -> None:
    """Refuse axes outside space that are longer than 1; rename the others to ``extra`` in place."""
    for i, (size, kind) in enumerate(zip(sizes, kinds, strict=True)):
        if kind == "domain":
            continue
        if size == 1:
            kinds[i] = "extra"
        elif "complex" in kind:
            raise Refused("complex", "every voxel holds a complex value")
        elif kind in ("list", "time"):
            raise Refused("4d", f"{size} volumes in a file")
        else:
            raise Refused("rgb", f"every voxel holds {size} values ({kind})")


def _data(path: Path, content: bytes, header: _Header, count: int) -> bytes | bytearray:
    """Return the decoded voxels, exactly ``count`` bytes."""
    fields = header.fields
    detached = fields.get("data file", fields.get("datafile"))
    content = beside(path, detached).read_bytes() if detached else content[header.length :]
    skip = int(fields.get("byte skip", fields.get("byteskip", "0")))
    if int(fields.get("line skip", fields.get("lineskip", "0"))):
        raise Refused("unreadable", "NRRD data after skipped lines")
    encoding = header["encoding"].lower()
    if encoding == "raw":
        data: bytes | bytearray = content[len(content) - count :] if skip == -1 else content[skip:]
    elif skip:
        raise Refused("unreadable", "NRRD data after skipped bytes in a compressed stream")
    elif encoding in ("gzip", "gz"):
        return inflate(content, count, 31)
    elif encoding in ("bzip2", "bz2"):
        try:
            data = bz2.decompress(content)
        except (OSError, ValueError) as error:
            raise Refused("truncated" if isinstance(error, ValueError) else "corrupt", f"bzip2: {error}") from error
    else:
        raise Refused("unreadable", f"NRRD data in encoding '{encoding}'")
    if len(data) != count:
        reason = "truncated" if len(data) < count else "corrupt"
        raise Refused(reason, f"holds {len(data)} bytes of voxels where {count} are declared")
    return data
