"""DICOM objects that are not images: SimpleITK reads a segmentation as slices of 0 and 255, segment by segment."""

from __future__ import annotations

from pathlib import Path

import pydicom
from pydicom.errors import InvalidDicomError

from nnunetv2_meddino.errors import DataError

_CLASSES = "1.2.840.10008.5.1.4.1.1."
_SEGMENTATION = (_CLASSES + "66.4", _CLASSES + "66.7")
"""Segmentation Storage and Label Map Segmentation Storage."""

_CONTOURS = (_CLASSES + "481.3", _CLASSES + "66.5")
"""RT Structure Set Storage and Surface Segmentation Storage."""


def refuse_other_dicom(path: Path) -> None:
    """Raise ``DataError`` where a file is a DICOM segmentation, or a DICOM object without pixels."""
    with path.open("rb") as file:
        marked = file.read(132)[128:] == b"DICM"
    if not marked and not path.name.lower().endswith(".dcm"):
        return
    try:
        header = pydicom.dcmread(path, force=True, specific_tags=["SOPClassUID", "Modality"], stop_before_pixels=True)
    except (InvalidDicomError, OSError, ValueError, KeyError, AttributeError, NotImplementedError):
        return  # SimpleITK's error will name what is wrong
    kind = header.get("SOPClassUID", "")
    if kind in _SEGMENTATION or header.get("Modality") == "SEG":
        msg = (
            f"{path} is a DICOM segmentation; convert it to NIfTI with dcmqi (segimage2itkimage) or 3D Slicer, one "
            "label map with a whole number per structure."
        )
        raise DataError(msg)
    if kind in _CONTOURS or header.get("Modality") == "RTSTRUCT":
        msg = (
            f"{path} is a DICOM object of contours or surfaces, not an image; convert it to NIfTI with plastimatch or "
            "3D Slicer, one label map on the grid of its image."
        )
        raise DataError(msg)
