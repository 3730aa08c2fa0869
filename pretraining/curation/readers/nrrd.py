"""NRRD, attached (``.nrrd``) and detached (``.nhdr`` with a data file); http://teem.sourceforge.net/nrrd/format.html."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pretraining.curation.readers.encoded import Encoded, header_lines, numbered
from pretraining.curation.readers.raw_image import MM_PER_UNIT, Stored, as_three_axes
from pretraining.curation.volume import Refused

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


_ENCODINGS = {
    "raw": "raw",
    **dict.fromkeys(("ascii", "text", "txt"), "text"),
    "hex": "hex",
    **dict.fromkeys(("gzip", "gz"), "gzip"),
    **dict.fromkeys(("bzip2", "bz2"), "bzip2"),
}


@dataclass(frozen=True)
class _Header:
    """Fields by name; the lines below ``data file: LIST``; where voxels behind the header begin."""

    fields: dict[str, str]
    listed: tuple[str, ...]
    length: int

    def __getitem__(self, name: str) -> str:
        if name not in self.fields:
            raise Refused("corrupt", f"the NRRD header has no field '{name}'")
        return self.fields[name]


def read_nrrd(path: Path) -> Stored:
    """Read one file; raises ``Refused``."""
    header = _read_header(path)
    try:
        sizes = [int(size) for size in header["sizes"].split()]
        kinds, axes = _space(header, len(sizes))
        encoded = _encoded(path, header)
    except ValueError as error:
        raise Refused("corrupt", f"the NRRD header is damaged ({error})") from error
    _check_kinds(sizes, kinds)
    if header["type"].lower() not in _TYPES:
        raise Refused("unreadable", f"NRRD values of type '{header['type']}'")
    dtype = np.dtype(_TYPES[header["type"].lower()])
    if dtype.itemsize > 1 and encoded.encoding != "text":
        dtype = dtype.newbyteorder(">" if header["endian"].lower() == "big" else "<")
    kept = [i for i, kind in enumerate(kinds) if kind != "extra"]
    values = encoded.read(as_three_axes([sizes[i] for i in reversed(kept)]), dtype)
    steps = None if axes is None else np.array([axes[i] for i in kept])[::-1]
    if steps is None or steps.shape != (3, 3):
        raise Refused("no_orientation", "the NRRD header has no space, or no directions of its axes")
    units = sorted({unit for unit in _units(header) if unit in MM_PER_UNIT})
    return Stored(values, steps, metadata={"format": "nrrd"}, unit=" and ".join(units) or "mm")


def voxel_files(path: Path) -> tuple[Path, ...]:
    """Return the files that hold the voxels of one file: itself, or those that its header names; raises ``Refused``."""
    return _encoded(path, _read_header(path)).files


def _read_header(path: Path) -> _Header:
    lines = header_lines(path)
    magic, length = next(lines, ("", 0))
    if not magic.startswith("NRRD"):
        raise Refused("corrupt", "does not begin with NRRD")
    fields: dict[str, str] = {}
    listed: tuple[str, ...] = ()
    for line, end in lines:
        length = end
        if not line:
            break
        name, colon, value = line.partition(":")
        if line.startswith("#") or not colon or value.startswith("="):  # comments, and key:=value
            continue
        fields[name.strip().lower()] = value.strip()
        if name.strip().lower() in ("data file", "datafile") and value.split()[:1] == ["LIST"]:  # the last field
            listed = tuple(text.strip() for text, _ in lines if text.strip())
    return _Header(fields, listed, length)


def _encoded(path: Path, header: _Header) -> Encoded:
    """Return where the voxels are; a damaged header may raise ``ValueError``."""
    fields = header.fields
    encoding = _ENCODINGS.get(header["encoding"].lower())
    if encoding is None:
        raise Refused("unreadable", f"NRRD data in encoding '{header['encoding']}'")
    lines, skip = (int(fields.get(f"{of} skip", fields.get(f"{of}skip", "0"))) for of in ("line", "byte"))
    if lines < 0 or skip < -1 or (skip == -1 and encoding != "raw"):
        raise ValueError(f"line skip {lines}, byte skip {skip} in encoding {encoding}")
    named = fields.get("data file", fields.get("datafile"))
    if named is None:
        return Encoded((path,), encoding, header.length, lines, skip)
    words = named.split()
    if words[:1] == ["LIST"]:
        names = list(header.listed)
    elif len(words) in (4, 5) and "%" in words[0]:
        names = numbered(words[0], *(int(word) for word in words[1:4]))
    else:
        names = [named]
    return Encoded(tuple(path.parent / name for name in names), encoding, 0, lines, skip)


def _units(header: _Header) -> list[str]:
    """Return the units of the axes of space, in lower case; none if the header has none."""
    return [unit.strip().lower() for unit in re.findall(r'"([^"]*)"', header.fields.get("space units", ""))]


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
    sizes = [MM_PER_UNIT.get(unit, 1.0) for unit in _units(header)[:3]] or [1.0]
    factors = np.multiply(signs, sizes)
    steps = np.array([(np.nan,) * 3 if step is None else np.multiply(step, factors) for step in directions])
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
