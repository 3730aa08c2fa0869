"""One DICOM file: its header, what follows from it, and its pixels.

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

from nnunetv2_meddino.imaging.dicom_files import SAME_GRID, modality_of, sop_class_of
from nnunetv2_meddino.imaging.stack import SeriesError

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


class DicomImage:
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
            raise SeriesError("corrupt", f"{path.name} has no readable DICOM header ({error})") from error
        self.kind = {part.upper() for part in ([kind] if isinstance(kind, str) else map(str, kind))}
        self.lossy = str(self.header.get("LossyImageCompression", "")) == "01"
        self.is_unnamed = not str(self.header.get("SeriesInstanceUID") or "").strip()
        self.has_modality = bool(str(self.header.get("Modality") or "").strip())

    def numbers(self, name: str, count: int) -> NDArray[np.float64]:
        """Return a numeric attribute of ``count`` values; its absence is ``bad_geometry``."""
        value = self.header.get(name)
        numbers = np.array([] if value is None else value, np.float64).reshape(-1)
        if len(numbers) != count or not np.isfinite(numbers).all():
            raise SeriesError("bad_geometry", f"{self.path.name} has no usable {name} ({value})")
        return numbers

    def check(self, modalities: Sequence[str]) -> None:
        """Refuse what is not a picture of one of these modalities (0008,0060)."""
        header, name = self.header, self.path.name
        named, sop_class = modality_of(header), sop_class_of(header)
        if not sop_class:
            raise SeriesError("corrupt", f"{name} does not say what it is (no SOPClassUID)")
        if sop_class.startswith(_SECONDARY_CAPTURE):
            raise SeriesError("secondary_capture", f"{name} is a secondary capture")
        if named not in modalities:
            other = "not_ct" if tuple(modalities) == ("CT",) else "other_modality"
            raise SeriesError(other, f"{name} is of modality '{named}'")
        if self.kind & _RENDERED:
            raise SeriesError("secondary_capture", f"{name} is a derived picture ({', '.join(sorted(self.kind))})")
        if "SharedFunctionalGroupsSequence" in header or int(header.get("NumberOfFrames") or 1) > 1:
            raise SeriesError("multiframe", f"{name} holds {header.get('NumberOfFrames')} frames")
        if int(header.get("SamplesPerPixel") or 1) > 1:
            raise SeriesError("rgb", f"{name} is a colour picture ({header.get('PhotometricInterpretation')})")
        missing = [field for field in ("Rows", "Columns", "BitsAllocated", "BitsStored") if not header.get(field)]
        if missing:
            raise SeriesError("corrupt", f"{name} has no {', '.join(missing)}")
        if named == "CT" and int(header.BitsStored) <= 8:
            raise SeriesError("8_bit", f"{name} has {header.BitsStored} bits a pixel")

    def axes(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the unit vectors along which the column index and the row index grow, in (L, P, S)."""
        cosines = self.numbers("ImageOrientationPatient", 6).reshape(2, 3)
        lengths = np.linalg.norm(cosines, axis=1, keepdims=True)
        if (np.abs(lengths - 1) > _LENGTH_TOLERANCE).any() or abs(cosines[0] @ cosines[1]) > _LENGTH_TOLERANCE:
            raise SeriesError(
                "bad_geometry", f"{self.path.name}: ImageOrientationPatient is not two perpendicular unit vectors"
            )
        row, column = cosines / lengths
        return row, column

    def check_same_grid(self, other: DicomImage) -> None:
        """Refuse a series with images on different grids."""
        for name in ("Rows", "Columns"):
            if self.header[name].value != other.header[name].value:
                sizes = f"{self.header[name].value} and {other.header[name].value}"
                raise SeriesError("mixed_series", f"images have {sizes} {name.lower()}")
        for name, count in (("PixelSpacing", 2), ("ImageOrientationPatient", 6)):
            mine, others = self.numbers(name, count), other.numbers(name, count)
            if np.abs(mine - others).max() > SAME_GRID:
                raise SeriesError("mixed_series", f"images differ in {name}: {mine} and {others}")

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
                raise SeriesError("truncated", f"{self.path.name} ends before its pixels")
            syntax = str(dataset.file_meta.get("TransferSyntaxUID", _DECODED_HERE[0]))
            if syntax in _DECODED_HERE:
                values, (slope, intercept) = dataset.pixel_array, self.rescale
            else:  # JPEG and the like: decoded and rescaled by GDCM
                values, slope, intercept = sitk.GetArrayFromImage(sitk.ReadImage(str(self.path))), 1.0, 0.0
        except (MemoryError, OSError, SeriesError):
            raise
        except Exception as error:  # damaged pixels raise anything in the decoders
            short = isinstance(error, EOFError) or "less than expected" in str(error)
            message = f"the pixels of {self.path.name} cannot be decoded ({str(error).strip().splitlines()[-1]})"
            raise SeriesError("truncated" if short else "corrupt", message) from error
        return values.reshape(int(self.header.Rows), int(self.header.Columns)), slope, intercept
