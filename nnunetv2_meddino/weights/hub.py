"""Fetching weights from the Hugging Face hub, with an error for everything that can go wrong on the way."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

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
            raise _explained(error, place.repository, filename) from error
    assert failure is not None
    raise _explained(failure, place.repository, " or ".join(place.candidates)) from failure


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


def _explained(error: Exception, repository: str, filename: str) -> WeightsError:
    """Turn a failed download into an error that says what to do."""
    page = f"https://huggingface.co/{repository}"
    by_hand = (
        f" Or download {filename} from {page}/tree/main by hand, on any machine, and set {MEDDINO_WEIGHTS.name} to the "
        "path of that file."
    )
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
        reason = f" ({_first_line(error.__cause__)})" if error.__cause__ else ""
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
            f"The download of {filename} from {repository} broke off ({type(error).__name__}: {_first_line(error)}). "
            "Check the network and the free disk space and run it again; what has arrived is kept."
        )
    return WeightsError(what + by_hand)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
