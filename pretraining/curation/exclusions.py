"""Leak control: cases used for evaluation stay out of a corpus, by id and by content."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2_meddino.datasets.names import check_names
from nnunetv2_meddino.errors import ConfigurationError, DataError
from pretraining.corpus.case_ids import listed_ids
from pretraining.curation.deduplicate import ContentIndex, Match
from pretraining.curation.process_volume import VolumeRecord
from pretraining.curation.readers.read import Candidate, contents_of

BY_ID, BY_CONTENT = "id", "content"


@dataclass(frozen=True)
class ExclusionList:
    """Cases that must not be in a corpus."""

    file: str
    """Name of the file that lists them."""
    sha256: str
    """Hash of its content."""
    fold: int | None
    """The fold of nnU-Net's ``splits_final.json`` whose validation cases they are; None for a plain list."""
    cases: tuple[str, ...]
    """Their ids; ``source/case`` means one source only."""
    images: Path | None = None
    """Folder with their images, or None."""


def read_exclusions(file: Path, fold: int | None, images: Path | None) -> ExclusionList:
    """Read a list of cases to exclude.

    Args:
        file: nnU-Net's ``splits_final.json``, or a text file with one case id a line (``#`` begins a comment).
        fold: The fold whose validation cases are meant; for a splits file only.
        images: Folder with the images of the cases, such as ``imagesTr`` with ``case_0000.nii.gz``.

    Raises:
        ConfigurationError: The fold is missing, superfluous or not in the file.
        DataError: The file or the folder cannot be read or is empty, or a name in the folder may mean two images.
    """
    try:
        content = file.read_bytes()
        text = content.decode("utf-8-sig")  # without the mark that editors on Windows begin files with
    except (OSError, ValueError) as error:
        raise DataError(f"The exclusion list {file} cannot be read: {error}.") from error
    if images is not None and not images.is_dir():
        raise DataError(f"The folder {images} with the images of {file} does not exist.")
    if images is not None:
        check_names(images)
    cases = _validation_cases(file, text, fold) if file.suffix.lower() == ".json" else _listed_cases(file, text, fold)
    if not cases:
        raise DataError(f"{file} lists no case to exclude.")
    return ExclusionList(file.name, hashlib.sha256(content).hexdigest(), fold, tuple(sorted(set(cases))), images)


def _validation_cases(file: Path, text: str, fold: int | None) -> list[str]:
    try:
        folds = json.loads(text)
        validation = [[str(case) for case in entry["val"]] for entry in folds]
    except (ValueError, TypeError, KeyError) as error:
        msg = f"{file} is not a splits file of nnU-Net, a JSON list of {{'train': [...], 'val': [...]}}."
        raise DataError(msg) from error
    if fold is None:
        msg = (
            f"{file} holds {len(validation)} folds; name with --fold the one whose validation cases are to be excluded."
        )
        raise ConfigurationError(msg)
    if not 0 <= fold < len(validation):
        raise ConfigurationError(f"{file} has the folds 0 to {len(validation) - 1} and no fold {fold}.")
    return validation[fold]


def _listed_cases(file: Path, text: str, fold: int | None) -> list[str]:
    if fold is not None:
        msg = f"--fold goes with nnU-Net's splits_final.json; {file} is taken as a list of case ids."
        raise ConfigurationError(msg)
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return [line for line in lines if line]


def find_images(listed: ExclusionList) -> dict[str, list[Candidate]]:
    """Return the images of the listed cases that are in the folder, by case.

    ``case_0000.nii.gz`` (nnU-Net's name of a first channel), ``case.nii.gz`` and a DICOM folder ``case`` are found.
    So are files that no reader can read: a case with nothing else has an image that could not be read.
    """
    found: dict[str, list[Candidate]] = {case: [] for case in listed.cases}
    if listed.images is None:
        return found
    ids = {case.rpartition("/")[2]: case for case in listed.cases}
    contents = contents_of(listed.images)
    for candidate in (*contents.candidates, *contents.others):
        relative = candidate.path.relative_to(listed.images)
        stem = relative.parts[0] if len(relative.parts) > 1 else _stem(relative.name)
        case = ids.get(stem) or ids.get(re.sub(r"_\d{4}$", "", stem))
        if case is not None:
            found[case].append(candidate)
    return found


def _stem(name: str) -> str:
    return re.sub(r"(\.nii\.gz|\.[A-Za-z0-9]+)$", "", name)


@dataclass(frozen=True)
class ExcludedImage:
    """An image of a listed case."""

    case: str
    """The id in the list."""
    records: tuple[VolumeRecord, ...]
    """Its record as every modality of the corpus; rejections among them."""


@dataclass(frozen=True)
class Excluded:
    """A volume that is left out."""

    record: VolumeRecord
    reason: str
    """``id`` or ``content``."""
    original_id: str
    """The listed case, or the excluded volume whose content it shares."""
    similarity: float
    """In [0, 1]; 1 where found by id."""


def exclude(
    records: Sequence[VolumeRecord],
    rejected: Sequence[VolumeRecord],
    lists: Sequence[tuple[ExclusionList, Sequence[ExcludedImage]]],
    index: ContentIndex,
    matches: Mapping[str, Sequence[Match]],
    sources: Mapping[str, Mapping[str, Any]],
) -> tuple[list[Excluded], dict[str, Any]]:
    """Find the volumes to leave out.

    A volume is left out if its id or an alias of it is listed, if it has the content of a listed case's image, or if
    it has the content of a volume that is left out: a case listed by id alone takes its copies in other collections
    with it. In a plain list, an id that earlier versions gave to another case of the source stands for both.

    Args:
        records: All curated volumes.
        rejected: All rejected volumes: a listed case among them is found, though there is nothing to leave out.
        lists: What is to be excluded, and the images that were read for it.
        index: The contents of ``records``.
        matches: For each name in ``records`` what the index finds for it.
        sources: What ``corpus.json`` says of each source; ``aliases`` and ``former_aliases`` as in ``Collection``.

    Returns:
        The excluded volumes, sorted by source and case, and the report for ``corpus.json``.
    """
    excluded: dict[str, Excluded] = {}
    unreadable: list[dict[str, str]] = []
    found: set[tuple[int, str]] = set()
    by_name = {record.name: record for record in records}
    aliases = {name: source["aliases"] for name, source in sources.items()}
    former = {name: source.get("former_aliases", {}) for name, source in sources.items()}  # earlier parts lack it
    named = _names_by_id([*records, *rejected], aliases)
    named_once = _names_by_id([*records, *rejected], former)
    for number, (listed, _) in enumerate(lists):
        for case in listed.cases:
            also = named_once.get(case, ()) if listed.fold is None else ()  # splits never held test cases
            for name in dict.fromkeys([*named.get(case, ()), *also]):
                found.add((number, case))
                if name in by_name:
                    excluded.setdefault(name, Excluded(by_name[name], BY_ID, case, 1.0))
    for number, (_, images) in enumerate(lists):
        for image in images:
            readable = [record for record in image.records if not record.reason]
            if not readable:
                first = image.records[0]
                unreadable.append({"case": image.case, "reason": first.reason, "message": first.message})
            for match in (m for r in readable for m in index.matches(r.hash, r.fingerprint)):
                found.add((number, image.case))
                content = Excluded(by_name[match.name], BY_CONTENT, image.case, match.similarity)
                excluded.setdefault(match.name, content)
    _spread(excluded, by_name, matches)
    by_id = sum(entry.reason == BY_ID for entry in excluded.values())
    listed_cases = [(number, case) for number, (listed, _) in enumerate(lists) for case in listed.cases]
    report = {
        "lists": [_describe(listed, images) for listed, images in lists],
        "cases_listed": len(listed_cases),
        "cases_found": len(found),
        "not_found": [case for number, case in listed_cases if (number, case) not in found],
        "images_unreadable": unreadable,
        "cases_excluded": len(excluded),
        "by_id": by_id,
        "by_content": len(excluded) - by_id,
    }
    return [excluded[name] for name in sorted(excluded, key=lambda n: (by_name[n].source, by_name[n].case))], report


def _names_by_id(records: Sequence[VolumeRecord], aliases: Mapping[str, Mapping[str, str]]) -> dict[str, list[str]]:
    """Return the names of volumes by all ids that lists may name them by, alone or behind ``source/``."""
    names: dict[str, list[str]] = {}
    for record in records:
        for case in sorted(listed_ids(record.case, aliases[record.source])):
            names.setdefault(case, []).append(record.name)
            names.setdefault(f"{record.source}/{case}", []).append(record.name)
    return names


def _spread(
    excluded: dict[str, Excluded], by_name: Mapping[str, VolumeRecord], matches: Mapping[str, Sequence[Match]]
) -> None:
    """Add the volumes that have the content of excluded ones, and theirs, until there are no more."""
    neighbours: dict[str, dict[str, float]] = {}
    for name, found in matches.items():
        for match in found:
            neighbours.setdefault(name, {})[match.name] = match.similarity
            neighbours.setdefault(match.name, {})[name] = match.similarity
    waiting = sorted(excluded)
    while waiting:
        name = waiting.pop(0)
        for other, similarity in sorted(neighbours.get(name, {}).items()):
            if other not in excluded:
                excluded[other] = Excluded(by_name[other], BY_CONTENT, name, similarity)
                waiting.append(other)


def _describe(listed: ExclusionList, images: Sequence[ExcludedImage]) -> dict[str, Any]:
    with_image = {image.case for image in images}
    return {
        "file": listed.file,
        "sha256": listed.sha256,
        "fold": listed.fold,
        "cases": len(listed.cases),
        "images_found": len(with_image),
        "images_missing": [case for case in listed.cases if case not in with_image] if listed.images else None,
    }
