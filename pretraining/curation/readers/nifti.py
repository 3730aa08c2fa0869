"""NIfTI-1 and NIfTI-2 in one file, compressed or not.

Files are read to the last byte, which verifies the checksum and length of a compressed one: SimpleITK opens a truncated
or altered ``.nii.gz`` without an error and fills what is missing with zeros.
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import Any, BinaryIO, cast

import nibabel
import numpy as np
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from nnunetv2_meddino.imaging.grid import TO_LPS
from pretraining.curation.readers.raw_image import MM_PER_UNIT, RawImage, as_three_axes
from pretraining.curation.volume import Rejected

_HEADER_BYTES = 540
"""Of a NIfTI-2 header; one of NIfTI-1 has 348."""

_HIGHEST_COMPRESSION = 1032
"""Of deflate: 258 bytes become 2 bits."""

_UNITS = {1: "metre", 3: "micron"}
"""``xyzt_units`` -> what the affines count in; every other number is or means millimetres."""

_UNIT_OF_LENGTH = 0b111
"""The bits of ``xyzt_units`` for length; the others are for time."""

_AFFINE_TOLERANCE = 0.1
"""Difference of sform and qform, as a share of a voxel, that still is rounding."""


def read_nifti(path: Path) -> RawImage:
    """Read one file; raises ``Rejected``."""
    with _open(path) as stream:
        header = _header(stream)
        shape = as_three_axes(header.get_data_shape()[::-1])
        try:
            dtype = header.get_data_dtype()
        except (HeaderDataError, KeyError) as error:
            raise Rejected("corrupt", f"the header names an unknown type of values ({error})") from error
        if dtype.names is not None:
            raise Rejected("rgb", f"every voxel holds {len(dtype.names)} values")
        unit = _UNITS.get(int(header["xyzt_units"]) & _UNIT_OF_LENGTH, "mm")
        axes, differ = _axes(header)
        offset = int(header.get_data_offset())
        try:
            slope, intercept = header.get_slope_inter()
        except HeaderDataError as error:
            raise Rejected("corrupt", f"the header's scaling is damaged ({error})") from error
        stream.seek(0)
        size, declared = path.stat().st_size, offset + math.prod(shape) * dtype.itemsize
        if declared > _HIGHEST_COMPRESSION * size:  # before memory is used for it
            raise Rejected("truncated", f"{size} bytes cannot hold the {declared} bytes that are declared")
        content = _read_exactly(stream, declared)
    one = np.ones((1, 1, 1))
    return RawImage(
        values=np.frombuffer(content, dtype, offset=offset).reshape(shape),
        axes_mm=axes * MM_PER_UNIT.get(unit, 1.0),
        slope=one * (1.0 if slope is None else slope),
        intercept=one * (0.0 if intercept is None else intercept),
        flags={"affines_differ"} if differ else set(),
        metadata={"format": "nifti"},
        unit=unit,
    )


def _open(path: Path) -> BinaryIO:
    """Open a file for reading, decompressed if it begins as gzip does, whatever its name."""
    with path.open("rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
    return cast(BinaryIO, gzip.open(path) if compressed else path.open("rb"))


def _header(stream: BinaryIO) -> Any:
    """Return the header of a stream; a damaged beginning may raise anything in nibabel."""
    try:
        start = stream.read(_HEADER_BYTES)
        for kind in (nibabel.Nifti1Header, nibabel.Nifti2Header):
            size = kind.template_dtype.itemsize
            if kind.may_contain_header(start) and start[344:348] != b"ni1\0":
                return kind(start[:size], check=True)
    except EOFError as error:
        raise Rejected("truncated", "the compressed stream ends within the header") from error
    except (HeaderDataError, OSError, ValueError, KeyError) as error:
        raise Rejected("corrupt", f"the header is damaged ({error})") from error
    if len(start) < 348:
        raise Rejected("truncated", f"{len(start)} bytes hold no header")
    raise Rejected("corrupt", "does not begin with a NIfTI header")


def _read_exactly(stream: BinaryIO, count: int) -> bytes:
    """Read a stream that must end after ``count`` bytes, and a gzip stream's checksum with it.

    Raises:
        Rejected: ``truncated`` or ``corrupt``.
    """
    try:
        content = stream.read(count + 1)
    except EOFError as error:
        raise Rejected("truncated", "the compressed stream ends before its end mark") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise Rejected("corrupt", f"the compressed stream is damaged ({error})") from error
    if len(content) < count:
        raise Rejected("truncated", f"holds {len(content)} bytes of voxels where {count} are declared")
    if len(content) > count:
        raise Rejected("corrupt", f"holds more than the {count} bytes of voxels that are declared")
    return content


def _axes(header: Any) -> tuple[NDArray[np.float64], bool]:
    """Return the steps along the array axes in (L, P, S), and whether sform and qform give different ones.

    As in nibabel the sform goes first. Where neither is set the orientation is unknown: readers then differ (nibabel
    takes the second axis to run to the front, ITK to the back).
    """
    affines = []
    if int(header["sform_code"]) > 0:
        affines.append(header.get_sform())
    if int(header["qform_code"]) > 0:
        try:
            affines.append(header.get_qform())
        except HeaderDataError as error:
            if not affines:
                raise Rejected("corrupt", f"the qform is damaged ({error})") from error
    if not affines:
        raise Rejected("no_orientation", "neither sform nor qform is set")
    steps = [(TO_LPS[:, np.newaxis] * affine[:3, :3]).T[::-1].astype(np.float64) for affine in affines]
    sizes = np.linalg.norm(steps[0], axis=1, keepdims=True)
    differ = len(steps) > 1 and bool((np.abs(steps[0] - steps[1]) > _AFFINE_TOLERANCE * sizes).any())
    return steps[0], differ
