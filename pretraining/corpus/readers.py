"""Files to canonical volumes: NIfTI, NRRD, MetaImage and DICOM series."""

from __future__ import annotations

import os
from collections.abc import Iterator
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
    found: list[Candidate] = []
    for parent, names in _walk(folder):
        series: dict[str, list[Path]] = {}
        for name in names:
            path = parent / name
            if not path.is_file():
                continue
            kind = next((kind for ending, kind in _ENDINGS.items() if name.lower().endswith(ending)), None)
            if kind:
                found.append(Candidate(path, (path,), kind))
            elif dicom.is_dicom(path):
                uid, modality = dicom.series_of(path)
                if uid is None or modality in dicom.PROJECTIONS:
                    found.append(Candidate(path, (path,), "dicom", uid))
                elif uid:
                    series.setdefault(uid, []).append(path)
        found += [Candidate(parent, tuple(files), "dicom", uid) for uid, files in sorted(series.items())]
    return sorted(found, key=lambda candidate: (candidate.path.as_posix(), candidate.series_uid or ""))


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
