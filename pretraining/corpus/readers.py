"""Files to canonical volumes: NIfTI, NRRD, MetaImage and DICOM series."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pretraining.corpus import dicom, gates
from pretraining.corpus.geometry import OBLIQUE_DEG, check_slices, orientation
from pretraining.corpus.metaimage import read_metaimage
from pretraining.corpus.nifti import read_nifti
from pretraining.corpus.nrrd import read_nrrd
from pretraining.corpus.stored import Stored
from pretraining.corpus.volume import FLAGS, IntensityRule, Refused, Volume

_ENDINGS = {
    ".nii.gz": "nifti",
    ".nii": "nifti",
    ".nrrd": "nrrd",
    ".nhdr": "nrrd",
    ".mha": "metaimage",
    ".mhd": "metaimage",
}

_DETACHED = {
    "nrrd": re.compile(rb"^data ?file:[ \t]*(.+?)\s*$", re.IGNORECASE | re.MULTILINE),
    "metaimage": re.compile(rb"^ElementDataFile[ \t]*=[ \t]*(.+?)\s*$", re.IGNORECASE | re.MULTILINE),
}
"""Kind -> the line of a header that names the file with its voxels."""

_MAX_HEADER_BYTES = 1 << 16

_READERS = {"nifti": read_nifti, "nrrd": read_nrrd, "metaimage": read_metaimage}


@dataclass(frozen=True)
class Candidate:
    """Files that should make one volume.

    Attributes:
        path: The file, or the folder of a DICOM series.
        files: All files that belong to it; one for the file formats (that of the voxels of a detached header is not
            counted).
        kind: ``nifti``, ``nrrd``, ``metaimage`` or ``dicom``.
        series_uid: SeriesInstanceUID, which tells apart the series of one folder.
    """

    path: Path
    files: tuple[Path, ...]
    kind: str
    series_uid: str | None = None


def find_candidates(folder: Path) -> list[Candidate]:
    """Find everything below a folder that may be a volume, sorted by path and series.

    DICOM files, with or without an ending, make one candidate for each series in a folder. An X-ray picture is a
    candidate of its own, and so is a file that ends in ``.dcm`` and cannot be read. Hidden files and folders and
    ``__MACOSX`` do not count; links to folders are followed, each folder once. Label maps are not told from images.
    """
    found = [candidate for parent, names in _walk(folder) for candidate in _candidates_in(parent, names)]
    return sorted(found, key=lambda candidate: (candidate.path.as_posix(), candidate.series_uid or ""))


def candidates_of(path: Path) -> list[Candidate]:
    """Return what ``find_candidates`` finds below a folder; of a file itself, or the DICOM series it belongs to."""
    if path.is_dir():
        return find_candidates(path)
    names = [path.name]
    if path.is_file() and _kind(path.name) is None:
        names = sorted(other.name for other in path.parent.iterdir())
    return [candidate for candidate in _candidates_in(path.parent, names) if path in candidate.files]


def _candidates_in(folder: Path, names: Sequence[str]) -> list[Candidate]:
    """Return what may be a volume among the files of one folder."""
    found: list[Candidate] = []
    series: dict[str, list[Path]] = {}
    for name in names:
        path = folder / name
        if not path.is_file():
            continue
        kind = _kind(name)
        if kind:
            found.append(Candidate(path, (path,), kind))
        elif dicom.is_dicom(path):
            uid, modality = dicom.series_of(path)
            if uid is None or modality in dicom.PROJECTIONS:
                found.append(Candidate(path, (path,), "dicom", uid))
            elif uid:
                series.setdefault(uid, []).append(path)
    return found + [Candidate(folder, tuple(files), "dicom", uid) for uid, files in sorted(series.items())]


def _kind(name: str) -> str | None:
    return next((kind for ending, kind in _ENDINGS.items() if name.lower().endswith(ending)), None)


def input_files(candidate: Candidate) -> tuple[Path, ...]:
    """Return all files that decide what a candidate reads as: its own, and the voxels that a header keeps apart."""
    if candidate.kind not in _DETACHED:
        return candidate.files
    try:
        with candidate.path.open("rb") as file:
            named = _DETACHED[candidate.kind].search(file.read(_MAX_HEADER_BYTES))
    except OSError:
        return candidate.files
    voxels = None if named is None else candidate.path.parent / os.fsdecode(named[1])
    return candidate.files if voxels is None or not voxels.is_file() else (*candidate.files, voxels)


def read_volume(candidate: Candidate, rule: IntensityRule) -> Volume:
    """Read files into a canonical volume.

    Args:
        candidate: What ``find_candidates`` found.
        rule: How values are treated, and which modality a DICOM header must name.

    Raises:
        Refused: The input does not become a volume; its message names the file.
    """
    rule = IntensityRule(rule)
    try:
        return _volume(_stored(candidate, rule), rule, candidate.files)
    except Refused as refused:
        series = f" (series {candidate.series_uid})" if candidate.series_uid else ""
        raise Refused(refused.reason, f"{candidate.path}{series}: {refused.message}") from refused


def _stored(candidate: Candidate, rule: IntensityRule) -> Stored:
    """Read files as they are stored."""
    try:
        if candidate.kind == "dicom":
            return dicom.read_series(candidate.files, rule)
        return _READERS[candidate.kind](candidate.path)
    except (Refused, MemoryError):
        raise
    except OSError as error:
        raise Refused("unreadable", str(error)) from error
    except Exception as error:  # a damaged header raises anything in the libraries
        raise Refused("corrupt", f"the header cannot be read ({type(error).__name__}: {error})") from error


def _volume(stored: Stored, rule: IntensityRule, files: tuple[Path, ...]) -> Volume:
    """Bring stored values into canonical orientation and pass them through the gates."""
    metadata = stored.metadata | {
        "stored_shape": list(stored.values.shape[::-1]),
        "stored_dtype": stored.values.dtype.newbyteorder("=").name,
    }
    flags = set(stored.flags)
    arrays: list[NDArray[Any]] = [stored.values, stored.slope, stored.intercept]
    spacing = stored.spacing_mm
    if stored.axes_mm is not None:
        place = orientation(stored.axes_mm)
        arrays = [place.apply(array) for array in arrays]
        spacing = place.spacing_mm
        metadata |= {"stored_orientation": place.stored, "obliquity_deg": round(place.obliquity_deg, 2)}
        flags |= {"reoriented"} if place.changes else set()
        flags |= {"oblique"} if place.obliquity_deg > OBLIQUE_DEG else set()
        if rule is not IntensityRule.XR:
            check_slices(arrays[0].shape, spacing)
    voxels, changes, scale = gates.convert(arrays[0], arrays[1], arrays[2], rule)
    flags |= changes
    if scale != 1.0:
        metadata["intensity_scale"] = scale
    counts = gates.histogram(voxels)
    if rule is IntensityRule.CT:
        gates.check_grey_levels(counts, stored.values.dtype)
        gates.check_hounsfield(counts)
        flags |= {"windowed"} if gates.is_windowed(counts) else set()
        flags |= {"padding_replaced"} if gates.replace_padding(voxels, counts, stored.padding) else set()
    elif np.count_nonzero(counts) == 1:
        raise Refused("empty", "every voxel has the same value")
    metadata["empty_slices"] = gates.empty_slices(voxels, rule)
    if len(metadata["empty_slices"]) == len(voxels):
        raise Refused("empty", "no slice shows anything")
    flags |= {"empty_slices"} if metadata["empty_slices"] else set()
    return Volume(voxels, spacing, rule.modality, tuple(flag for flag in FLAGS if flag in flags), metadata, files)


def _walk(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield folders and the sorted names of their files."""
    seen: set[str] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        here = os.path.realpath(parent)
        if here in seen:  # a link back, or a second way to the same files
            folders.clear()
            continue
        seen.add(here)
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        yield Path(parent), sorted(name for name in names if not name.startswith("."))
