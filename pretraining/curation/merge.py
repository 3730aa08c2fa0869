"""All parts of a curation to one corpus: exclusions, one copy of every scan, and the tables.

Everything follows from the records of the parts. Slices of volumes that are left out are kept in ``parts``, so that a
later call with other exclusions or sources needs no volume read again; deleting ``parts`` frees their space.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2_meddino.errors import DataError
from nnunetv2_meddino.files import PARTIAL_SUFFIX
from pretraining.corpus.format import (
    CORPUS_FILE,
    DUPLICATES_FILE,
    EXCLUDED_FILE,
    FORMAT,
    REJECTED_FILE,
    SLICES_FILE,
    VERSION,
    VOLUMES_FILE,
    VOLUMES_FOLDER,
)
from pretraining.corpus.storage import write_error, write_whole
from pretraining.curation import job as jobs
from pretraining.curation import tables
from pretraining.curation.deduplicate import EXACT, NEAR, SPACING_FLAG, ContentIndex, Deduplicated, Match, deduplicate
from pretraining.curation.exclusions import Excluded, ExcludedImage, exclude
from pretraining.curation.job import Job, Part
from pretraining.curation.process_volume import VolumeRecord, is_outdated, outdated
from pretraining.progress import Progress


@dataclass(frozen=True)
class Decisions:
    """What becomes of every volume."""

    rejected: list[VolumeRecord]
    """Volumes that could not be used."""
    excluded: list[Excluded]
    """Volumes left out on request."""
    copies: Deduplicated
    """The rest, each scan once."""
    exclusions: dict[str, Any]
    """The report on exclusions for ``corpus.json``."""


def merge(corpus: Path, progress: Progress = lambda *_: None) -> dict[str, Any]:
    """Make the corpus of all finished parts and return ``corpus.json``; may be killed and run again.

    Raises:
        DataError: Parts are missing or do not belong together, or the corpus cannot be written.
        BusyError: Another command works on the corpus or a part of it.
    """
    jobs.read_parts(corpus)  # before anything is written where nothing is
    with jobs.locked_corpus(corpus):
        return _merge(corpus, progress)


def _merge(corpus: Path, progress: Progress) -> dict[str, Any]:
    parts = jobs.read_parts(corpus)
    job = parts[0].job
    records = _read_records(corpus, parts, progress)
    decisions = _decide(job, records, _read_images(corpus, parts), progress)
    content = _describe(job, records, decisions) | {"passed_over": parts[0].passed_over}
    try:
        (corpus / CORPUS_FILE).unlink(missing_ok=True)  # while it changes it must not look finished
        _place(corpus, decisions.copies.kept, progress)
        _write_tables(corpus, job, decisions)
        for rubbish in corpus.rglob(f".*{PARTIAL_SUFFIX}"):
            rubbish.unlink()
    except OSError as error:
        raise write_error(corpus, error) from error
    write_whole(corpus / CORPUS_FILE, json.dumps(content, indent=4).encode())
    return content


def _read_records(corpus: Path, parts: Sequence[Part], progress: Progress) -> list[VolumeRecord]:
    names = sorted(volume for part in parts for volume in part.volumes)
    records = []
    for number, (source, case) in enumerate(names):
        records.append(_record(jobs.record_path(corpus, source, case)))
        progress("reading records", number + 1, len(names))
    return records


def _record(path: Path) -> VolumeRecord:
    record = VolumeRecord.read(path)
    if record is None:
        raise DataError(f"{path} is missing, though its part was finished. Run the curation again.")
    if is_outdated(record):
        raise DataError(outdated(path))
    return record


def _read_images(corpus: Path, parts: Sequence[Part]) -> list[list[ExcludedImage]]:
    """Return the images of excluded cases, for each list in the order of its cases."""
    found: dict[tuple[int, str], list[VolumeRecord]] = {}
    for number, case, path in sorted(image for part in parts for image in part.images):
        found.setdefault((number, case), []).append(_record(corpus / jobs.PARTS / path))
    lists: list[list[ExcludedImage]] = [[] for _ in parts[0].job.exclusions]
    for (number, case), records in found.items():
        lists[number].append(ExcludedImage(case, tuple(records)))
    return lists


def _decide(
    job: Job, records: Sequence[VolumeRecord], images: Sequence[Sequence[ExcludedImage]], progress: Progress
) -> Decisions:
    rejected = [record for record in records if record.reason]
    curated = [record for record in records if not record.reason]
    index = ContentIndex((record.name, record.hash, record.fingerprint) for record in curated)
    matches: dict[str, list[Match]] = {}
    for number, record in enumerate(curated):
        matches[record.name] = index.matches(record.hash, record.fingerprint)
        progress("comparing", number + 1, len(curated))
    lists = list(zip(job.exclusions, images, strict=True))
    excluded, report = exclude(curated, rejected, lists, index, matches, job.sources)
    out = {entry.record.name for entry in excluded}
    rest = [record for record in curated if record.name not in out]
    return Decisions(rejected, excluded, deduplicate(rest, matches, list(job.sources), keep_near=job.keep_near), report)


def _describe(job: Job, records: Sequence[VolumeRecord], decisions: Decisions) -> dict[str, Any]:
    """Return ``corpus.json``; every volume is counted once."""
    copies = decisions.copies
    outcomes: dict[str, list[VolumeRecord]] = {
        "curated": copies.kept,
        "rejected": decisions.rejected,
        "duplicates": [duplicate.record for duplicate in copies.dropped],
        "excluded": [entry.record for entry in decisions.excluded],
    }
    sources = {}
    for name, description in job.sources.items():
        counts = {outcome: sum(r.source == name for r in own) for outcome, own in outcomes.items()}
        slices = sum(r.shape[0] for r in copies.kept if r.source == name)
        sources[name] = description | {"found": job.found[name]} | counts | {"slices": slices}
    counts = {outcome: len(own) for outcome, own in outcomes.items()}
    found = sum(job.found.values())
    if found != len(records) or found != sum(counts.values()):
        msg = f"{found} volumes were found, {len(records)} have a record, and {counts} were counted: report this error."
        raise DataError(msg)
    settings = job.settings | {"keep_near_duplicates": job.keep_near}
    excluded = [[entry.record.name, entry.reason] for entry in decisions.excluded]
    return {
        "format": FORMAT,
        "version": VERSION,
        "hash": tables.corpus_hash(copies.kept, settings, decisions.exclusions | {"volumes": excluded}),
        "settings": settings,
        "volumes": len(copies.kept),
        "slices": sum(record.shape[0] for record in copies.kept),
        "counts": {"found": found} | counts,
        "duplicates": {kind: sum(d.kind == kind for d in copies.dropped) for kind in (EXACT, NEAR)}
        | {
            "near_kept": len(copies.near_kept),
            "spacing_disagrees": sum(SPACING_FLAG in flags for flags in copies.marks.values()),
        },
        "sources": sources,
        "exclusions": decisions.exclusions,
    }


def _place(corpus: Path, kept: Sequence[VolumeRecord], progress: Progress) -> None:
    """Move the slices of the corpus' volumes into it, and all others out of it."""
    wanted = {corpus / tables.volume_path(record.source, record.case): record for record in kept}
    for number, (path, record) in enumerate(wanted.items()):
        staged = jobs.staging_path(corpus, record.source, record.case)
        path.parent.mkdir(parents=True, exist_ok=True)
        if staged.is_file():
            staged.replace(path)
        if not path.is_file() or path.stat().st_size != record.stored_bytes:
            raise DataError(f"{path} is missing or damaged. Run the curation again: only this volume is done anew.")
        progress("placing volumes", number + 1, len(wanted))
    for path in sorted((corpus / VOLUMES_FOLDER).rglob("*.b2nd")):
        if path not in wanted:
            staged = corpus / jobs.PARTS / path.relative_to(corpus)
            staged.parent.mkdir(parents=True, exist_ok=True)
            if staged.is_file():
                path.unlink()  # the staged one is newer
            else:
                path.replace(staged)


def _write_tables(corpus: Path, job: Job, decisions: Decisions) -> None:
    copies = decisions.copies
    licences = {name: str(description["licence"]) for name, description in job.sources.items()}
    volumes = tables.volumes_table(copies.kept, copies.names, licences, copies.marks)
    tables.write_table(volumes, corpus / VOLUMES_FILE)
    slices = tables.slices_table(copies.kept, licences, copies.marks)
    tables.write_table(slices, corpus / SLICES_FILE)
    rejected = (_named(record) | {"reason": record.reason, "message": record.message} for record in decisions.rejected)
    tables.write_lines(rejected, corpus / REJECTED_FILE)
    spacings = {record.name: record.native_spacing_mm for record in copies.kept}
    duplicates = (
        _named(d.record)
        | {"of": d.original_id, "kind": d.kind, "similarity": round(d.similarity, 6)}
        | {"spacing_mm": d.record.native_spacing_mm, "of_spacing_mm": spacings[d.original_id]}
        | {"spacing_disagrees": d.spacing_disagrees}
        for d in copies.dropped
    )
    tables.write_lines(duplicates, corpus / DUPLICATES_FILE)
    excluded = (
        _named(e.record) | {"how": e.reason, "of": e.original_id, "similarity": round(e.similarity, 6)}
        for e in decisions.excluded
    )
    tables.write_lines(excluded, corpus / EXCLUDED_FILE)


def _named(record: VolumeRecord) -> dict[str, Any]:
    return {"source": record.source, "case": record.case, "files": list(record.files)}
