"""Segmentations in files: labels and their grid, whether two lie on the same grid, and which files make a case.

Axes are ``(z, y, x)`` in everything that leaves this module. A 2D image is a volume of one slice.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK as sitk  # noqa: N813
from isal import igzip
from numpy.typing import NDArray

from nnunetv2_meddino.errors import DataError

ENDINGS = (
    *(".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".gipl.gz", ".gipl", ".hdr", ".mgz", ".mgh"),
    *(".png", ".bmp", ".tif", ".tiff"),
)
"""File name endings that count as segmentations in a folder; a file given by name may have any."""

PIXEL_ENDINGS = (".png", ".bmp", ".tif", ".tiff")
"""Formats whose resolution, where they have one, is that of a printer: a voxel counts as 1 mm, as in nnU-Net."""

SPACING_TOLERANCE = 1e-3
"""Relative difference of voxel sizes that counts as the same."""

DIRECTION_TOLERANCE = 1e-3
"""Difference of direction cosines that counts as the same."""

ORIGIN_TOLERANCE = 1e-2
"""Difference of origins, in voxels along each axis, that counts as the same."""

_GIPL_HEADER_BYTES = 256


@dataclass(frozen=True)
class Grid:
    """Where the voxels of a volume lie.

    Attributes:
        spacing_mm: Voxel size along ``(z, y, x)``.
        origin_mm: Centre of the first voxel, in patient coordinates (left, posterior, superior).
        directions: ``(3, 3)``; row ``i`` is the unit vector of array axis ``i`` in patient coordinates.
        in_plane: The file has two dimensions: nothing is known along z.
    """

    spacing_mm: tuple[float, float, float]
    origin_mm: tuple[float, float, float]
    directions: NDArray[np.float64]
    in_plane: bool = False


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
        aligned: The arrays are known to lie on one another: origin and direction in the headers need not agree.
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

    NIfTI files are decompressed and checked to the last byte, because SimpleITK fills what a truncated file lacks with
    zeros. Their geometry is what SimpleITK makes of the header, as in nnU-Net, or the affine where it refuses to.

    Raises:
        DataError: The file is missing, damaged or in an unknown format, is no single volume, or holds a value that is
            no whole number.
    """
    if not path.is_file():
        msg = f"{path} does not exist or is not a file."
        raise DataError(msg)
    name = path.name.lower()
    try:
        if name.endswith((".nii.gz", ".nii")):
            labels, grid = _read_nifti(path)
        elif name.endswith((".hdr", ".img", ".mgz", ".mgh", ".mnc")):
            labels, grid = _nibabel_volume(path, nibabel.load(path))
        else:
            labels, grid = _read_simpleitk(path)
    except MemoryError:
        raise
    except Exception as error:  # damaged headers raise anything in nibabel, KeyError and OverflowError among them
        reason = str(error).strip().splitlines()[-1].strip() if str(error).strip() else type(error).__name__
        msg = f"{path} cannot be read as a segmentation ({reason}). It may be damaged or incomplete: write it again."
        raise DataError(msg) from error
    _check_whole_numbers(labels, path)
    return Segmentation(path, labels, grid)


def check_same_grid(reference: Segmentation, prediction: Segmentation, *, aligned: bool = False) -> None:
    """Raise ``DataError``, with both files and all values, where two segmentations do not lie on the same grid.

    ``aligned`` leaves out origin and direction.
    """
    a, b = reference.grid, prediction.grid
    differences = []
    if reference.labels.shape != prediction.labels.shape:
        differences.append(f"shape (z, y, x) {reference.labels.shape} and {prediction.labels.shape}")
    else:
        first = 1 if a.in_plane or b.in_plane else 0
        spacing_a, spacing_b = np.array(a.spacing_mm), np.array(b.spacing_mm)
        if (np.abs(spacing_b - spacing_a) > SPACING_TOLERANCE * spacing_a)[first:].any():
            differences.append(f"spacing (z, y, x) {_numbers(a.spacing_mm)} and {_numbers(b.spacing_mm)} mm")
        if not aligned and np.abs(b.directions - a.directions)[first:].max() > DIRECTION_TOLERANCE:
            differences.append(f"direction (z; y; x) {_matrix(a.directions)} and {_matrix(b.directions)}")
        shift = a.directions @ (np.array(b.origin_mm) - np.array(a.origin_mm)) / spacing_a
        if not aligned and np.abs(shift)[first:].max() > ORIGIN_TOLERANCE:
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


def pair_files(
    reference: Path, prediction: Path, *, endings: Sequence[str] = ENDINGS, only_predicted: bool = False
) -> Pairing:
    """Find the cases of two folders by the names of their files without endings, or make one case of two files.

    Args:
        reference: File or folder; subfolders are not looked into.
        prediction: The same kind.
        endings: Endings of file names that count.
        only_predicted: References without a prediction are no failures.

    Raises:
        DataError: A path does not exist, one is a file and the other a folder, or a folder holds no segmentation.
    """
    for path in (reference, prediction):
        if not path.exists():
            msg = f"{path} does not exist."
            raise DataError(msg)
    if reference.is_dir() != prediction.is_dir():
        folder, file = (reference, prediction) if reference.is_dir() else (prediction, reference)
        msg = f"{folder} is a folder and {file} is a file; give two folders or two files."
        raise DataError(msg)
    if not reference.is_dir():
        return Pairing([Pair(case_name(reference), reference, prediction)])
    references, predictions = _cases(reference, endings), _cases(prediction, endings)
    pairing = Pairing([])
    for case in sorted(references if not only_predicted else references.keys() & predictions.keys()):
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


def _cases(folder: Path, endings: Sequence[str]) -> dict[str, list[Path]]:
    cases: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.name.lower().endswith(tuple(endings)) and not path.name.startswith("."):
            cases.setdefault(case_name(path), []).append(path)
    if not cases:
        msg = f"{folder} holds no segmentation (a file that ends in one of {', '.join(endings)})."
        raise DataError(msg)
    return cases


def _read_nifti(path: Path) -> tuple[NDArray[Any], Grid]:
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        content = igzip.decompress(content)  # verifies length and checksum
    for image_class in (nibabel.Nifti1Image, nibabel.Nifti2Image):
        if image_class.header_class.may_contain_header(content[:1024]):
            image = image_class.from_stream(io.BytesIO(content))
            return _with_grid(path, image, _nifti_values(content, image))
    msg = "no NIfTI header"
    raise ValueError(msg)


def _nifti_values(content: bytes, image: Any) -> NDArray[Any]:
    """Return the values of a decompressed file, without copying them where they are stored as they are meant."""
    slope, intercept = image.header.get_slope_inter()
    if slope not in (None, 1.0) or intercept not in (None, 0.0):
        return np.asanyarray(image.dataobj)
    count, dtype = math.prod(image.shape), image.header.get_data_dtype()
    return np.frombuffer(content, dtype, count, offset=int(image.dataobj.offset)).reshape(image.shape, order="F")


def _nibabel_volume(path: Path, image: Any) -> tuple[NDArray[Any], Grid]:
    return _with_grid(path, image, np.asanyarray(image.dataobj))


def _with_grid(path: Path, image: Any, values: NDArray[Any]) -> tuple[NDArray[Any], Grid]:
    """Return values in nibabel's order of axes as a volume, and its geometry."""
    volume = _as_volume(values.T)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        return volume, _simpleitk_grid(reader)
    except RuntimeError:  # not a format of SimpleITK, or axes that are not perpendicular
        to_lps = np.diag([-1.0, -1.0, 1.0])
        axes = to_lps @ image.affine[:3, :3]
        spacing = np.linalg.norm(axes, axis=0)
        return volume, _grid(spacing, to_lps @ image.affine[:3, 3], axes / spacing)


def _read_simpleitk(path: Path) -> tuple[NDArray[Any], Grid]:
    image = sitk.ReadImage(str(path))
    if (components := image.GetNumberOfComponentsPerPixel()) != 1:
        msg = f"{components} values per voxel, as in a colour picture, where one label is expected"
        raise ValueError(msg)
    values = sitk.GetArrayFromImage(image)
    if path.name.lower().endswith((".gipl", ".gipl.gz")):
        _check_gipl_length(path, values.nbytes)
    volume = _as_volume(values)
    if path.name.lower().endswith(PIXEL_ENDINGS):
        return volume, Grid(_pixel_spacing(path), (0.0, 0.0, 0.0), np.eye(3), in_plane=values.ndim == 2)
    return volume, _simpleitk_grid(image)


def _check_gipl_length(path: Path, data_bytes: int) -> None:
    """Raise where the file ends before its voxels do; SimpleITK fills in zeros."""
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        content = igzip.decompress(content)
    if len(content) < _GIPL_HEADER_BYTES + data_bytes:
        msg = f"{len(content)} bytes where {_GIPL_HEADER_BYTES + data_bytes} are declared"
        raise ValueError(msg)


def _pixel_spacing(path: Path) -> tuple[float, float, float]:
    """Return the spacing that nnU-Net keeps in a JSON file beside a TIFF, else 1 mm."""
    beside = path.with_suffix(".json")
    if not path.name.lower().endswith((".tif", ".tiff")) or not beside.is_file():
        return 1.0, 1.0, 1.0
    spacing = json.loads(beside.read_text()).get("spacing", [])
    if len(spacing) != 3 or not all(isinstance(s, (int, float)) and s > 0 for s in spacing):
        msg = f"{beside.name} beside it must give a spacing of three positive numbers, not {spacing}"
        raise ValueError(msg)
    z, y, x = (float(s) for s in spacing)
    return z, y, x


def _as_volume(values: NDArray[Any]) -> NDArray[Any]:
    """Return a ``(z, y, x)`` view of an array whose further axes, in front, have one element."""
    while values.ndim > 3 and values.shape[0] == 1:
        values = values[0]
    if values.ndim == 2:
        values = values[np.newaxis]
    if values.ndim != 3 or 0 in values.shape:
        msg = f"an array of shape {values.shape} where a volume or a slice is expected"
        raise ValueError(msg)
    return values


def _simpleitk_grid(image: Any) -> Grid:
    """Return the grid of a SimpleITK image, or of a reader that knows the header; their order is ``(x, y, z)``."""
    dimensions = image.GetDimension()
    kept = min(dimensions, 3)
    spacing, origin, directions = np.ones(3), np.zeros(3), np.eye(3)
    spacing[:kept] = image.GetSpacing()[:kept]
    origin[:kept] = image.GetOrigin()[:kept]
    directions[:kept, :kept] = np.reshape(image.GetDirection(), (dimensions, dimensions))[:kept, :kept]
    return _grid(spacing, origin, directions, in_plane=dimensions == 2)


def _grid(
    spacing: NDArray[np.float64], origin: NDArray[np.float64], columns: NDArray[np.float64], *, in_plane: bool = False
) -> Grid:
    """Build a grid from values in ``(x, y, z)`` order; ``columns`` are the unit vectors of x, y and z."""
    x, y, z = (float(s) for s in spacing)
    return Grid((z, y, x), (float(origin[0]), float(origin[1]), float(origin[2])), columns.T[::-1].copy(), in_plane)


def _check_whole_numbers(labels: NDArray[Any], path: Path) -> None:
    if labels.dtype.kind in "biu":
        return
    if labels.dtype.kind != "f":
        msg = f"{path} holds values of type {labels.dtype} where labels are expected."
        raise DataError(msg)
    for part in labels:  # slice by slice, for the sake of memory
        bad = part[(part != np.rint(part)) | ~(np.abs(part) < 2**31)]
        if bad.size:
            msg = (
                f"{path} holds the value {bad[0]:g}; a segmentation holds whole numbers. Is it an image, a probability "
                "map, or a segmentation that was resampled with linear interpolation?"
            )
            raise DataError(msg)


def _numbers(values: tuple[float, ...] | NDArray[np.float64]) -> str:
    return "(" + ", ".join(f"{round(float(v), 6) + 0.0:.12g}" for v in values) + ")"


def _matrix(rows: NDArray[np.float64]) -> str:
    return "[" + "; ".join(_numbers(row) for row in rows) + "]"
