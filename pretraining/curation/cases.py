"""Which volumes of a collection a folder holds, their case ids, and what else lies there."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunetv2_meddino.errors import DataError
from pretraining.curation.collections import Collection
from pretraining.curation.readers.read import UNKNOWN, Candidate, contents_of, input_files, without_ending
from pretraining.curation.volume import printable


@dataclass(frozen=True)
class Findings:
    """What a folder holds; every file in it is part of one of these."""

    cases: list[tuple[str, Candidate]]
    """Unique case id and files of every volume, sorted by id."""
    unmatched: list[Candidate]
    """Readable images that no pattern matches, such as label maps."""
    others: list[Path]
    """Files of other formats; those with the voxels of a detached header are not among them."""
    unlisted: list[Path]
    """Folders whose files cannot be listed."""


def survey(collection: Collection, folder: Path) -> Findings:
    """Find the cases of a collection below a folder.

    Where several series or files would have the same case id (the series of a patient), eight digits are appended to
    it. What a pattern matches and no reader can read is a case too, to be rejected: a file of another format, a broken
    link, or a folder without a readable file.

    Raises:
        DataError: The folder does not exist.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder. Give the folder into which {collection.name} was unpacked.")
    contents = contents_of(folder)
    found: list[tuple[str, Candidate]] = []
    unmatched = []
    for candidate in contents.candidates:
        case = _case_of(collection, folder, candidate)
        if case is None:
            unmatched.append(candidate)
        else:
            found.append((case, candidate))
    voxels = {file for candidate in contents.candidates for file in input_files(candidate)}
    others = [other for other in contents.others if other.path not in voxels]
    if collection.images:
        found += _unreadable_cases(collection, folder, others, found)
    used = {file for _, candidate in found for file in candidate.files}
    return Findings(
        cases=sorted(_with_own_ids(found, folder), key=lambda pair: pair[0]),
        unmatched=unmatched,
        others=[other.path for other in others if other.path not in used],
        unlisted=contents.unlisted,
    )


def relative_name(path: Path, folder: Path) -> str:
    """Return a path relative to a folder as text that can be stored; empty for the folder itself."""
    relative = path.relative_to(folder).as_posix()
    return "" if relative == "." else printable(relative)


def _case_of(collection: Collection, folder: Path, candidate: Candidate) -> str | None:
    relative = relative_name(candidate.path, folder)
    if not collection.images:
        return collection.case_of(relative if candidate.is_folder else without_ending(relative))
    case = collection.case_of(relative)
    if case is None and candidate.series_uid:  # a series is named by its folder, with or without a slash at the end
        case = collection.case_of(f"{relative}/")
    return case


def _unreadable_cases(
    collection: Collection, folder: Path, others: Sequence[Candidate], found: Sequence[tuple[str, Candidate]]
) -> list[tuple[str, Candidate]]:
    """Return what patterns match among the files that no reader can read.

    Where a pattern matches their folder, they are one case, unless something in the folder can be read: a list of
    files beside the images of a patient is not an image.
    """
    matched: list[tuple[str, Candidate]] = []
    folders: dict[tuple[str, Path], list[Path]] = {}
    for other in others:
        parent = relative_name(other.path.parent, folder)
        own = collection.case_of(relative_name(other.path, folder))
        whole = collection.case_of(parent) or collection.case_of(f"{parent}/")
        if whole is not None and own in (None, whole):
            folders.setdefault((whole, other.path.parent), []).append(other.path)
        elif own is not None:
            matched.append((own, other))
    readable = {case for case, _ in found}
    unread = {place: files for place, files in folders.items() if place[0] not in readable}
    return matched + [(case, Candidate(path, tuple(files), UNKNOWN)) for (case, path), files in unread.items()]


def _with_own_ids(found: Sequence[tuple[str, Candidate]], folder: Path) -> list[tuple[str, Candidate]]:
    """Return cases with unique ids: where several have the same, eight digits are appended to it.

    They follow from the UID of a series, so that they stay the same when it is moved; for files, and where two series
    have the same UID, from the path. An X-ray picture's name counts, as its series may hold several.
    """
    names = [case for case, _ in found]
    for with_path in (False, True):
        counts = Counter(names)
        names = [
            name if counts[name] == 1 else f"{case}-{_digits(candidate, folder, with_path)}"
            for name, (case, candidate) in zip(names, found, strict=True)
        ]
    return [(name, candidate) for name, (_, candidate) in zip(names, found, strict=True)]


def _digits(candidate: Candidate, folder: Path, with_path: bool) -> str:
    name = "" if candidate.is_folder else candidate.path.name
    text = f"{candidate.series_uid}/{name}"
    if with_path or not candidate.series_uid:
        text = f"{candidate.series_uid or ''}/{relative_name(candidate.path, folder)}"
    return hashlib.sha256(printable(text).encode()).hexdigest()[:8]
