"""Segmentations in files: labels and their grid, whether two lie on the same grid, and which files make a case.

Axes are ``(z, y, x)`` in everything that leaves this module. A 2D image is a volume of one slice.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunetv2_meddino.errors import DataError
from nnunetv2_meddino.imaging.grid import Grid
from nnunetv2_meddino.imaging.io import read_image

ENDINGS = (
    *(".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".gipl.gz", ".gipl", ".hdr", ".mgz", ".mgh"),
    *(".png", ".bmp", ".tif", ".tiff"),
)
"""File name endings that count as segmentations in a folder; a file given by name may have any."""

SPACING_TOLERANCE = 1e-3
"""Relative difference of voxel sizes that counts as the same."""

DIRECTION_TOLERANCE = 1e-3
"""Difference of direction cosines that counts as the same."""

ORIGIN_TOLERANCE = 1e-2
"""Difference of origins, in voxels along each axis, that counts as the same."""


@dataclass(frozen=True)
class Segmentation:
    """A label map and its grid.

    Attributes:
        path: The file.
        labels: ``(z, y, x)`` whole numbers, in the type that the file stores.
        grid: Geometry of the voxels.
    """

    path: Path
    labels: NDArray[Any]
    grid: Grid


@dataclass(frozen=True)
class Pair:
    """The two files of a case.

    Attributes:
        case: Its name.
        reference: What is right.
        prediction: What is evaluated.
        aligned: The arrays are known to lie on one another, whatever the reference's header says: only their shapes
            are compared, and the voxel size is the prediction's.
    """

    case: str
    reference: Path
    prediction: Path
    aligned: bool = False


@dataclass(frozen=True)
class Failure:
    """A case that could not be evaluated, and why."""

    case: str
    message: str


@dataclass(frozen=True)
class Pairing:
    """Files that belong together, references without a prediction, and remarks."""

    pairs: list[Pair]
    failures: list[Failure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_segmentation(path: Path) -> Segmentation:
    """Read a label map in any format that SimpleITK or nibabel knows.

    Raises:
        DataError: The file is missing, damaged or in an unknown format, is no single volume, or holds a value that is
            no whole number.
    """
    image = read_image(path, "a segmentation")
    if (count := len(image.channels)) != 1:
        msg = (
            f"{path} cannot be read as a segmentation (an array of shape {image.channels.shape}: {count} values per "
            "voxel, as in a colour picture or a series, where one label is expected). Give one label map."
        )
        raise DataError(msg)
    labels = image.channels[0]
    _check_whole_numbers(labels, path)
    return Segmentation(path, labels, image.grid)


def check_same_grid(reference: Segmentation, prediction: Segmentation, *, aligned: bool = False) -> None:
    """Raise ``DataError``, with both files and all values, where two segmentations do not lie on the same grid.

    ``aligned`` compares the shapes alone.
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
            f"{prediction.path} is not on the grid of its reference {reference.path}: reference and prediction have "
            f"{'; '.join(differences)}. Resample it to the reference, or correct its header."
        )
        raise DataError(msg)


def case_name(path: Path) -> str:
    """Return the file's name without its ending, which may consist of two parts (``.nii.gz``)."""
    for ending in ENDINGS:
        if path.name.lower().endswith(ending):
            return path.name[: -len(ending)]
    return path.stem


def pair_files(reference: Path, prediction: Path) -> Pairing:
    """Find the cases of two folders by the names of their files without endings, or make one case of two files.

    Args:
        reference: File or folder; subfolders are not looked into.
        prediction: The same kind.

    Raises:
        DataError: A path does not exist, one is a file and the other a folder, or a folder holds no segmentation.
    """
    for path in (reference, prediction):
        if not path.exists():
            raise DataError(f"{path} does not exist.")
    if reference.is_dir() != prediction.is_dir():
        folder, file = (reference, prediction) if reference.is_dir() else (prediction, reference)
        raise DataError(f"{folder} is a folder and {file} is a file; give two folders or two files.")
    if not reference.is_dir():
        return Pairing([Pair(case_name(reference), reference, prediction)])
    references, predictions = _cases(reference), _cases(prediction)
    pairing = Pairing([])
    for case in sorted(references):
        files = [*references[case], *predictions.get(case, [])]
        if case not in predictions:
            pairing.failures.append(Failure(case, f"{files[0]} has no prediction in {prediction}."))
        elif len(files) > 2:
            names = ", ".join(map(str, files))
            pairing.failures.append(Failure(case, f"Several files have the name of one case: {names}. Keep one each."))
        else:
            pairing.pairs.append(Pair(case, files[0], files[1]))
    for case in sorted(predictions.keys() - references.keys()):
        pairing.notes.append(f"{predictions[case][0]} has no reference in {reference} and was not evaluated.")
    return pairing


def _cases(folder: Path) -> dict[str, list[Path]]:
    cases: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.name.lower().endswith(ENDINGS) and not path.name.startswith("."):
            cases.setdefault(case_name(path), []).append(path)
    if not cases:
        raise DataError(f"{folder} holds no segmentation (a file that ends in one of {', '.join(ENDINGS)}).")
    return cases


def _check_whole_numbers(labels: NDArray[Any], path: Path) -> None:
    if labels.dtype.kind in "biu":
        return
    if labels.dtype.kind != "f":
        raise DataError(f"{path} holds values of type {labels.dtype} where labels are expected.")
    for part in labels:  # slice by slice, for the sake of memory
        bad = part[(part != np.rint(part)) | ~(np.abs(part) < 2**31)]
        if bad.size:
            msg = (
                f"{path} holds the value {bad[0]!s}; a segmentation holds whole numbers. Is it an image, a probability "
                "map, or a segmentation that was resampled with linear interpolation, or whose labels were stretched "
                "over all integers when they were saved (scl_slope)?"
            )
            raise DataError(msg)


def _numbers(values: tuple[float, ...] | NDArray[np.float64]) -> str:
    return "(" + ", ".join(f"{round(float(v), 6) + 0.0:.12g}" for v in values) + ")"


def _matrix(rows: NDArray[np.float64]) -> str:
    return "[" + "; ".join(_numbers(row) for row in rows) + "]"
