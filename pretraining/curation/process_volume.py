"""One task is one volume: read, measured and stored, and its record or its rejection written.

A task is finished when its record is there. The stored volume is written before it, both under temporary names, so a
kill at any moment leaves a task finished or to be done again.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from nnunetv2_meddino.errors import DataError
from pretraining.corpus.slice_statistics import SliceStatistics, body_threshold, slice_statistics
from pretraining.corpus.storage import Resizer, StoreSettings, chunk_checksums, encode, plan_resizing, write_whole
from pretraining.curation.fingerprint import Fingerprint, exact_hash, fingerprint, is_current
from pretraining.curation.readers.read import Candidate, input_files, read_volume
from pretraining.curation.volume import Rejected, Volume, printable
from pretraining.modality import Modality

FAILURES = {
    "unforeseen": "reading it failed in an unforeseen way; the message names the error",
    "no_memory": "it did not fit into memory, or the process that read it was killed; use fewer processes (-np)",
}
"""Reasons for a rejection that may not be the volume's fault."""

_RETRIED = {*FAILURES, "unreadable"}
"""Such volumes are tried again by every run: the disk may be back, the memory larger, the fault mended."""

_LONGEST_NAME = 220
"""File systems take 255 bytes; endings and the temporary name need the rest."""


@dataclass(frozen=True)
class VolumeTask:
    """A volume to be curated."""

    source: str
    """Name of its source."""
    case: str
    """Its id there."""
    candidate: Candidate
    """Its files."""
    folder: Path
    """The source's folder; files are named relative to it."""
    modality: Modality
    """What its values are read as."""
    record: Path
    """Where its record is written."""
    stored: Path | None = None
    """Where its slices are written; None where only its content matters."""
    placed: Path | None = None
    """Where a merge may have moved its slices."""


@dataclass(frozen=True, eq=False)
class VolumeRecord:
    """What is known of a volume once its task is done."""

    source: str
    """Name of its source."""
    case: str
    """Its id there."""
    files: tuple[str, ...]
    """Its files, relative to the source's folder."""
    inputs: str
    """Hash of the names, sizes and times of the files: if it changes, the task is done again."""
    reason: str = ""
    """Why it was rejected; empty where it was not."""
    message: str = ""
    """The same in words."""
    hash: str = ""
    """Hash of the canonical voxels."""
    fingerprint: bytes = b""
    """Finds near-duplicates."""
    native_spacing_mm: tuple[float, ...] = ()
    """Spacing ``(z, y, x)`` as it was read."""
    spacing_mm: tuple[float, ...] = ()
    """Spacing ``(z, y, x)`` as it is stored."""
    shape: tuple[int, ...] = ()
    """Shape ``(slices, height, width)`` as it is stored."""
    modality: str = ""
    """``CT``, ``MR`` or ``XR``."""
    flags: tuple[str, ...] = ()
    """What was changed or is unusual."""
    empty: tuple[int, ...] = ()
    """Indices of slices that show only air."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """What the reader found in the header."""
    stored_bytes: int = 0
    """Size of the stored file."""
    statistics: NDArray[np.float32] = field(
        default_factory=lambda: np.empty((0, len(SliceStatistics._fields)), np.float32)
    )
    """``(slices, 6)`` float32, columns as in ``SliceStatistics``; no rows where no slices are stored."""
    crc32: NDArray[np.uint32] = field(default_factory=lambda: np.empty(0, np.uint32))
    """``(slices,)`` uint32, checksums of the slices as they are stored; none where no slices are."""

    @property
    def name(self) -> str:
        """Return ``source/case``."""
        return f"{self.source}/{self.case}"

    def to_bytes(self) -> bytes:
        """Return the record as JSON; float32 numbers survive exactly."""
        content = {f.name: getattr(self, f.name) for f in fields(self)}
        content["fingerprint"] = base64.b64encode(self.fingerprint).decode()
        columns = self.statistics.T.tolist()
        content["statistics"] = dict(zip(SliceStatistics._fields, columns, strict=True))
        content["crc32"] = self.crc32.tolist()
        return json.dumps(content, separators=(",", ":")).encode()

    @classmethod
    def read(cls, path: Path) -> VolumeRecord | None:
        """Return the record in a file, or None where there is none.

        Raises:
            DataError: The file is not a record.
        """
        try:
            content = json.loads(path.read_bytes())
            columns = [content["statistics"][name] for name in SliceStatistics._fields]
            content["statistics"] = np.asarray(columns, np.float32).T.reshape(-1, len(columns))
            content["crc32"] = np.asarray(content["crc32"], np.uint32)
            content["fingerprint"] = base64.b64decode(content["fingerprint"])
            values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in content.items()}
            return cls(**values)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            msg = f"{path} is not a record of a volume ({error}). Delete it and run the curation again."
            raise DataError(msg) from error


def file_name(name: str) -> str:
    """Return a case id as a file name: itself, with characters that file systems dislike as %XX.

    A name too long for a file system is cut, and a hash of it stands for the rest.
    """
    quoted = quote(name, safe="")
    if len(quoted) <= _LONGEST_NAME:
        return quoted
    return f"{quoted[: _LONGEST_NAME - 33]}-{hashlib.sha256(name.encode()).hexdigest()[:32]}"


def process(task: VolumeTask, settings: StoreSettings) -> VolumeRecord:
    """Do a task, unless it is done, and return its record.

    Raises:
        DataError: Its result cannot be written. Errors of the volume are in the record instead.
    """
    inputs = _inputs(task)
    done = VolumeRecord.read(task.record)
    current = done is not None and done.inputs == inputs and not is_outdated(done)
    if done is not None and current and done.reason not in _RETRIED and _is_stored(task, done):
        return done
    record = _curate(task, inputs, settings)
    write_whole(task.record, record.to_bytes())
    return record


def is_outdated(record: VolumeRecord) -> bool:
    """Tell whether a record is of an earlier version, whose fingerprints relied on the spacing in headers."""
    return not record.reason and not is_current(record.fingerprint)


def outdated(path: Path) -> str:
    """Return the error message about a record or a table of an earlier version."""
    return (
        f"{path} was made by an earlier version, which did not recognize a scan under a header with another spacing. "
        "It cannot tell whether a scan is in this corpus. Run the same meddino-pretrain curate command again: every "
        "volume is read anew."
    )


def process_lost(task: VolumeTask) -> VolumeRecord:
    """Write and return the record of a task whose process was killed twice."""
    message = f"{task.candidate.path}: {FAILURES['no_memory']}."
    record = _rejection(task, _inputs(task), "no_memory", message)
    write_whole(task.record, record.to_bytes())
    return record


def _is_stored(task: VolumeTask, record: VolumeRecord) -> bool:
    if record.reason or task.stored is None:
        return True
    for path in (task.stored, task.placed):  # the first is the newer one where both are there
        if path is not None and path.is_file():
            return path.stat().st_size == record.stored_bytes
    return False


def _curate(task: VolumeTask, inputs: str, settings: StoreSettings) -> VolumeRecord:
    try:
        volume = read_volume(task.candidate, task.modality)
        content_hash = exact_hash(volume.voxels)
        content = fingerprint(volume)
        return _store(task, inputs, volume, content_hash, content, settings)
    except DataError:  # of the disk of the corpus: it would fail for every volume
        raise
    except Rejected as rejected:
        return _rejection(task, inputs, rejected.reason, rejected.message)
    except MemoryError:
        return _rejection(task, inputs, "no_memory", f"{task.candidate.path}: {FAILURES['no_memory']}.")
    except Exception as error:  # one odd file among thousands must not end a run of days; it is counted and shown
        return _rejection(
            task, inputs, "unforeseen", f"{task.candidate.path}: {type(error).__name__}: {str(error)[:500]}"
        )


def _store(
    task: VolumeTask, inputs: str, volume: Volume, content_hash: str, content: Fingerprint, settings: StoreSettings
) -> VolumeRecord:
    """Resize, measure and write the slices of a volume, and return its record."""
    z, y, x = volume.spacing_mm
    count, height, width = volume.voxels.shape
    plan = plan_resizing((height, width), (y, x), settings)
    resize = Resizer((height, width), plan)
    statistics: list[SliceStatistics] = []
    crc32, stored_bytes = np.empty(0, np.uint32), 0
    if task.stored is not None:
        threshold = body_threshold(volume.voxels, volume.modality)

        def slices() -> Iterator[NDArray[np.int16]]:
            for image in volume.voxels:
                stored = resize(image)
                statistics.append(slice_statistics(stored, threshold))
                yield stored

        file = encode(slices(), count, resize.size)
        write_whole(task.stored, file)
        crc32, stored_bytes = chunk_checksums(file), len(file)
    return VolumeRecord(
        source=task.source,
        case=task.case,
        files=_names(task),
        inputs=inputs,
        hash=content_hash,
        fingerprint=content.to_bytes(),
        native_spacing_mm=tuple(float(s) for s in volume.spacing_mm),
        spacing_mm=(float(z), *plan.spacing_mm),
        shape=(count, *resize.size),
        modality=volume.modality,
        flags=(*volume.flags, *plan.flags),
        empty=tuple(int(i) for i in volume.metadata.get("empty_slices", ())),
        metadata={k: v for k, v in volume.metadata.items() if k != "empty_slices"},
        stored_bytes=stored_bytes,
        statistics=np.asarray(statistics, np.float32).reshape(-1, len(SliceStatistics._fields)),
        crc32=crc32,
    )


def _rejection(task: VolumeTask, inputs: str, reason: str, message: str) -> VolumeRecord:
    return VolumeRecord(
        source=task.source,
        case=task.case,
        files=_names(task),
        inputs=inputs,
        reason=reason,
        message=printable(message).replace(f"{printable(str(task.folder))}/", ""),
    )


def _names(task: VolumeTask) -> tuple[str, ...]:
    return tuple(_name(file, task.folder) for file in task.candidate.files)


def _name(file: Path, folder: Path) -> str:
    return printable((file.relative_to(folder) if file.is_relative_to(folder) else file).as_posix())


def _inputs(task: VolumeTask) -> str:
    """Return a hash of the names, sizes and times of the task's files, and of which are gone."""
    digest = hashlib.sha256(task.modality.lower().encode())
    for file in input_files(task.candidate):
        name = _name(file, task.folder)
        try:
            status = file.stat()
        except OSError:
            digest.update(f"\0{name}\0gone".encode())
        else:
            digest.update(f"\0{name}\0{status.st_size}\0{status.st_mtime_ns}".encode())
    return digest.hexdigest()
