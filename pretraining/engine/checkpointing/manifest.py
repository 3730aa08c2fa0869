"""The manifest of a checkpoint: the size and checksum of every file, written last."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from isal import isal_zlib

from nnunetv2_meddino.errors import CheckpointError

FORMAT, VERSION = "nnunetv2_meddino checkpoint", 1
RECORD = "checkpoint.json"

_BLOCK = 2**22


@dataclass(frozen=True)
class FileChecksum:
    """What a file was when it was written."""

    size: int
    """In bytes."""
    crc32: int
    """Of its content."""


@dataclass(frozen=True)
class Record:
    """What ``checkpoint.json`` says."""

    step: int
    """Number of finished steps."""
    world_size: int
    """Number of processes that wrote it."""
    torch_version: str
    """Of the process that wrote it."""
    metadata: dict[str, Any]
    """What the run told of itself."""
    values: dict[str, Any]
    """Plain values of the state, by name."""
    files: dict[str, FileChecksum]
    """Seals of all other files, by name."""


class DamageError(Exception):
    """A file of a checkpoint is missing or not what was written; the message names it."""


def file_checksum(path: Path) -> FileChecksum:
    """Return size and checksum of a file.

    Raises:
        OSError: It cannot be read.
    """
    crc, size = 0, 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            crc, size = isal_zlib.crc32(block, crc), size + len(block)
    return FileChecksum(size, crc)


def write_record(folder: Path, record: Record) -> None:
    """Write ``checkpoint.json`` with a checksum of its own, and see it and the folder to the disk.

    Raises:
        OSError: It cannot be written.
    """
    content = {"format": FORMAT, "version": VERSION, **asdict(record)}
    with (folder / RECORD).open("w") as file:
        json.dump({"crc32": _own_checksum(content), **content}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(folder)


def read_record(folder: Path) -> Record:
    """Return what ``checkpoint.json`` says.

    Raises:
        DamageError: It is missing or damaged.
        CheckpointError: Another release wrote it.
    """
    path = folder / RECORD
    try:
        content = json.loads(path.read_bytes())
        intact = content.pop("crc32") == _own_checksum(content)
    except FileNotFoundError as error:
        raise DamageError(f"{path} is missing") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamageError(f"{path} is damaged: {error!r}") from error
    if not intact:
        raise DamageError(f"{path} is damaged: its checksum differs")
    name, version = content.pop("format"), content.pop("version")
    if (name, version) != (FORMAT, VERSION):
        raise CheckpointError(
            f"{path} describes {name!r} version {version}; this release reads {FORMAT!r} version {VERSION}. "
            "Use the release that wrote it."
        )
    content["files"] = {name: FileChecksum(**expected) for name, expected in content["files"].items()}
    return Record(**content)


def check_files(folder: Path, files: Mapping[str, FileChecksum]) -> None:
    """Compare all files of a checkpoint with their checksums, the sizes of all first.

    Raises:
        DamageError: One is missing, short, or has another content.
        OSError: One cannot be read for a reason that says nothing of its content.
    """
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            raise DamageError(f"{path} is missing")
        if (size := path.stat().st_size) != expected.size:
            raise DamageError(f"{path} has {size} bytes instead of {expected.size}")
    for name, expected in files.items():
        path = folder / name
        try:
            intact = file_checksum(path) == expected
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            raise DamageError(f"{path} cannot be read: {error}") from error
        if not intact:
            raise DamageError(f"{path} is damaged: its checksum differs")


def sync_folder(folder: Path) -> None:
    """See the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _own_checksum(content: Mapping[str, Any]) -> int:
    # JSON read and written again is the same text: keys keep their order, numbers all their digits
    return isal_zlib.crc32(json.dumps(content).encode())
