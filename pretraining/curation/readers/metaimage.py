"""MetaImage, attached (``.mha``) and detached (``.mhd`` with a data file); https://itk.org/Wiki/ITK/MetaIO."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pretraining.curation.readers.encoded import Encoded, header_lines, numbered
from pretraining.curation.readers.raw_image import MM_PER_UNIT, Stored, as_three_axes
from pretraining.curation.volume import Refused

_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}


def read_metaimage(path: Path) -> Stored:
    """Read one file; raises ``Refused``."""
    fields, listed, length = _header(path)
    try:
        sizes = [int(size) for size in fields["dimsize"].split()]
        kind = fields["elementtype"].upper()
        if int(fields.get("elementnumberofchannels", "1")) > 1 or kind.endswith("_ARRAY"):
            raise Refused("rgb", f"every voxel holds several values ({kind})")
        if kind not in _TYPES:
            raise Refused("unreadable", f"MetaImage values of type {kind}")
        shape = as_three_axes(sizes[::-1])
        encoded = _encoded(path, fields, listed, length)
        big = fields.get("elementbyteordermsb", fields.get("binarydatabyteordermsb", "false")).lower() == "true"
        dtype = np.dtype(_TYPES[kind])
        dtype = dtype if encoded.encoding == "text" else dtype.newbyteorder(">" if big else "<")
        spacing = [float(size) for size in fields.get("elementspacing", fields.get("elementsize", "")).split()]
        if len(spacing) < 3:
            raise Refused("bad_geometry", "the MetaImage header has no ElementSpacing")
        matrix = fields.get("transformmatrix", fields.get("rotation", fields.get("orientation")))
        n = len(sizes)  # by definition the identity where there is no matrix
        cosines = np.eye(n) if matrix is None else np.array([float(cosine) for cosine in matrix.split()])
        directions = cosines.reshape(n, n)[:3, :3]
    except KeyError as error:
        raise Refused("corrupt", f"the MetaImage header has no field {error}") from error
    except ValueError as error:
        raise Refused("corrupt", f"the MetaImage header is damaged ({error})") from error
    unit = fields.get("distanceunits", "mm").lower()
    sizes_mm = np.array(spacing[:3]) * MM_PER_UNIT.get(unit, 1.0)
    axes = (directions * sizes_mm[:, np.newaxis])[::-1]
    values = encoded.read(shape, dtype)
    return Stored(values, axes, metadata={"format": "metaimage"}, unit=unit if unit in MM_PER_UNIT else "mm")


def voxel_files(path: Path) -> tuple[Path, ...]:
    """Return the files that hold the voxels of one file: itself, or those that its header names; raises ``Refused``."""
    return _encoded(path, *_header(path)).files


def _header(path: Path) -> tuple[dict[str, str], tuple[str, ...], int]:
    """Return the fields, names in lower case; the lines below ``ElementDataFile = LIST``; the length in bytes."""
    fields: dict[str, str] = {}
    lines = header_lines(path)
    for line, end in lines:
        name, equals, value = line.partition("=")
        if equals:
            fields[name.strip().lower()] = value.strip()
        if name.strip().lower() == "elementdatafile":  # the last field by definition
            listed = value.split()[:1] == ["LIST"]
            return fields, tuple(text.strip() for text, _ in lines if text.strip()) if listed else (), end
    raise Refused("truncated" if "ndims" in fields else "corrupt", "holds no complete MetaImage header")


def _encoded(path: Path, fields: dict[str, str], listed: tuple[str, ...], length: int) -> Encoded:
    """Return where the voxels are; a damaged header may raise ``KeyError`` or ``ValueError``."""
    words = fields["elementdatafile"].split()
    compressed = fields.get("compresseddata", "false").lower() == "true"
    binary = fields.get("binarydata", "true").lower() == "true"
    skip = int(fields.get("headersize", "0"))
    encoding = "text" if not binary else "zlib" if compressed else "raw"
    start, last = max(skip, 0), -1 if skip == -1 and encoding == "raw" else 0
    if [word.upper() for word in words] == ["LOCAL"]:
        return Encoded((path,), encoding, length + start, 0, last)
    if words[:1] == ["LIST"]:
        names = list(listed)
    elif "%" in words[0]:  # pattern, first number (1), last (for all slices), step
        slices = int(fields["dimsize"].split()[-1])
        first = int(words[1]) if len(words) > 1 else 1
        end = int(words[2]) if len(words) > 2 else first + slices - 1
        names = numbered(words[0], first, end, int(words[3]) if len(words) > 3 else max(1, (end - first + 1) // slices))
    else:
        names = [fields["elementdatafile"]]
    return Encoded(tuple(path.parent / name for name in names), encoding, start, 0, last)
