"""Strict reading of images: damaged and incomplete files are refused, where SimpleITK alone fills in zeros.

Axes are ``(z, y, x)`` in everything that this module returns. A 2D image is a volume of one slice.
"""

from __future__ import annotations

import io
import json
import locale
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import nibabel
import numpy as np
import SimpleITK as sitk  # noqa: N813 (the name everyone gives it)
import tifffile
from isal import igzip
from numpy.typing import NDArray

from nnunetv2_meddino.errors import DataError
from nnunetv2_meddino.imaging import damage
from nnunetv2_meddino.imaging.dicom import refuse_other_dicom
from nnunetv2_meddino.imaging.grid import Grid, affine_grid, simpleitk_grid

PIXEL_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
"""Formats whose resolution, if any, is meant for printers: a pixel is taken to be 1 mm wide, as in nnU-Net."""

_NIFTI_ENDINGS = (".nii.gz", ".nii")
_TIFF_ENDINGS = (".tif", ".tiff")
_NIBABEL_ENDINGS = (".hdr", ".img", ".mgz", ".mgh", ".mnc")
_UNIT_MM = {1: 1000.0, 2: 1.0, 3: 1e-3}
"""Code of NIfTI's ``xyzt_units`` (its lowest three bits): metre, millimetre, micrometre; without one, millimetre."""

Read = TypeVar("Read")


@dataclass(frozen=True)
class Image:
    """An image and its grid."""

    path: Path
    channels: NDArray[Any]
    """``(C, z, y, x)`` in the type that the file stores; floating point if the header scales the values."""
    grid: Grid
    vector: bool = False
    """The channels are the values of one pixel, as in a colour picture, not a series of volumes."""

    @property
    def in_mm(self) -> bool:
        """Whether the spacing is known; where a format has none, a pixel is only taken to be 1 mm wide."""
        return not self.path.name.lower().endswith(PIXEL_ENDINGS) or self.grid.spacing_mm != (1.0, 1.0, 1.0)


def read_image(path: Path, what: str = "an image") -> Image:
    """Read an image in any format that SimpleITK or nibabel reads; its values may have any type.

    NIfTI files are decompressed and checked to the last byte. Their geometry is SimpleITK's reading of the header, as
    in nnU-Net, or the affine where SimpleITK rejects it; units other than mm are converted.

    Args:
        path: The file.
        what: What error messages call it.

    Raises:
        DataError: The file is missing, damaged, in an unknown format, or a DICOM object that is not an image.
    """
    return _reading(path, what, _read)


def read_picture(path: Path) -> Image:
    """Read an image to show or to learn from: its values must be real and finite.

    Raises:
        DataError: As ``read_image``, or a value is complex, NaN or infinite.
    """
    image = read_image(path)
    check_finite(image.channels, path)
    return image


def check_finite(channels: NDArray[Any], source: Path | str) -> None:
    """Check that an image holds nothing but real, finite numbers.

    Args:
        channels: ``(C, z, y, x)`` of any type.
        source: What the message calls it.

    Raises:
        DataError: A value is complex, NaN or infinite, or no number.
    """
    if channels.dtype.kind not in "biuf":
        raise DataError(f"{source} holds values of type {channels.dtype} where real numbers are expected.")
    if channels.dtype.kind == "f":
        bad = sum(part.size - np.count_nonzero(np.isfinite(part)) for volume in channels for part in volume)
        if bad:
            msg = (
                f"{source} holds values that are not finite: {bad} of {channels.size} are NaN or infinity. "
                "Replace them, outside the body by the value of air."
            )
            raise DataError(msg)


def read_grid(path: Path) -> tuple[tuple[int, ...], Grid]:
    """Return shape, ``(z, y, x)`` with further axes in front, and grid of an image from its header alone.

    Raises:
        DataError: The file is missing, or its header cannot be read.
    """
    return _reading(path, "an image", _read_header)


def _reading(path: Path, what: str, read: Callable[[Path], Read]) -> Read:
    """Read a file, or raise ``DataError`` with the last line of what went wrong."""
    if not path.is_file():
        raise DataError(f"{path} does not exist or is not a file.")
    try:
        return read(path)
    except (MemoryError, DataError):
        raise
    except Exception as error:  # nibabel raises anything on damaged headers, KeyError and OverflowError among them
        reason = str(error).strip().splitlines()[-1].strip() if str(error).strip() else type(error).__name__
        msg = f"{path} cannot be read as {what} ({reason}). It may be damaged or incomplete: write it again."
        raise DataError(msg) from error


def _read(path: Path) -> Image:
    name = path.name.lower()
    if name.endswith(_NIFTI_ENDINGS):
        return _read_nifti(path)
    if name.endswith(_NIBABEL_ENDINGS):
        image: Any = nibabel.load(path)
        return _with_grid(path, image, np.asanyarray(image.dataobj))
    if name.endswith(_TIFF_ENDINGS):
        return _read_tiff(path)
    return _read_simpleitk(path)


def _read_header(path: Path) -> tuple[tuple[int, ...], Grid]:
    name = path.name.lower()
    if name.endswith(_TIFF_ENDINGS):
        volume = _read_tiff(path)
        return volume.channels.shape[1:], volume.grid
    by_nibabel = name.endswith((*_NIFTI_ENDINGS, *_NIBABEL_ENDINGS))
    if not by_nibabel:
        refuse_other_dicom(path)
    header = _simpleitk_header(path) if not by_nibabel or name.endswith(_NIFTI_ENDINGS) else None
    if header is not None:
        return tuple(header.GetSize()[::-1]), simpleitk_grid(header)
    image: Any = nibabel.load(path)
    return tuple(image.shape[::-1]), _nibabel_grid(image)


def _read_nifti(path: Path) -> Image:
    content = path.read_bytes()
    if content[:2] == damage.GZIP:
        content = igzip.decompress(content)  # verifies length and checksum
    for image_class in (nibabel.Nifti1Image, nibabel.Nifti2Image):
        if image_class.header_class.may_contain_header(content[:1024]):
            image = image_class.from_stream(io.BytesIO(content))
            return _with_grid(path, image, _nifti_values(content, image))
    raise ValueError("no NIfTI header")


def _nifti_values(content: bytes, image: Any) -> NDArray[Any]:
    """Return the values of a decompressed file, without a copy unless the header scales them."""
    if (image.dataobj.slope, image.dataobj.inter) != (1.0, 0.0):  # nibabel clears them in the header of a loaded image
        return np.asanyarray(image.dataobj)
    count, dtype = math.prod(image.shape), image.header.get_data_dtype()
    return np.frombuffer(content, dtype, count, offset=int(image.dataobj.offset)).reshape(image.shape, order="F")


def _with_grid(path: Path, image: Any, values: NDArray[Any]) -> Image:
    """Return the image of values in nibabel's order of axes."""
    vector = bool(values.dtype.names) or values.ndim > 4  # red, green, blue; NIfTI's fifth dimension
    if values.dtype.names:
        values = np.stack([values[name] for name in values.dtype.names], axis=-1)
        values = values.reshape(*values.shape[:-1], *[1] * (4 - values.ndim), values.shape[-1])
    channels = _as_channels(values.T)
    header = _simpleitk_header(path)
    return Image(path, channels, _nibabel_grid(image) if header is None else simpleitk_grid(header), vector)


def _simpleitk_header(path: Path) -> sitk.ImageFileReader | None:
    """Return SimpleITK's reading of a header; None if it knows no such format, or the axes are not perpendicular."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        with _same_locale():
            reader.ReadImageInformation()
    except RuntimeError:
        return None
    return reader


@contextmanager
def _same_locale() -> Iterator[None]:
    """Keep the process's locale: SimpleITK's VTK reader sets it to C, after which Python reads text as ASCII."""
    before = locale.setlocale(locale.LC_ALL)
    try:
        yield
    finally:
        locale.setlocale(locale.LC_ALL, before)


def _nibabel_grid(image: Any) -> Grid:
    units = int(image.header["xyzt_units"]) & 7 if isinstance(image.header, nibabel.Nifti1Header) else 0
    return affine_grid(np.asarray(image.affine, np.float64), _UNIT_MM.get(units, 1.0))


def _read_simpleitk(path: Path) -> Image:
    refuse_other_dicom(path)
    damage.check_complete(path)
    with _same_locale():
        image = sitk.ReadImage(str(path))
    channels, vector = simpleitk_channels(image)
    damage.check_length(path, channels.nbytes)
    if path.name.lower().endswith(PIXEL_ENDINGS):
        return Image(path, channels, _pixel_grid((1.0, 1.0, 1.0), image.GetDimension() == 2), vector)
    return Image(path, channels, simpleitk_grid(image), vector)


def simpleitk_channels(image: sitk.Image) -> tuple[NDArray[Any], bool]:
    """Return the voxels of a SimpleITK image, ``(C, z, y, x)``, and whether C counts the values of one pixel."""
    values = sitk.GetArrayFromImage(image)
    vector = image.GetNumberOfComponentsPerPixel() > 1
    if vector:
        values = np.moveaxis(values, -1, 0)
        values = values[:, np.newaxis] if image.GetDimension() == 2 else values
    return _as_channels(values), vector


def _read_tiff(path: Path) -> Image:
    """Read a TIFF with nnU-Net's library: others take a volume of 3 or 4 slices of bytes for a colour picture."""
    damage.check_complete(path)
    with tifffile.TiffFile(path) as file:
        series = file.series[0]
        values, vector = series.asarray(), series.axes.endswith("S")
    in_plane = values.ndim - vector == 2
    if vector:
        values = np.moveaxis(values, -1, 0)
        values = values[:, np.newaxis] if in_plane else values
    return Image(path, _as_channels(values), _pixel_grid(_tiff_spacing(path), in_plane), vector)


def _pixel_grid(spacing_mm: tuple[float, float, float], in_plane: bool) -> Grid:
    return Grid(spacing_mm, (0.0, 0.0, 0.0), np.eye(3)[::-1], in_plane=in_plane)


def _tiff_spacing(path: Path) -> tuple[float, float, float]:
    """Return the spacing that nnU-Net keeps in a JSON file beside a TIFF, else 1 mm."""
    beside = path.with_suffix(".json")
    if not beside.is_file():
        return 1.0, 1.0, 1.0
    spacing = json.loads(beside.read_text()).get("spacing", [])
    if len(spacing) != 3 or not all(isinstance(s, (int, float)) and s > 0 for s in spacing):
        raise ValueError(f"the spacing in {beside.name} beside it must be three positive numbers, not {spacing}")
    z, y, x = (float(s) for s in spacing)
    return z, y, x


def _as_channels(values: NDArray[Any]) -> NDArray[Any]:
    """Return ``(..., z, y, x)`` as ``(C, z, y, x)``, if possible as a view; a picture is one slice."""
    if values.ndim == 2:
        values = values[np.newaxis]
    if values.ndim < 3 or 0 in values.shape:
        raise ValueError(f"an array of shape {values.shape} where a volume or a slice is expected")
    return values.reshape(-1, *values.shape[-3:])
