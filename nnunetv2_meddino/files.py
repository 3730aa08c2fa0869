"""Writing files: whole or not at all, with the name of the file in every error, and nothing computed is lost."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from nnunetv2_meddino.errors import OutputError

T = TypeVar("T")

_OF_THE_DISK = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO))


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name beside ``path``, which becomes ``path`` at the end or vanishes after an error.

    Raises:
        OSError: It cannot be written; also where a library has wrapped that in an error of its own.
    """
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            yield temporary
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
def naming(path: Path) -> Iterator[None]:
    """Let an ``OSError`` tell the file that was to be written: one of a write tells none, others a temporary name."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and (error.filename is None or Path(error.filename).parent == path.parent):
            error.filename, error.filename2 = str(path), None
        raise


def check_writable(path: Path) -> None:
    """Make the folder of a file, and see that a file can be written there, before hours are spent on its content.

    Raises:
        OSError: It cannot.
    """
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.") as probe:
            probe.write(b"probe")


def written_or_rescued(write: Callable[[Path], T], out: Path) -> T:
    """Write what took long to compute; where that fails, write it to the folder of temporary files.

    Args:
        write: Writes to the path that it is given.
        out: Where to.

    Raises:
        OutputError: It was rescued; the message says where it is.
        OSError: It could be written nowhere.
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
    """Whether an error says that something cannot be written, and nothing of data that were read."""
    return isinstance(error, OSError) and error.errno in _OF_THE_DISK


def _system_error(error: Exception) -> int | None:
    """Return the number of the system's error that a library's error was made of.

    torch names it as the context of its RuntimeError, safetensors in the text of its SafetensorError.
    """
    below: BaseException | None = error
    while below is not None:
        if isinstance(below, OSError) and below.errno is not None:
            return below.errno
        if match := re.search(r"\(os error (\d+)\)", str(below)):
            return int(match[1])
        below = below.__cause__ or below.__context__
    return None
