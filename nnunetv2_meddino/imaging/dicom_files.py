"""Which DICOM files are images of one series, by their headers alone.

Sources: PS3.3 C.7.3.1 (series), C.7.6.2 (image plane) and PS3.6 (UIDs) of the DICOM standard.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset

logger = logging.getLogger(__name__)

SAME_GRID = 1e-3
"""Difference of spacings (mm) and direction cosines within one series that is rounding."""

_STORAGE = "1.2.840.10008.5.1.4.1.1."

_MODALITY_OF_CLASS = {
    **dict.fromkeys(("2", "2.1", "2.2"), "CT"),  # CT, enhanced CT, legacy converted enhanced CT
    **dict.fromkeys(("4", "4.1", "4.4"), "MR"),
    "1": "CR",
    **dict.fromkeys(("1.1", "1.1.1"), "DX"),
    **dict.fromkeys(("1.2", "1.2.1"), "MG"),
    **dict.fromkeys(("1.3", "1.3.1"), "IO"),
    **dict.fromkeys(("12.1", "12.1.1"), "XA"),
    **dict.fromkeys(("12.2", "12.2.1"), "RF"),
}
"""End of a SOPClassUID that is for one modality only -> that modality."""

_DIRECTORY = "1.2.840.10008.1.3.10"
"""Media Storage Directory Storage: a DICOMDIR."""

_TAGS = (
    *("SeriesInstanceUID", "StudyInstanceUID", "SOPClassUID", "SOPInstanceUID", "Modality"),
    *("Rows", "Columns", "PixelSpacing", "ImageOrientationPatient"),
)


@dataclass(frozen=True)
class Identity:
    """What the header of a file says about where it belongs."""

    series: str
    """SeriesInstanceUID; empty where it is empty or absent."""
    modality: str
    """``modality_of`` the header."""
    study: str = ""
    """StudyInstanceUID; empty where it is empty or absent."""
    size: str = ""
    """Rows and columns, as text."""
    plane: tuple[float, ...] = ()
    """Pixel spacing and orientation, eight numbers; fewer where the header lacks some."""
    is_directory: bool = False
    """Whether it is a DICOMDIR, which holds no image."""

    def shares_grid(self, other: Identity) -> bool:
        """Tell whether two images are of one study, size, pixel spacing and orientation."""
        if (self.study, self.size, len(self.plane)) != (other.study, other.size, len(other.plane)):
            return False
        return bool(np.abs(np.subtract(self.plane, other.plane)).max(initial=0) <= SAME_GRID)


def is_dicom(path: Path) -> bool:
    """Tell whether a file has the DICOM mark, or at least the ending ``.dcm``."""
    if path.suffix.lower() == ".dcm":
        return True
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError as error:
        logger.warning("%s cannot be opened: %s", path, error)
        return False


def modality_of(header: Dataset) -> str:
    """Return the modality that a header names, or else the one that its SOPClassUID is for; empty if neither says."""
    named = str(header.get("Modality") or "").strip()
    sop_class = sop_class_of(header)
    if named or not sop_class.startswith(_STORAGE):
        return named
    return _MODALITY_OF_CLASS.get(sop_class.removeprefix(_STORAGE), "")


def sop_class_of(header: Dataset) -> str:
    """Return the SOPClassUID of a header, or else that in front of it; empty where neither is there."""
    in_front = getattr(header, "file_meta", Dataset()).get("MediaStorageSOPClassUID")
    return str(header.get("SOPClassUID") or in_front or "")


def identity(path: Path) -> Identity | None:
    """Return where a file belongs; None where its header cannot be read, or is of no image."""
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_TAGS), force=True)
        if str(header.file_meta.get("MediaStorageSOPClassUID", "")) == _DIRECTORY:
            return Identity("", "", is_directory=True)
        series = str(header.get("SeriesInstanceUID") or "").strip()
        if not series and not sop_class_of(header) and header.get("Rows") is None:
            return None
        numbers = (header.get(name) for name in ("PixelSpacing", "ImageOrientationPatient"))
        return Identity(
            series=series,
            modality=modality_of(header),
            study=str(header.get("StudyInstanceUID") or "").strip(),
            size=f"{header.get('Rows')} x {header.get('Columns')}",
            plane=tuple(float(n) for own in numbers for n in (np.atleast_1d(own) if own is not None else ())),
        )
    except Exception as error:  # a damaged header raises anything in pydicom, MemoryError too
        logger.debug("%s has no readable DICOM header: %s", path, error)
        return None


def group(images: Sequence[tuple[Path, Identity]]) -> list[tuple[str, list[Path]]]:
    """Return the images of one folder by series, sorted by name of the series.

    Images without a SeriesInstanceUID are grouped by study, size, pixel spacing and orientation; such a group is named
    after those of its first image.
    """
    series: dict[str, list[Path]] = {}
    unnamed: list[tuple[Identity, list[Path]]] = []
    for path, own in images:
        if own.series:
            series.setdefault(own.series, []).append(path)
            continue
        files = next((files for other, files in unnamed if other.shares_grid(own)), None)
        if files is None:
            unnamed.append((own, [path]))
        else:
            files.append(path)
    for own, files in unnamed:
        text = f"{own.study}/{own.size}/{own.plane}"
        series[f"unnamed.{hashlib.sha256(text.encode(errors='replace')).hexdigest()[:8]}"] = files
    return sorted(series.items())
