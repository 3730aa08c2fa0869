"""Label maps: reading them, and whether two lie on the same grid."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray

from nnunetv2_meddino.errors import DataError
from nnunetv2_meddino.imaging.grid import Grid, simpleitk_grid
from nnunetv2_meddino.imaging.io import read_image, simpleitk_channels

SPACING_TOLERANCE = 1e-3
"""Relative difference of voxel sizes that counts as the same."""

DIRECTION_TOLERANCE = 1e-3
"""Difference of direction cosines that counts as the same."""

ORIGIN_TOLERANCE = 1e-2
"""Difference of origins, in voxels along each axis, that counts as the same."""


@dataclass(frozen=True)
class Segmentation:
    """A label map and its grid."""

    source: Path | str
    """The file, or what messages call an image in memory."""
    labels: NDArray[Any]
    """``(z, y, x)`` whole numbers in the type that is stored; a 2D image is one slice."""
    grid: Grid


def read_segmentation(path: Path) -> Segmentation:
    """Read a label map in any format that SimpleITK or nibabel reads.

    Raises:
        DataError: The file is missing, damaged or in an unknown format, holds more than one volume, or holds a value
            that is not a whole number.
    """
    image = read_image(path, "a segmentation")
    return _segmentation(path, image.channels, image.grid)


def simpleitk_segmentation(image: sitk.Image, source: str) -> Segmentation:
    """Return the label map that a SimpleITK image holds.

    Args:
        image: 2D or 3D.
        source: What messages call it.

    Raises:
        DataError: It holds more than one volume, or a value that is not a whole number.
    """
    channels, _ = simpleitk_channels(image)
    return _segmentation(source, channels, simpleitk_grid(image))


def _segmentation(source: Path | str, channels: NDArray[Any], grid: Grid) -> Segmentation:
    if (count := len(channels)) != 1:
        msg = (
            f"{source} cannot be read as a segmentation (an array of shape {channels.shape}: {count} values per "
            "voxel, as in a colour picture or a series, where one label is expected). Give one label map."
        )
        raise DataError(msg)
    check_whole_numbers(channels[0], source)
    return Segmentation(source, channels[0], grid)


def check_whole_numbers(labels: NDArray[Any], source: Path | str) -> None:
    """Check that a label map holds nothing but whole numbers.

    Args:
        labels: ``(z, y, x)`` of any type.
        source: What the message calls it.

    Raises:
        DataError: A value is not a whole number below 2^31 in size, or the type is not numeric.
    """
    if labels.dtype.kind in "biu":
        return
    if labels.dtype.kind != "f":
        raise DataError(f"{source} holds values of type {labels.dtype} where labels are expected.")
    for part in labels:  # slice by slice, so that no array as large as the volume is made
        bad = part[(part != np.rint(part)) | ~(np.abs(part) < 2**31)]
        if bad.size:
            msg = (
                f"{source} holds the value {bad[0]!s}; a segmentation holds whole numbers. Is it an image, a "
                "probability map, a segmentation that was resampled with linear interpolation, or one whose labels "
                "were stretched over all integers when it was saved (scl_slope)?"
            )
            raise DataError(msg)


def present_labels(labels: NDArray[np.integer[Any]]) -> list[int]:
    """Return the labels that a label map ``(z, y, x)`` without negative ones holds, in order."""
    present = np.zeros(int(labels.max()) + 1, bool)
    for part in labels:  # slice by slice: numpy makes eight bytes of every index
        present[part] = True
    return np.flatnonzero(present).tolist()


def check_same_grid(reference: Segmentation, prediction: Segmentation, *, aligned: bool = False) -> None:
    """Check that two segmentations lie on the same grid.

    Args:
        reference: The first, called so in the message.
        prediction: The second.
        aligned: Compare shapes only.

    Raises:
        DataError: They do not; the message gives both files and all values that differ.
    """
    a, b = reference.grid, prediction.grid
    differences = []
    if reference.labels.shape != prediction.labels.shape:
        differences.append(f"shape (z, y, x) {reference.labels.shape} and {prediction.labels.shape}")
    elif not aligned:
        first = 1 if a.in_plane or b.in_plane else 0
        spacing_a, spacing_b = np.array(a.spacing_mm), np.array(b.spacing_mm)
        if (np.abs(spacing_b - spacing_a) > SPACING_TOLERANCE * spacing_a)[first:].any():
            differences.append(f"spacing (z, y, x) {_numbers(a.spacing_mm)} and {_numbers(b.spacing_mm)} mm")
        if np.abs(b.directions - a.directions)[first:].max() > DIRECTION_TOLERANCE:
            differences.append(f"direction (z; y; x) {_matrix(a.directions)} and {_matrix(b.directions)}")
        shift = a.directions @ (np.array(b.origin_mm) - np.array(a.origin_mm)) / spacing_a
        if np.abs(shift)[first:].max() > ORIGIN_TOLERANCE:
            differences.append(f"origin {_numbers(a.origin_mm)} and {_numbers(b.origin_mm)} mm")
    if differences:
        msg = (
            f"{prediction.source} is not on the grid of its reference {reference.source}: reference and prediction "
            f"have {'; '.join(differences)}. Resample it to the reference, or correct its header."
        )
        raise DataError(msg)


def _numbers(values: tuple[float, ...] | NDArray[np.float64]) -> str:
    return "(" + ", ".join(f"{round(float(v), 6) + 0.0:.12g}" for v in values) + ")"


def _matrix(rows: NDArray[np.float64]) -> str:
    return "[" + "; ".join(_numbers(row) for row in rows) + "]"
