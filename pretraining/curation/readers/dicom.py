"""DICOM series: images of one SeriesInstanceUID to one stack.

Sources: PS3.3 C.7.6.2 (image plane), C.7.6.3 (pixels), C.8.2.1 (CT image), C.11.1 (rescale) of the DICOM standard.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import SimpleITK as sitk
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from pretraining.curation.geometry import Stack, stack_slices
from pretraining.curation.readers.raw_image import RawImage
from pretraining.curation.readers.series import MODALITIES, SAME_GRID, modality_of, sop_class_of
from pretraining.curation.volume import Rejected
from pretraining.modality import Modality

_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
"""SOP class, and the beginning of its multi-frame variants."""

_DECODED_HERE = (
    "1.2.840.10008.1.2",  # implicit little endian, the default
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2.1.99",  # deflated
    "1.2.840.10008.1.2.2",  # big endian
    "1.2.840.10008.1.2.5",  # run length
)
"""Transfer syntaxes that pydicom decodes by itself."""

_RENDERED = frozenset({"SCREEN SAVE", "SCREENSHOT", "PROJECTION IMAGE", "MIP", "MAX_IP", "MIN_IP", "MINIP"})
"""Values of ImageType for pictures of a scan instead of its slices."""

_LENGTH_TOLERANCE = 0.01
"""Of direction cosines, which headers give with as few as three digits."""

_TEXTS = {
    "manufacturer": "Manufacturer",
    "model": "ManufacturerModelName",
    "kernel": "ConvolutionKernel",
    "body_part": "BodyPartExamined",
}
_NUMBERS = {"kvp": "KVP", "slice_thickness_mm": "SliceThickness"}


def read_series(files: Sequence[Path], modality: Modality) -> RawImage:
    """Read the images of one series; raises ``Rejected``.

    Headers are read first and pixels one image after the other, so that only one copy of the pixels is in memory.
    """
    images = [_Image(path) for path in files]
    for image in images:
        image.check(modality)
    images, flags = _without_copies(images)
    scouts = sum("LOCALIZER" in image.kind for image in images)
    if scouts == len(images):
        raise Rejected("localizer", "a scout view, by its ImageType")
    if scouts:
        raise Rejected("mixed_series", f"{scouts} of {len(images)} images are localizers")
    first = images[0]
    metadata = first.metadata()
    if any(image.lossy for image in images):
        flags.add("lossy_compression")
    if not all(image.has_modality for image in images):
        flags.add("modality_from_class")
    if modality == Modality.XR:
        return _projection(first, flags, metadata)
    for image in images:
        first.check_same_grid(image)
    if len(images) < 2:
        raise Rejected("single_slice", "the series has one image")
    row, column = first.axes()
    stack = _stack(images, row, column)
    flags |= {"no_series_uid"} if first.is_unnamed else set()
    images = [images[i] for i in stack.order]
    if stack.tilt_deg:
        flags.add("gantry_tilt")
        metadata["gantry_tilt_deg"] = round(stack.tilt_deg, 2)
    values, slope, intercept = _pixels(images)
    y, x = first.numbers("PixelSpacing", 2)
    return RawImage(
        values=values,
        axes_mm=np.array([stack.step_mm, column * y, row * x]),
        slope=slope,
        intercept=intercept,
        padding=frozenset(image.padding for image in images if image.padding is not None),
        flags=flags,
        metadata=metadata,
    )


def _stack(images: list[_Image], row: NDArray[np.float64], column: NDArray[np.float64]) -> Stack:
    """Return images of one series in order; reject images that are none as ``ambiguous_series`` if nothing names it."""
    try:
        return stack_slices(np.array([image.numbers("ImagePositionPatient", 3) for image in images]), row, column)
    except Rejected as rejected:
        if not images[0].is_unnamed:
            raise
        message = (
            f"no SeriesInstanceUID, and the images of this folder, study and grid are no stack: {rejected.message}"
        )
        raise Rejected("ambiguous_series", message) from rejected


def _projection(image: _Image, flags: set[str], metadata: dict[str, Any]) -> RawImage:
    """Return an X-ray picture as a volume of one slice, bright where much was absorbed."""
    values, slope, intercept = _pixels([image])
    if str(image.header.get("PhotometricInterpretation", "")) == "MONOCHROME1":  # stored the other way round
        slope, intercept = -slope, slope * (float(values.max()) + float(values.min())) + intercept
    y, x = image.numbers("PixelSpacing" if "PixelSpacing" in image.header else "ImagerPixelSpacing", 2)
    return RawImage(values, None, (1.0, float(y), float(x)), slope, intercept, flags=flags, metadata=metadata)


class _Image:
    """One file: its header and what follows from it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.header: Dataset = pydicom.dcmread(path, stop_before_pixels=True, force=True)
            self.header.decode()  # parses all values
            kind = self.header.get("ImageType") or ()
        except (MemoryError, OSError):
            raise
        except Exception as error:  # a damaged header raises anything in pydicom
            raise Rejected("corrupt", f"{path.name} has no readable DICOM header ({error})") from error
        self.kind = {part.upper() for part in ([kind] if isinstance(kind, str) else map(str, kind))}
        self.lossy = str(self.header.get("LossyImageCompression", "")) == "01"
        self.is_unnamed = not str(self.header.get("SeriesInstanceUID") or "").strip()
        self.has_modality = bool(str(self.header.get("Modality") or "").strip())

    def numbers(self, name: str, count: int) -> NDArray[np.float64]:
        """Return a numeric attribute of ``count`` values; reject its absence as ``bad_geometry``."""
        value = self.header.get(name)
        numbers = np.array([] if value is None else value, np.float64).reshape(-1)
        if len(numbers) != count or not np.isfinite(numbers).all():
            raise Rejected("bad_geometry", f"{self.path.name} has no usable {name} ({value})")
        return numbers

    def check(self, modality: Modality) -> None:
        """Reject what is not a picture of the wanted kind."""
        header, name = self.header, self.path.name
        named, sop_class = modality_of(header), sop_class_of(header)
        if not sop_class:
            raise Rejected("corrupt", f"{name} does not say what it is (no SOPClassUID)")
        if sop_class.startswith(_SECONDARY_CAPTURE):
            raise Rejected("secondary_capture", f"{name} is a secondary capture")
        if named not in MODALITIES[modality]:
            other = "not_ct" if modality == Modality.CT else "other_modality"
            raise Rejected(other, f"{name} is of modality '{named}'")
        if self.kind & _RENDERED:
            raise Rejected("secondary_capture", f"{name} is a derived picture ({', '.join(sorted(self.kind))})")
        if "SharedFunctionalGroupsSequence" in header or int(header.get("NumberOfFrames") or 1) > 1:
            raise Rejected("multiframe", f"{name} holds {header.get('NumberOfFrames')} frames")
        if int(header.get("SamplesPerPixel") or 1) > 1:
            raise Rejected("rgb", f"{name} is a colour picture ({header.get('PhotometricInterpretation')})")
        missing = [field for field in ("Rows", "Columns", "BitsAllocated", "BitsStored") if not header.get(field)]
        if missing:
            raise Rejected("corrupt", f"{name} has no {', '.join(missing)}")
        if modality == Modality.CT and int(header.BitsStored) <= 8:
            raise Rejected("8_bit", f"{name} has {header.BitsStored} bits a pixel")

    def axes(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the unit vectors along which the column index and the row index grow, in (L, P, S)."""
        cosines = self.numbers("ImageOrientationPatient", 6).reshape(2, 3)
        lengths = np.linalg.norm(cosines, axis=1, keepdims=True)
        if (np.abs(lengths - 1) > _LENGTH_TOLERANCE).any() or abs(cosines[0] @ cosines[1]) > _LENGTH_TOLERANCE:
            raise Rejected(
                "bad_geometry", f"{self.path.name}: ImageOrientationPatient is not two perpendicular unit vectors"
            )
        row, column = cosines / lengths
        return row, column

    def check_same_grid(self, other: _Image) -> None:
        """Reject a series with images on different grids."""
        for name in ("Rows", "Columns"):
            if self.header[name].value != other.header[name].value:
                sizes = f"{self.header[name].value} and {other.header[name].value}"
                raise Rejected("mixed_series", f"images have {sizes} {name.lower()}")
        for name, count in (("PixelSpacing", 2), ("ImageOrientationPatient", 6)):
            mine, others = self.numbers(name, count), other.numbers(name, count)
            if np.abs(mine - others).max() > SAME_GRID:
                raise Rejected("mixed_series", f"images differ in {name}: {mine} and {others}")

    @property
    def rescale(self) -> tuple[float, float]:
        """Slope and intercept; 1 and 0 where the header has none."""
        if self.header.get("RescaleSlope") is None or self.header.get("RescaleIntercept") is None:
            return 1.0, 0.0
        return float(self.numbers("RescaleSlope", 1)[0]), float(self.numbers("RescaleIntercept", 1)[0])

    @property
    def padding(self) -> int | None:
        """PixelPaddingValue, rescaled."""
        if self.header.get("PixelPaddingValue") is None:
            return None
        slope, intercept = self.rescale
        return round(float(self.numbers("PixelPaddingValue", 1)[0]) * slope + intercept)

    def pixels(self) -> tuple[NDArray[Any], float, float]:
        """Return the picture ``(rows, columns)``, slope and intercept."""
        try:
            dataset = pydicom.dcmread(self.path, force=True)
            if not dataset.get("PixelData"):
                raise Rejected("truncated", f"{self.path.name} ends before its pixels")
            syntax = str(dataset.file_meta.get("TransferSyntaxUID", _DECODED_HERE[0]))
            if syntax in _DECODED_HERE:
                values, (slope, intercept) = dataset.pixel_array, self.rescale
            else:  # JPEG and the like: decoded and rescaled by GDCM
                values, slope, intercept = sitk.GetArrayFromImage(sitk.ReadImage(str(self.path))), 1.0, 0.0
        except (MemoryError, OSError, Rejected):
            raise
        except Exception as error:  # damaged pixels raise anything in the decoders
            short = isinstance(error, EOFError) or "less than expected" in str(error)
            message = f"the pixels of {self.path.name} cannot be decoded ({str(error).strip().splitlines()[-1]})"
            raise Rejected("truncated" if short else "corrupt", message) from error
        return values.reshape(int(self.header.Rows), int(self.header.Columns)), slope, intercept

    def metadata(self) -> dict[str, Any]:
        """Return what the header says about the scanner."""
        facts: dict[str, Any] = {"format": "dicom"}
        for key, name in _TEXTS.items():
            if self.header.get(name):
                facts[key] = str(self.header[name].value)
        for key, name in _NUMBERS.items():
            if self.header.get(name) is not None:
                facts[key] = float(self.numbers(name, 1)[0])
        return facts


def _without_copies(images: list[_Image]) -> tuple[list[_Image], set[str]]:
    """Keep one image of those with the same SOPInstanceUID at the same position."""
    kept: dict[tuple[str, str], _Image] = {}
    for image in images:
        uid = str(image.header.get("SOPInstanceUID") or image.path)
        kept.setdefault((uid, str(image.header.get("ImagePositionPatient"))), image)
    return list(kept.values()), {"repeated_files"} if len(kept) < len(images) else set()


def _pixels(images: list[_Image]) -> tuple[NDArray[Any], NDArray[np.float64], NDArray[np.float64]]:
    """Return the pictures ``(N, rows, columns)`` with slopes and intercepts, ``(N, 1, 1)`` or ``(1, 1, 1)``."""
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
