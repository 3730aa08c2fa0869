"""Files: written whole or not at all, named in every error, rescued where they cannot be written; JSON."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from nnunetv2_meddino.errors import MedDINOError, OutputError

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

T = TypeVar("T")

PARTIAL_SUFFIX = ".partial"
"""Ending of files that are being written; what has it after a crash can be deleted."""

_OF_THE_DISK = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO))


@contextmanager
def replacing(path: Path, *, fsync: bool = False) -> Iterator[Path]:
    """Yield a temporary name beside ``path``, which is renamed to ``path`` at the end or deleted after an error.

    Args:
        path: The file to be written; its folder is made where it is missing.
        fsync: Whether the content must be on the disk before it gets its name, so that it survives a power cut.

    Raises:
        OSError: It cannot be written; also where a library has wrapped that in an error of its own.
    """
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL_SUFFIX}")
        try:
            yield temporary
            if fsync:
                with temporary.open("rb") as file:
                    os.fsync(file.fileno())
            temporary.replace(path)
        except OSError:
            raise
        except Exception as error:
            number = _system_error(error)
            if number is None:
                raise
            raise OSError(number, os.strerror(number), str(path)) from error
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``folder``, which gets its name at the end or is deleted after an error."""
    unfinished = folder.with_name(f".{folder.name}{PARTIAL_SUFFIX}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Make an ``OSError`` name the file that was to be written: a failed write names none, others a temporary one."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and (error.filename is None or Path(error.filename).parent == path.parent):
            error.filename, error.filename2 = str(path), None
        raise


def write_text(text: str, path: Path) -> None:
    """Write a text file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(content: Mapping[str, Any] | Sequence[Any], path: Path) -> None:
    """Write a JSON file whole or not at all, in the layout of nnU-Net's own plans files."""
    write_text(json.dumps(content, indent=4), path)


def read_json(path: Path | Traversable, error_type: type[MedDINOError], advice: str) -> dict[str, Any]:
    """Return the object in a JSON file.

    Args:
        path: The file, or one of a package.
        error_type: What to raise, whatever is wrong with it.
        advice: Sentences that end the message: what to do about this very file.
    """
    content = read_json_value(path, error_type, advice)
    if not isinstance(content, dict):
        raise error_type(f"{path} does not hold a JSON object. {advice}")
    return content


def read_json_value(path: Path | Traversable, error_type: type[MedDINOError], advice: str) -> Any:
    """Return what a JSON file holds, an object or not; arguments as for ``read_json``."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise error_type(f"{path} cannot be read as JSON: {error}. {advice}") from error


def check_writable(path: Path) -> None:
    """Make the folder of a file and try to write there, before hours are spent on its content.

    Raises:
        OSError: It cannot.
    """
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.") as probe:
            probe.write(b"probe")


def written_or_rescued(write: Callable[[Path], T], out: Path) -> T:
    """Write what took long to compute; if that fails, write it to a temporary folder instead.

    Args:
        write: Writes to the path that it is given.
        out: The path that was asked for.

    Raises:
        OutputError: It was written to the temporary folder, which the message names.
        OSError: It could not be written there either.
    """
    try:
        return write(out)
    except OSError as error:
        folder = Path(tempfile.mkdtemp(prefix="meddino_"))
        try:
            write(folder / out.name)
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
            raise error from None
        where = error.filename or out
        msg = f"{where} cannot be written: {error.strerror or error}. Nothing is lost: what was computed is in {folder}"
        raise OutputError(f"{msg}; copy it from there.") from error


def is_of_the_disk(error: BaseException) -> bool:
    """Whether an error is of the disk or its permissions, not of the content of a file that was read."""
    return isinstance(error, OSError) and error.errno in _OF_THE_DISK


def _system_error(error: Exception) -> int | None:
    """Return the errno of the system error behind a library's error.

    torch keeps it as the context of its RuntimeError, safetensors in the text of its SafetensorError.
    """
    below: BaseException | None = error
    while below is not None:
        if isinstance(below, OSError) and below.errno is not None:
            return below.errno
        if match := re.search(r"\(os error (\d+)\)", str(below)):
            return int(match[1])
        below = below.__cause__ or below.__context__
    return None
