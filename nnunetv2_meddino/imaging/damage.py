"""Damage to files that SimpleITK 2.5 does not report: it fills in zeros or leaves out slices, without an error."""

from __future__ import annotations

import struct
from pathlib import Path

from isal import igzip
from PIL import Image as Pillow

from nnunetv2_meddino.imaging.text_headers import METAIMAGE_ENDINGS, NRRD_ENDINGS, read_header

GZIP = b"\x1f\x8b"
_GIPL_HEADER_BYTES = 256


def check_complete(path: Path) -> None:
    """Raise if a JPEG, BMP or TIFF is truncated, or the voxels of an NRRD or MetaImage are damaged or incomplete."""
    name = path.name.lower()
    if name.endswith((".jpg", ".jpeg", ".bmp")):
        with Pillow.open(path) as picture:
            picture.load()  # a truncated one raises
    elif name.endswith((".tif", ".tiff")):
        _check_tiff(path)
    elif name.endswith((*NRRD_ENDINGS, *METAIMAGE_ENDINGS)):
        read_header(path).values()


def check_length(path: Path, data_bytes: int) -> None:
    """Raise if a GIPL or binary VTK file is truncated."""
    name = path.name.lower()
    if name.endswith((".gipl", ".gipl.gz")):
        content = path.read_bytes()
        length = len(igzip.decompress(content) if content[:2] == GZIP else content)
        needed = _GIPL_HEADER_BYTES + data_bytes
    elif name.endswith(".vtk"):
        content = path.read_bytes()
        start = content.find(b"\n", max(content.find(b"LOOKUP_TABLE"), content.find(b"SCALARS"))) + 1
        length, needed = len(content), start + data_bytes
        if b"\nASCII" in content[:512]:
            return
    else:
        return
    if length < needed:
        raise ValueError(f"{length} bytes where {needed} are declared")


def _check_tiff(path: Path) -> None:
    """Raise if the chain of pages leads out of the file: readers drop the pages after that silently."""
    content = path.read_bytes()
    order = "<" if content[:2] == b"II" else ">"
    big = struct.unpack(order + "H", content[2:4]) == (43,)
    start, count, entry, offset = (8, "Q", 20, "Q") if big else (4, "H", 12, "I")
    seen: set[int] = set()
    (page,) = struct.unpack_from(order + offset, content, start)
    while page and page not in seen:
        seen.add(page)
        (entries,) = struct.unpack_from(order + count, content, page)
        following = page + struct.calcsize(count) + entries * entry
        (page,) = struct.unpack_from(order + offset, content, following)
