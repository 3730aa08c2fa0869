"""DICOM series and X-ray pictures: which modalities, and what their headers add to a volume."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnunetv2_meddino.imaging.dicom_image import DicomImage
from nnunetv2_meddino.imaging.dicom_series import open_images, read_pixels, stack_images
from pretraining.curation.readers.raw_image import RawImage
from pretraining.modality import Modality

MODALITIES = {
    Modality.CT: ("CT",),
    Modality.MR: ("MR",),
    Modality.XR: ("CR", "DX", "DR", "RG", "XR", "RF", "PX", "IO", "MG"),
}
"""Modality (0008,0060) of the images."""

PROJECTIONS = frozenset(MODALITIES[Modality.XR])
"""Modalities of which every file is a picture of its own, whatever series it belongs to."""

_TEXTS = {
    "manufacturer": "Manufacturer",
    "model": "ManufacturerModelName",
    "kernel": "ConvolutionKernel",
    "body_part": "BodyPartExamined",
}
_NUMBERS = {"kvp": "KVP", "slice_thickness_mm": "SliceThickness"}


def read_series(files: Sequence[Path], modality: Modality) -> RawImage:
    """Read the images of one series, or one X-ray picture.

    Raises:
        SeriesError: As ``open_images`` and ``stack_images``.
    """
    images, flags = open_images(files, MODALITIES[modality])
    metadata = _metadata(images[0])
    if modality == Modality.XR:
        return _projection(images[0], flags, metadata)
    series = stack_images(images)
    flags |= {"no_series_uid"} if images[0].is_unnamed else set()
    if series.tilt_deg:
        flags.add("gantry_tilt")
        metadata["gantry_tilt_deg"] = round(series.tilt_deg, 2)
    return RawImage(
        values=series.values,
        axes_mm=series.axes_mm,
        slope=series.slope,
        intercept=series.intercept,
        padding=frozenset(image.padding for image in series.images if image.padding is not None),
        flags=flags,
        metadata=metadata,
    )


def _projection(image: DicomImage, flags: set[str], metadata: dict[str, Any]) -> RawImage:
    """Return an X-ray picture as a volume of one slice, bright where much was absorbed."""
    values, slope, intercept = read_pixels([image])
    if str(image.header.get("PhotometricInterpretation", "")) == "MONOCHROME1":  # stored the other way round
        slope, intercept = -slope, slope * (float(values.max()) + float(values.min())) + intercept
    y, x = image.numbers("PixelSpacing" if "PixelSpacing" in image.header else "ImagerPixelSpacing", 2)
    return RawImage(values, None, (1.0, float(y), float(x)), slope, intercept, flags=flags, metadata=metadata)


def _metadata(image: DicomImage) -> dict[str, Any]:
    """Return what a header says about the scanner."""
    facts: dict[str, Any] = {"format": "dicom"}
    for key, name in _TEXTS.items():
        if image.header.get(name):
            facts[key] = str(image.header[name].value)
    for key, name in _NUMBERS.items():
        if image.header.get(name) is not None:
            facts[key] = float(image.numbers(name, 1)[0])
    return facts
