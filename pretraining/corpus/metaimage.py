"""MetaImage, attached (``.mha``) and detached (``.mhd`` with a data file); https://itk.org/Wiki/ITK/MetaIO."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from pretraining.corpus.stored import Stored, as_three_axes, beside, inflate
from pretraining.corpus.volume import Refused

_MAX_HEADER_BYTES = 1 << 16

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
    content = path.read_bytes()
    fields, length = _header(content)
    try:
        sizes = [int(size) for size in fields["dimsize"].split()]
        kind = fields["elementtype"].upper()
        if int(fields.get("elementnumberofchannels", "1")) > 1 or kind.endswith("_ARRAY"):
            raise Refused("rgb", f"every voxel holds several values ({kind})")
        if kind not in _TYPES:
            raise Refused("unreadable", f"MetaImage values of type {kind}")
        big = fields.get("elementbyteordermsb", fields.get("binarydatabyteordermsb", "false")).lower() == "true"
        dtype = np.dtype(_TYPES[kind]).newbyteorder(">" if big else "<")
        shape = as_three_axes(sizes[::-1])
        spacing = [float(size) for size in fields.get("elementspacing", fields.get("elementsize", "")).split()]
        matrix = fields.get("transformmatrix", fields.get("rotation", fields.get("orientation")))
        if len(spacing) < 3:
            raise Refused("bad_geometry", "the MetaImage header has no ElementSpacing")
        if matrix is None:
            raise Refused("no_orientation", "the MetaImage header has no TransformMatrix")
        n = len(sizes)
        directions = np.array([float(cosine) for cosine in matrix.split()]).reshape(n, n)[:3, :3]
        data = _data(path, content, fields, length, math.prod(shape) * dtype.itemsize)
    except KeyError as error:
        raise Refused("corrupt", f"the MetaImage header has no field {error}") from error
    except ValueError as error:
        raise Refused("corrupt", f"the MetaImage header is damaged ({error})") from error
    axes = (directions * np.array(spacing[:3])[:, np.newaxis])[::-1]
    return Stored(np.frombuffer(data, dtype).reshape(shape), axes, metadata={"format": "metaimage"})


def _header(content: bytes) -> tuple[dict[str, str], int]:
    """Return the fields, names in lower case, and the length of the header in bytes."""
    fields: dict[str, str] = {}
    position = 0
    while position < min(len(content), _MAX_HEADER_BYTES):
        end = content.find(b"\n", position)
        end = len(content) if end < 0 else end
        name, equals, value = content[position:end].decode("latin-1").partition("=")
        position = end + 1
        if equals:
            fields[name.strip().lower()] = value.strip()
        if name.strip().lower() == "elementdatafile":  # the last field by definition
            return fields, position
    raise Refused("truncated" if "ndims" in fields else "corrupt", "holds no complete MetaImage header")


def _data(path: Path, content: bytes, fields: dict[str, str], length: int, count: int) -> bytes | bytearray:
    """Return the decoded voxels, exactly ``count`` bytes."""
    name = fields["elementdatafile"]
    data = content[length:] if name.upper() == "LOCAL" else beside(path, name).read_bytes()
    skip = int(fields.get("headersize", "0"))
    compressed = fields.get("compresseddata", "false").lower() == "true"
    if fields.get("binarydata", "true").lower() != "true":
        raise Refused("unreadable", "MetaImage values written as text")
    if skip == -1 and not compressed:
        data = data[max(0, len(data) - count) :]
    elif skip > 0:
        data = data[skip:]
    if compressed:
        return inflate(data, count, 47)  # zlib by definition; 47 also takes gzip, which some writers use
    if len(data) != count:
        reason = "truncated" if len(data) < count else "corrupt"
        raise Refused(reason, f"holds {len(data)} bytes of voxels where {count} are declared")
    return data
