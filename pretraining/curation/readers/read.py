"""Files to canonical volumes: NIfTI, NRRD, MetaImage and DICOM series."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunetv2_meddino.imaging.dicom_files import Identity, group, identity, is_dicom
from nnunetv2_meddino.imaging.stack import SeriesError
from nnunetv2_meddino.imaging.text_headers import DamagedError, read_header
from pretraining.corpus.slice_statistics import histogram
from pretraining.curation import intensity_checks
from pretraining.curation.geometry import OBLIQUE_DEG, check_slices, orientation
from pretraining.curation.readers.dicom import PROJECTIONS, read_series
from pretraining.curation.readers.metaimage import read_metaimage
from pretraining.curation.readers.nifti import read_nifti
from pretraining.curation.readers.nrrd import read_nrrd
from pretraining.curation.readers.raw_image import RawImage
from pretraining.curation.volume import FLAGS, Rejected, Volume, printable
from pretraining.modality import Modality

_ENDINGS = {
    ".nii.gz": "nifti",
    ".nii": "nifti",
    ".nrrd": "nrrd",
    ".nhdr": "nrrd",
    ".mha": "metaimage",
    ".mhd": "metaimage",
}

_READERS = {"nifti": read_nifti, "nrrd": read_nrrd, "metaimage": read_metaimage}

UNKNOWN = "unknown"
"""Kind of a candidate that no reader can read."""


@dataclass(frozen=True)
class Candidate:
    """Files that should make one volume."""

    path: Path
    """The file, or the folder of a DICOM series."""
    files: tuple[Path, ...]
    """All files that belong to it; one for the file formats (those of the voxels of a detached header are not
    counted)."""
    kind: str
    """``nifti``, ``nrrd``, ``metaimage``, ``dicom`` or ``unknown``, which is rejected when it is read."""
    series_uid: str | None = None
    """SeriesInstanceUID, or what stands for it where there is none (``dicom_files.group``); it tells apart the series
    of one folder."""

    @property
    def is_folder(self) -> bool:
        """Whether ``path`` is a folder; without looking at the disk, which may fail."""
        return self.path != self.files[0]


@dataclass
class Contents:
    """What lies below a folder."""

    candidates: list[Candidate] = field(default_factory=list)
    """What may be a volume, sorted by path and series."""
    others: list[Candidate] = field(default_factory=list)
    """Every other file, a candidate of kind ``unknown`` each, sorted by path."""
    unlisted: list[Path] = field(default_factory=list)
    """Folders whose files cannot be listed."""


def contents_of(folder: Path) -> Contents:
    """Look at every file below a folder.

    DICOM files, with or without an ending, make one candidate for each series in a folder. An X-ray picture is a
    candidate by itself, and so is a file that ends in ``.dcm`` and cannot be read. Hidden files and folders and
    ``__MACOSX`` are skipped; links to folders are followed, each folder once. Label maps are not told from images.
    No file raises: pipes, broken links and files without permission are among ``others`` or rejected when read.
    """
    contents = Contents()
    for parent, names in _walk(folder, contents.unlisted):
        _add(parent, names, contents)
    contents.candidates.sort(key=lambda candidate: (candidate.path.as_posix(), candidate.series_uid or ""))
    contents.others.sort(key=lambda candidate: candidate.path.as_posix())
    return contents


def find_candidates(folder: Path) -> list[Candidate]:
    """Find everything below a folder that may be a volume, sorted by path and series; see ``contents_of``."""
    return contents_of(folder).candidates


def candidates_of(path: Path) -> list[Candidate]:
    """Return what ``find_candidates`` finds below a folder; of a file itself, or the DICOM series it belongs to."""
    if path.is_dir():
        return find_candidates(path)
    names = [path.name]
    if path.is_file() and _kind(path.name) is None:
        names = sorted(other.name for other in path.parent.iterdir())
    contents = Contents()
    _add(path.parent, names, contents)
    return [candidate for candidate in contents.candidates if path in candidate.files]


def _add(folder: Path, names: Sequence[str], contents: Contents) -> None:
    """Add the files of one folder."""
    images: list[tuple[Path, Identity]] = []
    for name in names:
        path = folder / name
        kind = _kind(name)
        if not os.path.isfile(path):  # noqa: PTH113 - a pipe, a link to nothing, ...; unlike pathlib's it never raises
            contents.others.append(Candidate(path, (path,), UNKNOWN))
        elif kind:
            contents.candidates.append(Candidate(path, (path,), kind))
        elif not is_dicom(path):
            contents.others.append(Candidate(path, (path,), UNKNOWN))
        else:
            own = identity(path)
            if own is None or own.modality in PROJECTIONS:
                contents.candidates.append(Candidate(path, (path,), "dicom", own.series or None if own else None))
            elif own.is_directory:
                contents.others.append(Candidate(path, (path,), UNKNOWN))
            else:
                images.append((path, own))
    contents.candidates += [Candidate(folder, tuple(files), "dicom", uid) for uid, files in group(images)]


def _kind(name: str) -> str | None:
    return next((kind for ending, kind in _ENDINGS.items() if name.lower().endswith(ending)), None)


def without_ending(name: str) -> str:
    """Return the name of a file without the ending of its format."""
    ending = next((ending for ending in _ENDINGS if name.lower().endswith(ending)), "")
    return name[: len(name) - len(ending)]


def input_files(candidate: Candidate) -> tuple[Path, ...]:
    """Return all files that decide what a candidate reads as: its own, and the voxels that a header keeps apart."""
    if candidate.kind not in ("nrrd", "metaimage"):
        return candidate.files
    try:
        named = read_header(candidate.path).files
    except Exception:  # noqa: BLE001 - a damaged header; reading it says what is wrong
        return candidate.files
    return tuple(dict.fromkeys((*candidate.files, *named)))


def read_volume(candidate: Candidate, modality: Modality) -> Volume:
    """Read files into a canonical volume.

    Args:
        candidate: What ``find_candidates`` found.
        modality: What a DICOM header must name; decides how values are treated.

    Raises:
        Rejected: The input does not become a volume; its message names the file.
    """
    try:
        return _volume(_stored(candidate, modality), modality, candidate.files)
    except Rejected as rejected:
        series = f" (series {candidate.series_uid})" if candidate.series_uid else ""
        raise Rejected(rejected.reason, printable(f"{candidate.path}{series}: {rejected.message}")) from rejected


def _stored(candidate: Candidate, modality: Modality) -> RawImage:
    """Read files as they are stored."""
    try:
        if candidate.kind == UNKNOWN:
            raise Rejected("unreadable", _why_unreadable(candidate.path))
        if candidate.kind == "dicom":
            return read_series(candidate.files, modality)
        return _READERS[candidate.kind](candidate.path)
    except (Rejected, MemoryError):
        raise
    except OSError as error:
        raise Rejected("unreadable", str(error)) from error
    except (DamagedError, SeriesError) as refused:
        raise Rejected(refused.reason, str(refused)) from refused
    except Exception as error:  # a damaged header raises anything in the libraries
        raise Rejected("corrupt", f"the header cannot be read ({type(error).__name__}: {error})") from error


def _why_unreadable(path: Path) -> str:
    """Return what keeps a file, or all files of a folder, from being read."""
    if path.is_symlink() and not path.exists():
        return "a broken link"
    if path.is_dir():
        return "none of the files in this folder is an image in a supported format"
    if not path.is_file():
        return "not a regular file"
    with path.open("rb"):
        return "a file in a format that is not supported"


def _volume(stored: RawImage, modality: Modality, files: tuple[Path, ...]) -> Volume:
    """Bring stored values into canonical orientation and check them."""
    metadata = stored.metadata | {
        "stored_shape": list(stored.values.shape[::-1]),
        "stored_dtype": stored.values.dtype.newbyteorder("=").name,
    }
    flags = set(stored.flags)
    arrays: list[NDArray[Any]] = [stored.values, stored.slope, stored.intercept]
    spacing = stored.spacing_mm
    if stored.axes_mm is not None:
        place = orientation(stored.axes_mm, stored.unit)
        arrays = [place.apply(array) for array in arrays]
        spacing = place.spacing_mm
        metadata |= {"stored_orientation": place.stored, "obliquity_deg": round(place.obliquity_deg, 2)}
        flags |= {"reoriented"} if place.changes else set()
        flags |= {"units_converted"} if stored.unit != "mm" else set()
        flags |= {"oblique"} if place.obliquity_deg > OBLIQUE_DEG else set()
        if modality != Modality.XR:
            check_slices(arrays[0].shape, spacing)
    voxels, changes, scale = intensity_checks.convert(arrays[0], arrays[1], arrays[2], modality)
    flags |= changes
    if scale != 1.0:
        metadata["intensity_scale"] = scale
    counts = histogram(voxels)
    if modality == Modality.CT:
        intensity_checks.check_grey_levels(counts, stored.values.dtype)
        intensity_checks.check_hounsfield(counts)
        flags |= {"windowed"} if intensity_checks.is_windowed(counts) else set()
        flags |= {"padding_replaced"} if intensity_checks.replace_padding(voxels, counts, stored.padding) else set()
    elif np.count_nonzero(counts) == 1:
        raise Rejected("empty", "every voxel has the same value")
    metadata["empty_slices"] = intensity_checks.empty_slices(voxels, modality)
    if len(metadata["empty_slices"]) == len(voxels):
        raise Rejected("empty", "no slice shows anything")
    flags |= {"empty_slices"} if metadata["empty_slices"] else set()
    return Volume(voxels, spacing, modality, tuple(flag for flag in FLAGS if flag in flags), metadata, files)


def _walk(folder: Path, unlisted: list[Path]) -> Iterator[tuple[Path, list[str]]]:
    """Yield folders and the sorted names of their files; add the folders that cannot be listed to ``unlisted``."""
    seen: set[str] = set()
    for parent, folders, names in os.walk(
        folder, followlinks=True, onerror=lambda error: unlisted.append(Path(error.filename))
    ):
        here = os.path.realpath(parent)
        if here in seen:  # a link back, or a second way to the same files
            folders.clear()
            continue
        seen.add(here)
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        yield Path(parent), sorted(name for name in names if not name.startswith("."))
