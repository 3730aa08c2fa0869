"""What a curation is to do, which all of its parts and the merge must agree on, and where its working files lie.

``CORPUS/parts`` holds, until the user deletes it, everything that makes a curation resumable: a record for every
volume, the slices of volumes that are not (or not yet) in the corpus, and one file for every finished part.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from nnunetv2_meddino.errors import ConfigurationError, DataError
from nnunetv2_meddino.files import PARTIAL_SUFFIX, read_json
from nnunetv2_meddino.locks import locked, refuse_if_held
from pretraining.corpus.format import CORPUS_FILE, read_corpus
from pretraining.corpus.storage import StoreSettings, write_error, write_whole
from pretraining.curation.collections import Collection
from pretraining.curation.exclusions import ExclusionList
from pretraining.curation.process_volume import file_name
from pretraining.curation.tables import volume_path

PARTS = "parts"
_SETTINGS_FILE = "settings.json"
_PART_ADVICE = "Move it away and run meddino-pretrain curate for that part again."
_MERGE_LOCK = "merge.lock"


@dataclass(frozen=True)
class Job:
    """A curation."""

    settings: dict[str, Any]
    """How slices are stored."""
    sources: dict[str, dict[str, Any]]
    """What ``corpus.json`` says of each source, the most trusted first."""
    found: dict[str, int]
    """Number of volumes found in each."""
    exclusions: tuple[ExclusionList, ...]
    """What is to be left out."""
    keep_near: bool
    """Whether near-duplicates are kept."""
    num_parts: int
    """Number of parts of the work."""
    inventory: str
    """Hash of the names of all volumes: parts that saw different folders do not belong together."""

    def to_json(self) -> dict[str, Any]:
        """Return the job as JSON."""
        lists = [asdict(e) | {"images": str(e.images.absolute()) if e.images else None} for e in self.exclusions]
        return asdict(self) | {"exclusions": lists}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Job:
        """Restore what ``to_json`` made."""
        lists = tuple(
            ExclusionList(
                **entry | {"cases": tuple(entry["cases"]), "images": Path(entry["images"]) if entry["images"] else None}
            )
            for entry in content["exclusions"]
        )
        return cls(**content | {"exclusions": lists})


@dataclass(frozen=True)
class Part:
    """A finished part of a job."""

    job: Job
    number: int
    """Which part it is, from 0."""
    volumes: tuple[tuple[str, str], ...]
    """Source and case of each."""
    images: tuple[tuple[int, str, str], ...]
    """For each image of an excluded case: number of the list, case, record below ``parts``."""
    passed_over: dict[str, dict[str, Any]]
    """For each source what in its folder is not a volume of any source: ``dicom_folders`` with images that no pattern
    matches; the number of other such ``images``; the number of ``other_files`` by ending; ``unlisted_folders``, whose
    files cannot be listed. Folders are relative to the source's. Not part of the job: a log that is being written there
    must not keep parts from being merged."""


def describe_collection(collection: Collection) -> dict[str, Any]:
    """Return what the corpus says of a collection."""
    names = ("title", "homepage", "licence", "licence_url", "expected_volumes", "modality", "aliases", "former_aliases")
    return {name: getattr(collection, name) for name in names}


def inventory(names: Sequence[Sequence[object]]) -> str:
    """Return a hash of the names of volumes."""
    return hashlib.sha256(json.dumps([list(map(str, name)) for name in names]).encode()).hexdigest()


def record_path(corpus: Path, source: str, case: str) -> Path:
    """Return where the record of a volume is written."""
    return corpus / PARTS / "records" / file_name(source) / f"{file_name(case)}.json"


def staging_path(corpus: Path, source: str, case: str) -> Path:
    """Return where the slices of a volume lie that is not in the corpus, or not yet."""
    return corpus / PARTS / volume_path(source, case)


def prepare(corpus: Path, settings: StoreSettings) -> None:
    """Make the folder of a corpus, or check that the existing one was made with the same settings.

    Raises:
        ConfigurationError: It holds a corpus of other settings, or something else.
        DataError: It cannot be written to.
    """
    path = corpus / PARTS / _SETTINGS_FILE
    try:
        corpus.mkdir(parents=True, exist_ok=True)
        if not path.is_file():
            if (corpus / CORPUS_FILE).is_file():
                _check_settings(corpus, read_corpus(corpus)["settings"], settings)
            elif [entry.name for entry in corpus.iterdir() if entry.name != PARTS]:
                raise ConfigurationError(f"{corpus} is not empty and holds no corpus. Name a new folder with --out.")
            path.parent.mkdir(exist_ok=True)
            _write_first(path, json.dumps(settings.to_json()).encode())
    except OSError as error:
        raise write_error(corpus, error) from error
    _check_settings(corpus, read_json(path, DataError, "Restore the file, or name a new folder with --out."), settings)


def _check_settings(corpus: Path, there: dict[str, Any], wanted: StoreSettings) -> None:
    if {name: there.get(name) for name in wanted.to_json()} != wanted.to_json():
        msg = (
            f"{corpus} was made with other settings ({_words(there)}) than now ({_words(wanted.to_json())}). "
            "Give the same --store-size and --spacing, or another folder."
        )
        raise ConfigurationError(msg)


def _words(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def _write_first(path: Path, content: bytes) -> None:
    """Write a file unless another part was quicker; nobody sees it half written."""
    partial = path.with_name(f".{path.name}.{uuid4().hex}{PARTIAL_SUFFIX}")  # on two machines a process id may be one
    try:
        partial.write_bytes(content)
        with suppress(FileExistsError):
            os.link(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def locked_part(corpus: Path, number: int, num_parts: int) -> Iterator[None]:
    """Hold the lock of a part: no other process works on it, merges, or divides the work into another number of parts.

    Raises:
        BusyError: Another process does.
    """
    of = f"_of_{num_parts:05d}.lock"
    with locked(corpus / PARTS, f"part_{number:05d}{of}"):
        _refuse_if_held(corpus, lambda name: name.endswith(of))
        yield


@contextmanager
def locked_corpus(corpus: Path) -> Iterator[None]:
    """Hold the lock of a merge: no other process merges or works on a part.

    Raises:
        BusyError: Another process does.
    """
    with locked(corpus / PARTS, _MERGE_LOCK):
        _refuse_if_held(corpus, lambda name: name == _MERGE_LOCK)
        yield


def _refuse_if_held(corpus: Path, allowed: Callable[[str], bool]) -> None:
    """Check, after taking a lock, that the others are free: of two processes one at least sees the other's."""
    for path in sorted((corpus / PARTS).glob("*.lock")):
        if not allowed(path.name):
            refuse_if_held(path)


def write_part(corpus: Path, part: Part) -> None:
    """Note that a part is finished."""
    content = {"job": part.job.to_json(), "part": part.number, "units": part.volumes, "images": part.images}
    content["passed_over"] = part.passed_over
    write_whole(_part_path(corpus, part.number, part.job.num_parts), json.dumps(content).encode())


def reopen_part(corpus: Path, number: int, num_parts: int) -> None:
    """Delete the note that a part is finished, so that no merge uses its volumes until it is written again."""
    _part_path(corpus, number, num_parts).unlink(missing_ok=True)


def forget_other_jobs(corpus: Path, job: Job) -> None:
    """Delete the notes on finished parts of earlier calls with other arguments; their records of volumes are kept."""
    for path in _part_files(corpus):
        try:
            content = read_json(path, DataError, _PART_ADVICE)
        except DataError:
            if path.exists():
                raise
            continue  # another part of this job was quicker
        if content.get("job") != json.loads(json.dumps(job.to_json())):
            path.unlink(missing_ok=True)


def read_parts(corpus: Path) -> list[Part]:
    """Return all parts of the job.

    Raises:
        DataError: Parts are missing, or do not belong together.
    """
    contents = [read_json(path, DataError, _PART_ADVICE) for path in _part_files(corpus)]
    if not contents:
        msg = f"{corpus} has no finished part to merge. Run meddino-pretrain curate, with --part-id for each part."
        raise DataError(msg)
    jobs = [content["job"] for content in contents]
    if any(job != jobs[0] for job in jobs):
        msg = (
            f"The parts in {corpus / PARTS} were made with different arguments, or saw different files. Run all parts "
            "with the same --source, --exclude and --num-parts."
        )
        raise DataError(msg)
    if any("passed_over" not in content for content in contents):
        msg = (
            f"The parts in {corpus / PARTS} were made by another version of this program. Run the curation again: "
            "volumes that are finished are not read again."
        )
        raise DataError(msg)
    job = Job.from_json(jobs[0])
    if missing := sorted(set(range(job.num_parts)) - {content["part"] for content in contents}):
        some = ", ".join(map(str, missing[:20])) + (" ..." if len(missing) > 20 else "")
        msg = f"{len(missing)} of {job.num_parts} parts are not finished: --part-id {some}. Run them, then merge."
        raise DataError(msg)
    return [
        Part(
            job=job,
            number=content["part"],
            volumes=tuple((source, case) for source, case in content["units"]),
            images=tuple((number, case, record) for number, case, record in content["images"]),
            passed_over=content["passed_over"],
        )
        for content in contents
    ]


def _part_files(corpus: Path) -> list[Path]:
    return sorted((corpus / PARTS).glob("part_*_of_*.json"))


def _part_path(corpus: Path, number: int, num_parts: int) -> Path:
    return corpus / PARTS / f"part_{number:05d}_of_{num_parts:05d}.json"
