"""Label maps as DICOM segmentations of the series that they were predicted from.

Sources: PS3.3 A.51 and C.8.20 (segmentations, label maps among them), PS3.16 CID 7150 (categories of segments), CIDs
7191 to 7197 (their types) of the DICOM standard.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import highdicom
import numpy as np
import pydicom
from highdicom.seg import Segmentation, SegmentDescription
from numpy.typing import NDArray
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sr.codedict import Code, codes
from pydicom.uid import ExplicitVRLittleEndian, RLELossless, generate_uid
from pydicom.valuerep import DSfloat

from nnunetv2_meddino import __version__
from nnunetv2_meddino.errors import ConfigurationError, DataError
from nnunetv2_meddino.files import replacing
from nnunetv2_meddino.imaging.segmentation import present_labels
from nnunetv2_meddino.viewers.structures import Colour, structures_of

Kind = Literal["labelmap", "binary"]

SCHEME = "99MEDDINO"
"""Coding scheme of names that have no code of SNOMED CT; ``99`` marks a private one (PS3.16 section 8)."""

_PRODUCT = "nnunetv2-meddino"

_CATEGORIES = {
    7192: codes.SCT.AnatomicalStructure,
    7191: codes.SCT.Tissue,
    7194: codes.SCT.MorphologicallyAbnormalStructure,
    7193: codes.SCT.PhysicalObject,
    7197: codes.SCT.BodySubstance,
}
"""Context group of property types -> the category that they belong to."""

_REQUIRED = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "SOPClassUID", "SOPInstanceUID")
"""What a segmentation refers to its images by."""

_PATIENT_AND_STUDY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("AccessionNumber", "StudyID", "StudyDate", "StudyTime"),
)
"""Attributes of type 2 (may be empty), without or with odd values of which highdicom refuses images."""

_LONGEST_NAME = 64
"""Characters of a label or the meaning of a code; the value of a code may be longer."""

_FIRST_SERIES_NUMBER = 1000
"""Added to the number of the source's series, so that viewers list the segmentation after the images."""


@dataclass(frozen=True)
class Segment:
    """One class in a segmentation."""

    number: int
    """SegmentNumber; of label maps also the value of its voxels."""
    name: str
    """As in ``dataset.json``."""
    labels: tuple[int, ...]
    """Labels of the voxels that belong to it."""
    colour: Colour
    """That viewers are recommended."""


def segments_of(labels: Mapping[str, Any], kind: Kind) -> list[Segment]:
    """Return the segments of the classes of a dataset, without background and ``ignore``, in the order of their labels.

    Args:
        labels: Name of a class -> label, or list of labels (a region): the entry ``labels`` of ``dataset.json``.
        kind: ``labelmap`` numbers a segment by its label, ``binary`` from 1 on.

    Raises:
        ConfigurationError: There is no such kind, regions overlap in a label map, or the labels contradict themselves.
    """
    if kind not in ("labelmap", "binary"):
        raise ConfigurationError(f"A DICOM segmentation is 'labelmap' or 'binary', not {kind!r}.")
    segments = [
        Segment(min(one.labels) if kind == "labelmap" else i, one.name, one.labels, one.colour)
        for i, one in enumerate(structures_of(labels), start=1)
    ]
    if kind == "labelmap" and _overlap(segments):
        msg = "The regions of this dataset overlap, and a voxel of a label map has one value. Choose 'binary' instead."
        raise ConfigurationError(msg)
    return segments


def write_dicom_seg(
    label_map: NDArray[np.integer[Any]],
    labels: Mapping[str, Any],
    source: Sequence[Path],
    path: Path,
    *,
    kind: Kind = "labelmap",
) -> None:
    """Write a label map as a DICOM segmentation that refers to its images, whole or not at all.

    Frames lie where the slices lie; their order in the file is highdicom's: against the normal (row direction x column
    direction) of the slices, for each segment again. A label map has a frame for every slice; a binary segmentation
    only those in which the segment has voxels, or one empty frame a segment if there are no voxels at all.

    Args:
        label_map: ``(z, y, x)``, one slice for each file.
        labels: The entry ``labels`` of ``dataset.json``.
        source: Files of the slices in the order of z, such as ``DicomVolume.files``.
        path: The file to be written.
        kind: ``labelmap`` (Label Map Segmentation Storage, 8 or 16 bits a voxel, run length encoded) or ``binary``
            (Segmentation Storage, 1 bit a voxel and segment; the only one that holds regions that overlap).

    Raises:
        ConfigurationError: As ``segments_of``.
        DataError: The label map does not fit the images or the labels, or the images' headers lack what a segmentation
            needs.
        OSError: It cannot be written.
    """
    segments = segments_of(labels, kind)
    try:
        headers = [_header(file) for file in source]
        _check(label_map, headers, segments, source)
        segmentation = _segmentation(label_map, headers, segments, kind)
    except (MemoryError, OSError, DataError):
        raise
    except Exception as error:  # odd headers raise anything in pydicom and highdicom
        reason = f"{type(error).__name__}: {error}".rstrip(".")
        msg = (
            f"The headers of the images in {source[0].parent} do not allow a DICOM segmentation: {reason}. Correct "
            "them, or write the labels as NIfTI."
        )
        raise DataError(msg) from error
    with replacing(path) as temporary:
        segmentation.save_as(temporary)


def _segmentation(
    label_map: NDArray[Any], headers: Sequence[Dataset], segments: Sequence[Segment], kind: Kind
) -> Segmentation:
    """Return the object that is written; the headers are changed."""
    patient_and_study = _taken_out(headers)
    _state_geometry(headers)
    empty = kind == "binary" and not label_map.any()
    used = slice(0, 1) if empty else slice(None)  # all slices of all segments would be written, gigabytes of zeros
    segmentation = Segmentation(
        source_images=headers[used],
        pixel_array=_pixels(label_map[used], segments),
        segmentation_type=kind.upper(),
        segment_descriptions=[_description(segment) for segment in segments],
        series_instance_uid=generate_uid(),
        series_number=_FIRST_SERIES_NUMBER + int(headers[0].get("SeriesNumber") or 0),
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer=_PRODUCT,
        manufacturer_model_name=_PRODUCT,
        software_versions=__version__,
        device_serial_number=__version__,
        series_description=f"Segmentation by {_PRODUCT}",
        transfer_syntax_uid=RLELossless if kind == "labelmap" else ExplicitVRLittleEndian,
        omit_empty_frames=kind == "binary" and not empty,
        further_source_images=headers[1:] if empty else None,
        specific_character_set="ISO_IR 192",  # UTF-8: names of classes may be in any language
    )
    for element in patient_and_study:
        segmentation.add(element)
    return segmentation


def _header(file: Path) -> Dataset:
    """Return the header of an image."""
    header = pydicom.dcmread(file, stop_before_pixels=True, force=True)
    missing = [name for name in _REQUIRED if not header.get(name)]
    if missing:
        msg = f"{file} has no {', '.join(missing)}, by which a segmentation refers to its images. Write NIfTI instead."
        raise DataError(msg)
    return header


def _taken_out(headers: Sequence[Dataset]) -> list[DataElement]:
    """Empty who and which study it is in headers in memory; return what the first said, to be stored as it is."""
    said = [headers[0][name] for name in _PATIENT_AND_STUDY if name in headers[0]]
    for header in headers:
        for name in _PATIENT_AND_STUDY:
            header.pop(name, None)
            setattr(header, name, "")
    return said


def _check(
    label_map: NDArray[Any], headers: Sequence[Dataset], segments: Sequence[Segment], source: Sequence[Path]
) -> None:
    """Refuse a label map of another shape than the images, or with labels that no segment has."""
    expected = (len(headers), *((int(headers[0].Rows), int(headers[0].Columns)) if headers else ()))
    if label_map.shape != expected:
        where = source[0].parent if source else "no files"
        raise DataError(f"A label map of shape {label_map.shape} (z, y, x) for images of shape {expected} in {where}.")
    if label_map.dtype.kind not in "iu" or label_map.min() < 0:
        raise DataError(f"A label map holds whole numbers from 0, not {label_map.dtype} from {label_map.min()}.")
    unknown = set(present_labels(label_map)) - {0}.union(*(segment.labels for segment in segments))
    if unknown:
        raise DataError(f"The label map holds labels of no class of dataset.json: {sorted(unknown)}.")


def _overlap(segments: Sequence[Segment]) -> bool:
    """Tell whether a label belongs to several segments."""
    labels = [label for segment in segments for label in segment.labels]
    return len(set(labels)) < len(labels)


def _pixels(label_map: NDArray[Any], segments: Sequence[Segment]) -> NDArray[Any]:
    """Return segment numbers ``(z, y, x)``; of segments that overlap, masks ``(z, y, x, segment)``."""
    most = max(int(label_map.max()), *(max(segment.labels) for segment in segments))
    table: NDArray[Any]
    if _overlap(segments):
        table = np.zeros((most + 1, len(segments)), bool)
        for i, segment in enumerate(segments):
            table[list(segment.labels), i] = True
    else:
        table = np.zeros(most + 1, np.uint8 if max(segment.number for segment in segments) < 256 else np.uint16)
        for segment in segments:
            table[list(segment.labels)] = segment.number
    pixels = np.empty(label_map.shape + table.shape[1:], table.dtype)
    for i, part in enumerate(label_map):
        pixels[i] = table[part]
    return pixels


def _state_geometry(headers: Sequence[Dataset]) -> None:
    """Let headers in memory say what the positions of the images say; highdicom copies from the first.

    The distance of the slices is often missing or another one (a gap); orientations may differ by rounding.
    """
    first, last = (np.array(headers[i].ImagePositionPatient, float) for i in (0, -1))
    distance_mm = DSfloat(float(np.linalg.norm(last - first)) / max(len(headers) - 1, 1), auto_format=True)
    for header in headers:
        header.ImageOrientationPatient = headers[0].ImageOrientationPatient
        header.SpacingBetweenSlices = distance_mm
        header.SliceThickness = header.get("SliceThickness") or distance_mm


def _description(segment: Segment) -> SegmentDescription:
    """Return what a file says about a segment: its name, a code for it, its colour, and what made it."""
    category, kind = _code(segment.name)
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=_PRODUCT, family=codes.DCM.ArtificialIntelligence, version=__version__
    )
    return SegmentDescription(
        segment_number=segment.number,
        segment_label=segment.name[:_LONGEST_NAME],
        segmented_property_category=category,
        segmented_property_type=kind,
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm,
        display_color=highdicom.color.CIELabColor.from_rgb(*(round(255 * part) for part in segment.colour)),
    )


def _code(name: str) -> tuple[Code, Code]:
    """Return category and code of a class: SNOMED CT's where its name is exactly that of a concept, else our own."""
    own = (codes.SCT.AnatomicalStructure, Code(name, SCHEME, name[:_LONGEST_NAME]))
    return _concepts().get(_plain(name), own)


@cache
def _concepts() -> dict[str, tuple[Code, Code]]:
    """Return the SNOMED CT concepts that DICOM names for segments, by their plain names, with their categories."""
    found: dict[str, tuple[Code, Code]] = {}
    for group, category in _CATEGORIES.items():
        for code in getattr(codes, f"cid{group}").concepts.values():
            if code.scheme_designator == "SCT":
                found.setdefault(_plain(code.meaning), (category, code))
    return found


def _plain(name: str) -> str:
    """Return a name without upper case, spaces, underscores and hyphens."""
    return name.casefold().translate(str.maketrans("", "", " _-"))
