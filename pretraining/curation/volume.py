"""What every reader returns: a canonical volume, or the reason why there is none."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pretraining.modality import Modality

REASONS = {
    "unreadable": "the file is in a format, or a variant of one, that is not supported",
    "truncated": "the file ends before its voxels do, or a file that it needs is missing",
    "corrupt": "a checksum, a length or a header is wrong",
    "bad_geometry": "voxel sizes or axes in the header are not usable (zero, not finite, implausible, not independent)",
    "no_orientation": "the header does not say how the voxels lie in the patient",
    "4d": "more than one volume in a file",
    "rgb": "a colour picture, or several values per voxel",
    "complex": "complex values",
    "8_bit": "at most 256 grey values: Hounsfield units were lost in an 8-bit picture",
    "nonfinite": "values that are not a number or infinite",
    "not_ct": "the header names a modality other than CT",
    "other_modality": "the header names another modality than the source (MR and X-ray sources)",
    "not_hounsfield": "values are not on the Hounsfield scale",
    "empty": "nothing but air, or one constant value",
    "single_slice": "a single slice where a volume is expected",
    "too_small": "slices too small to show anything",
    "localizer": "a localizer (scout view)",
    "secondary_capture": "a screen shot, a rendering or another derived picture, not the reconstructed scan",
    "multiframe": "an enhanced multi-frame DICOM object, which is not supported",
    "mixed_series": "images of one DICOM series differ in size, spacing, orientation or kind, or share a position",
    "ambiguous_series": "DICOM images without a SeriesInstanceUID that do not form one stack",
    "missing_slices": "slices are missing inside a DICOM series",
    "varying_spacing": "the distance of the slices of a DICOM series changes from one part to the next",
    "uneven_slices": "slices of a DICOM series are not evenly spaced",
    "sheared": "axes in the header are not perpendicular, as after a tilted gantry",
    "not_axial": "a sagittal or coronal acquisition: axial slices would be made of thick voxels",
}
"""Code of a rejection -> what it means."""

FLAGS = {
    "reoriented": "stored in another orientation; axes were permuted or reversed",
    "oblique": "the slices are inclined against the patient's axial plane; voxels were left as they are",
    "gantry_tilt": "the gantry was tilted: every slice is right, but the stack is not perpendicular to them",
    "affines_differ": "sform and qform of the NIfTI header disagree; the sform was used",
    "padding_replaced": "padding (values far below air, or a constant fill of the corners) was replaced by -1024 HU",
    "rounded": "values were not whole; rounded to whole ones",
    "clipped": "values beyond the range of 16-bit integers were clipped",
    "rescaled": "values did not fit into 16-bit integers and were scaled linearly (metadata: intensity_scale)",
    "windowed": "the lower end of the grey scale was cut off above air, as by an intensity window",
    "empty_slices": "some slices show only air (metadata: empty_slices)",
    "repeated_files": "images of the DICOM series were present more than once; one of each was used",
    "no_series_uid": "no SeriesInstanceUID; images of one folder, study, orientation and grid were read as a series",
    "modality_from_class": "the header names no modality; it was inferred from the SOPClassUID",
    "units_converted": "the header uses another unit of length; sizes were converted to millimetres",
    "lossy_compression": "the images had been compressed with loss",
}
"""Code of a change or warning -> what it means."""


def printable(text: str) -> str:
    r"""Return a text that can be stored: bytes of file names that are no UTF-8 are written as ``\xNN``."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


class Rejected(Exception):  # noqa: N818 - a verdict on an input, not a fault of the program
    """An input does not become part of the corpus; curation makes it a line of ``rejected.jsonl``.

    Attributes:
        reason: A key of ``REASONS``.
        message: Which file, and what about it.
    """

    def __init__(self, reason: str, message: str) -> None:
        if reason not in REASONS:
            raise KeyError(reason)
        super().__init__(reason, message)  # both, so that it travels between processes
        self.reason = reason
        self.message = message

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"


@dataclass(eq=False)
class Volume:
    """A scan in canonical axial orientation."""

    voxels: NDArray[np.int16]
    """int16 ``(z, y, x)``, contiguous; z runs from feet to head, y from front to back, x from the patient's right to
    left. Hounsfield units where the modality is CT."""
    spacing_mm: tuple[float, float, float]
    """Voxel size along ``(z, y, x)``."""
    modality: Modality
    """What it is of."""
    flags: tuple[str, ...] = ()
    """Keys of ``FLAGS``, in the order of that table."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """JSON values: ``format``, ``stored_orientation`` (the patient's side to which each stored axis runs, fastest axis
    first, such as ``LPS``), ``stored_shape`` (same order), ``stored_dtype``, ``empty_slices`` (indices along z) and,
    where the header has them, ``manufacturer``, ``model``, ``kernel``, ``kvp``, ``slice_thickness_mm``, ``body_part``,
    ``gantry_tilt_deg``, ``obliquity_deg``, ``intensity_scale``. Nothing that identifies a person."""
    files: tuple[Path, ...] = ()
    """What it was read from."""
