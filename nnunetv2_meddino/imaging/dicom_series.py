"""DICOM series: images of one SeriesInstanceUID to one stack, with its grid and its files in order."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunetv2_meddino.errors import DataError
from nnunetv2_meddino.imaging.dicom_files import Identity, group, identity, is_dicom
from nnunetv2_meddino.imaging.dicom_image import DicomImage
from nnunetv2_meddino.imaging.grid import Grid
from nnunetv2_meddino.imaging.io import Image
from nnunetv2_meddino.imaging.stack import SeriesError, Stack, stack_slices

logger = logging.getLogger(__name__)

VOLUMES = ("CT", "MR")
"""Modalities of which a series of images is a volume."""

_ADVICE = {
    "multiframe": "Convert it to NIfTI with dcm2niix, or to one file an image.",
    "missing_slices": "Export the series again, complete; values of slices that are not there are not made up.",
    "gantry_tilt": "Convert it with dcm2niix and take the file whose name ends in _Tilt: it alone is resampled.",
    "sheared": "Resample it to a right-angled grid with 3D Slicer, or dcm2niix (the file ending in _Tilt).",
    "varying_spacing": "Separate the parts, or resample them to one distance with 3D Slicer.",
    "mixed_series": "Separate what belongs together (phases, echoes, localizers) into folders of its own.",
    "truncated": "Copy or export the file again.",
    "corrupt": "Copy or export the file again.",
}
"""Reason of a refusal -> what to do; of the others, the message says all."""


@dataclass(frozen=True)
class DicomVolume(Image):
    """A DICOM series as a volume; ``channels`` is ``(1, z, y, x)``, ``path`` the folder."""

    files: tuple[Path, ...] = ()
    """The file of each slice, in the order of z."""


@dataclass(frozen=True)
class SeriesFiles:
    """The files of one series."""

    uid: str
    """SeriesInstanceUID, or what stands for it where there is none (``dicom_files.group``)."""
    modality: str
    """CT or MR."""
    files: tuple[Path, ...]
    """Sorted by name."""


@dataclass(eq=False)
class Series:
    """Stored values of a series, and what its headers say about them."""

    values: NDArray[Any]
    """``(N, rows, columns)`` in the type that the files store, in the order in which the slices lie."""
    axes_mm: NDArray[np.float64]
    """``(3, 3)``; row ``i`` is the step along array axis ``i`` in (L, P, S)."""
    slope: NDArray[np.float64]
    """``(1, 1, 1)``, or ``(N, 1, 1)`` where it differs between images: value = slope * stored + intercept."""
    intercept: NDArray[np.float64]
    """The same shape."""
    images: list[DicomImage]
    """In the same order."""
    tilt_deg: float
    """Angle between the normal of the slices and the way they advance; 0 where it is below the tolerance."""


def read_dicom_folder(folder: Path, series_uid: str | None = None) -> DicomVolume:
    """Read a CT or MR series, however its files are named and in whatever folders below they lie.

    Slices are in the order of their positions along the normal of the slices (row direction x column direction), and
    values are rescaled image by image: Hounsfield units of CT. Neither padding nor anything else is replaced. Files of
    other modalities (segmentations, reports) are left aside.

    Args:
        folder: Holds the files.
        series_uid: SeriesInstanceUID of the series to be read; needed where there are several.

    Returns:
        Values ``(1, z, y, x)``: int16 or int32 where all are whole, else float32. Voxels, spacing, origin and direction
        are those of SimpleITK's ``ImageSeriesReader`` with the file names of GDCM.

    Raises:
        DataError: There is no such series, there are several and none was chosen, a file is damaged, or the images are
            no stack on a right-angled grid: missing or uneven slices, images of several kinds, a tilted gantry.
    """
    series = _chosen(folder, find_series(folder), series_uid)
    where = f"{folder} (series {series.uid})"
    try:
        images, flags = open_images(series.files, VOLUMES)
        if "lossy_compression" in flags:
            logger.warning("%s: the images had been compressed with loss.", where)
        stack = stack_images(images)
        grid = _grid(stack)
        values = _rescaled(stack)
    except SeriesError as error:
        advice = _ADVICE.get(error.reason, "")
        raise DataError(f"{where} cannot be read as a volume: {error.message}. {advice}".rstrip()) from error
    except MemoryError:
        raise
    except Exception as error:  # a damaged header raises anything in pydicom
        raise DataError(f"{where} cannot be read ({type(error).__name__}: {error}).") from error
    files = tuple(image.path for image in stack.images)
    return DicomVolume(folder, values[np.newaxis], grid, files=files)


def find_series(folder: Path) -> list[SeriesFiles]:
    """Find the CT and MR series below a folder, by their headers, sorted by UID.

    Raises:
        DataError: There is no such folder, or a file that ends in ``.dcm`` has no readable DICOM header.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} does not exist or is not a folder.")
    images: list[tuple[Path, Identity]] = []
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for path in (Path(parent, name) for name in sorted(names) if not name.startswith(".")):
            if not path.is_file() or not is_dicom(path):
                continue
            own = identity(path)
            if own is None:
                msg = f"{path} has no readable DICOM header. Copy or export it again, or remove it if it is no image."
                raise DataError(msg)
            if own.modality in VOLUMES:
                images.append((path, own))
    modalities = dict(images)
    return [SeriesFiles(uid, modalities[files[0]].modality, tuple(files)) for uid, files in group(images)]


def open_images(files: Sequence[Path], modalities: Sequence[str]) -> tuple[list[DicomImage], set[str]]:
    """Open the files of one series; each must be an image of one of these modalities (0008,0060).

    Returns:
        The images, each once, and what is worth telling: ``repeated_files``, ``lossy_compression``,
        ``modality_from_class``.

    Raises:
        SeriesError: A file is damaged or holds no slice of a scan, or all or some images are localizers.
    """
    images = [DicomImage(path) for path in files]
    for image in images:
        image.check(modalities)
    images, flags = _without_copies(images)
    scouts = sum("LOCALIZER" in image.kind for image in images)
    if scouts == len(images):
        raise SeriesError("localizer", "a scout view, by its ImageType")
    if scouts:
        raise SeriesError("mixed_series", f"{scouts} of {len(images)} images are localizers")
    if any(image.lossy for image in images):
        flags.add("lossy_compression")
    if not all(image.has_modality for image in images):
        flags.add("modality_from_class")
    return images, flags


def stack_images(images: Sequence[DicomImage]) -> Series:
    """Stack the images of one series.

    Pixels are read one image after the other, so that only one copy of them is in memory.

    Raises:
        SeriesError: The images are no stack of evenly spaced slices of one size, or their pixels are damaged.
    """
    first = images[0]
    for image in images:
        first.check_same_grid(image)
    if len(images) < 2:
        raise SeriesError("single_slice", "the series has one image")
    row, column = first.axes()
    stack = _stack(images, row, column)
    images = [images[i] for i in stack.order]
    values, slope, intercept = read_pixels(images)
    y, x = first.numbers("PixelSpacing", 2)
    return Series(
        values, np.array([stack.step_mm, column * y, row * x]), slope, intercept, images, tilt_deg=stack.tilt_deg
    )


def read_pixels(
    images: Sequence[DicomImage],
) -> tuple[NDArray[Any], NDArray[np.float64], NDArray[np.float64]]:
    """Return the pictures ``(N, rows, columns)`` with slopes and intercepts, ``(N, 1, 1)`` or ``(1, 1, 1)``.

    Raises:
        SeriesError: Pixels are damaged.
    """
    values: NDArray[Any] = np.empty(0)
    scales = np.empty((len(images), 2))
    for i, image in enumerate(images):
        picture, *scales[i] = image.pixels()
        if i == 0:
            values = np.empty((len(images), *picture.shape), picture.dtype)
        elif np.result_type(values, picture) != values.dtype:  # signed and unsigned images in one series
            values = values.astype(np.result_type(values, picture))
        values[i] = picture
    if (scales == scales[0]).all():
        scales = scales[:1]
    return values, scales[:, 0].reshape(-1, 1, 1), scales[:, 1].reshape(-1, 1, 1)


def _chosen(folder: Path, found: Sequence[SeriesFiles], series_uid: str | None) -> SeriesFiles:
    """Return the series that is wanted."""
    if not found:
        raise DataError(f"{folder} holds no CT or MR images in DICOM format.")
    if series_uid is None and len(found) == 1:
        return found[0]
    chosen = next((series for series in found if series.uid == series_uid), None)
    if chosen is not None:
        return chosen
    what = f"{len(found)} series where one is expected" if series_uid is None else f"no series {series_uid}"
    listed = "\n".join(f"  {s.uid}  {s.modality}, {len(s.files)} images: {_description(s)}" for s in found)
    msg = f"{folder} holds {what}. Choose one by its UID, or keep it in a folder of its own:\n{listed}"
    raise DataError(msg)


def _description(series: SeriesFiles) -> str:
    """Return what the scanner's operator calls a series."""
    try:
        return str(DicomImage(series.files[0]).header.get("SeriesDescription") or "without description")
    except SeriesError as error:
        return error.message


def _stack(images: Sequence[DicomImage], row: NDArray[np.float64], column: NDArray[np.float64]) -> Stack:
    """Return images of one series in order; those that are none are ``ambiguous_series`` if nothing names it."""
    try:
        return stack_slices(np.array([image.numbers("ImagePositionPatient", 3) for image in images]), row, column)
    except SeriesError as error:
        if not images[0].is_unnamed:
            raise
        message = f"no SeriesInstanceUID, and the images of this folder, study and grid are no stack: {error.message}"
        raise SeriesError("ambiguous_series", message) from error


def _without_copies(images: list[DicomImage]) -> tuple[list[DicomImage], set[str]]:
    """Keep one image of those with the same SOPInstanceUID at the same position."""
    kept: dict[tuple[str, str], DicomImage] = {}
    for image in images:
        uid = str(image.header.get("SOPInstanceUID") or image.path)
        kept.setdefault((uid, str(image.header.get("ImagePositionPatient"))), image)
    return list(kept.values()), {"repeated_files"} if len(kept) < len(images) else set()


def _grid(series: Series) -> Grid:
    """Return the grid of a stack; refuse it where the last slice lies more than a pixel beside it."""
    spacing = np.linalg.norm(series.axes_mm, axis=1)
    if not (spacing > 0).all():
        raise SeriesError("bad_geometry", f"voxels of {' x '.join(f'{size:g}' for size in spacing)} mm")
    directions = series.axes_mm / spacing[:, np.newaxis]
    first, last = (series.images[i].numbers("ImagePositionPatient", 3) for i in (0, -1))
    beside_mm = np.abs(directions[1:] @ (last - first))
    if (beside_mm > spacing[1:]).any():
        tilt = np.degrees(np.arctan2(np.linalg.norm(beside_mm), abs(directions[0] @ (last - first))))
        message = (
            f"the slices advance at {tilt:.1f} degrees to their normal (a tilted gantry), so that the last lies "
            f"{beside_mm.max():.1f} mm beside the grid of the first"
        )
        raise SeriesError("gantry_tilt", message)
    z, y, x = (float(size) for size in spacing)
    return Grid((z, y, x), (float(first[0]), float(first[1]), float(first[2])), directions)


def _rescaled(series: Series) -> NDArray[Any]:
    """Return the rescaled values, in place where the type allows it."""
    values, slope, intercept = series.values, series.slope, series.intercept
    if not slope.all():
        raise SeriesError("corrupt", "the RescaleSlope of an image is 0")
    dtype = _result_type(values, slope, intercept)
    if dtype == values.dtype and (slope == 1).all() and not intercept.any():
        return values
    rescaled = values if dtype == values.dtype else np.empty(values.shape, dtype)
    slopes, intercepts = (np.broadcast_to(numbers.reshape(-1), len(values)) for numbers in (slope, intercept))
    for i, picture in enumerate(values):  # slice by slice: no array of doubles as large as the volume
        rescaled[i] = picture * slopes[i] + intercepts[i]
    return rescaled


def _result_type(values: NDArray[Any], slope: NDArray[np.float64], intercept: NDArray[np.float64]) -> np.dtype[Any]:
    """Return the smallest of int16, int32 and float32 that holds the rescaled values."""
    if (slope % 1).any() or (intercept % 1).any() or values.dtype.kind not in "iu":
        return np.dtype(np.float32)
    ends = np.array([float(values.min()), float(values.max())]).reshape(2, 1, 1, 1) * slope + intercept
    for dtype in (np.int16, np.int32):
        if np.iinfo(dtype).min <= ends.min() and ends.max() <= np.iinfo(dtype).max:
            return np.dtype(dtype)
    return np.dtype(np.float32)
