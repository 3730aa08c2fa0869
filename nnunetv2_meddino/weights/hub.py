"""Fetching weights from the Hugging Face hub, with an error for everything that can go wrong on the way."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import disable_progress_bars

from nnunetv2_meddino.environment import MEDDINO_WEIGHTS
from nnunetv2_meddino.errors import WeightsError
from nnunetv2_meddino.files import is_of_the_disk
from nnunetv2_meddino.weights.catalog import CATALOG

WEIGHT_FILES = ("model.safetensors", "model.pth", "pytorch_model.bin")
"""File names tried in a repository, in this order, where none is given."""


class HubFile(NamedTuple):
    """A file on the hub."""

    repository: str
    filename: str | None
    """None: the first of ``WEIGHT_FILES`` that is there."""

    @property
    def candidates(self) -> tuple[str, ...]:
        """File names to try, in order."""
        return (self.filename,) if self.filename else WEIGHT_FILES


def parse_hub_id(spec: str) -> HubFile | None:
    """Read ``org/name`` or ``org/name:filename``, with or without ``hf-hub:`` before it; None for anything else."""
    match = re.fullmatch(r"(?:hf[-_]hub:)?([\w-][\w.-]*/[\w-][\w.-]*)(?::((?!.*\.\.)[\w.-][\w./-]*))?", spec)
    return HubFile(match.group(1), match.group(2)) if match else None


def repository_name(spec: str) -> str:
    """Return the repository that a user named.

    Raises:
        WeightsError: It is no ``org/name``.
    """
    place = parse_hub_id(spec)
    if place is None or place.filename is not None:
        raise WeightsError(f"{spec!r} is no repository. Name one as org/name, with your account or organisation first.")
    return place.repository


def fetch(name: str) -> Path:
    """Return the local file of a catalog name or hub id, downloading it if it is not in the hub's cache.

    The cache is the hub library's own (``HF_HOME``); it also shows progress, resumes what was interrupted and checks
    the size.

    Args:
        name: A catalog name, ``org/name`` or ``org/name:filename``.

    Raises:
        WeightsError: The name is unknown, or the download failed; the message says what to do next.
    """
    place = _place(name)
    if place is None:
        raise WeightsError(f"{name!r} is neither a catalog name ({', '.join(CATALOG)}) nor a hub id such as org/name.")
    failure: Exception | None = None
    unreachable = False
    for filename in place.candidates:
        try:
            return Path(hf_hub_download(place.repository, filename, local_files_only=unreachable))
        except EntryNotFoundError as error:
            failure = failure or error
            unreachable = unreachable or isinstance(error, LocalEntryNotFoundError)  # then look only in the cache
        except Exception as error:  # the client lets errors of its HTTP library through, which differs by version
            if is_of_the_disk(error):
                raise
            raise explained(error, place.repository, filename, _by_hand(place.repository, filename)) from error
    assert failure is not None
    names = " or ".join(place.candidates)
    raise explained(failure, place.repository, names, _by_hand(place.repository, names)) from failure


def cached_path(spec: str) -> Path | None:
    """Return the file of a path, catalog name or hub id if it is on this machine; nothing is downloaded."""
    path = Path(spec).expanduser()
    if path.is_file():
        return path
    place = _place(spec)
    if place is None:
        return None
    for filename in place.candidates:
        found = try_to_load_from_cache(place.repository, filename)
        if isinstance(found, str):
            return Path(found)
    return None


def _place(name: str) -> HubFile | None:
    entry = CATALOG.get(name)
    return HubFile(entry.repository, entry.filename) if entry else parse_hub_id(name)


def _by_hand(repository: str, filename: str) -> str:
    return (
        f" Or download {filename} from {page_of(repository)}/tree/main by hand, on any machine, and set "
        f"{MEDDINO_WEIGHTS.name} to the path of that file."
    )


def show_progress_on_terminals_only() -> None:
    """Let the hub library draw no bars where they would go to a file."""
    if not sys.stderr.isatty():
        disable_progress_bars()


def page_of(repository: str) -> str:
    """Return the address of a repository's page."""
    return f"https://huggingface.co/{repository}"


def explained(error: Exception, repository: str, filename: str, otherwise: str = "") -> WeightsError:
    """Turn a failed download into an error that says what to do.

    Args:
        error: What the hub library raised.
        repository: Its name.
        filename: Of what was wanted.
        otherwise: Added where there is another way to get it.
    """
    page = page_of(repository)
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, GatedRepoError) or status == 403:
        what = (
            f"The weights {repository} are gated: their licence has to be accepted first. Log in at {page}, accept it "
            "there and wait until access is granted, then run `hf auth login` with an access token on this machine."
        )
    elif isinstance(error, RepositoryNotFoundError) or status == 401:
        return WeightsError(
            f"The hub has no repository {repository} that this machine may read: the name is misspelt, or it is "
            f"private. Check {page} in a browser; if it is there, run `hf auth login` with an account that may read "
            "it. (If you meant a file: there is none of that name here.)"
        )
    elif isinstance(error, LocalEntryNotFoundError):
        reason = f" ({first_line(error.__cause__)})" if error.__cause__ else ""
        what = (
            f"The weights {repository} are not in the local cache and the hub cannot be reached{reason}. Check the "
            "network (and that HF_HUB_OFFLINE is not set) and try again, or fetch them on a machine with network and "
            "copy its HF_HOME folder here."
        )
    elif isinstance(error, EntryNotFoundError) or status == 404:
        return WeightsError(
            f"The repository {repository} has no file {filename}. Look at {page}/tree/main and name the file: "
            f"{repository}:FILENAME."
        )
    else:
        what = (
            f"The download of {filename} from {repository} broke off ({type(error).__name__}: {first_line(error)}). "
            "Check the network and the free disk space and run it again; what has arrived is kept."
        )
    return WeightsError(what + otherwise)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type where it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]
