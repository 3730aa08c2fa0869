"""Fetching what ``push`` has sent: a trained model into nnUNet_results, a backbone into the hub's cache."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError

from nnunetv2_meddino.comparison.folders import dataset_names
from nnunetv2_meddino.environment import NNUNET_PATHS, NNUNET_RESULTS, nnunet_folders
from nnunetv2_meddino.errors import ConfigurationError
from nnunetv2_meddino.files import PARTIAL_SUFFIX, is_of_the_disk
from nnunetv2_meddino.sharing.model_files import (
    CHECKPOINT,
    DATASET,
    MANIFEST,
    PLANS,
    Identity,
    join_model,
    read_identity,
    train_command,
)
from nnunetv2_meddino.weights import hub


@dataclass(frozen=True)
class Fetched:
    """What was fetched, and what to do with it."""

    path: Path
    """Folder of a trained model, or file of a backbone."""
    use: str
    """The next command."""


def fetch(repository: str) -> Fetched:
    """Fetch a trained model, or else a backbone.

    The hub library's cache (``HF_HOME``) keeps what has arrived, so that an interrupted fetch goes on from there; in
    nnUNet_results a model appears whole or not at all.

    Args:
        repository: ``org/name``.

    Raises:
        ConfigurationError: The model is there already, or another dataset has its number.
        WeightsError: The repository cannot be read, or holds neither; the message says what to do.
    """
    try:
        manifest = Path(hf_hub_download(repository, MANIFEST))
    except EntryNotFoundError:  # also without network, where nothing of that name is in the cache
        return Fetched(hub.fetch(repository), train_command(repository))
    except Exception as error:  # the client lets errors of its HTTP library through, which differs by version
        if is_of_the_disk(error):
            raise
        raise hub.explained(error, repository, MANIFEST) from error
    identity = read_identity(manifest, repository)
    (results,) = nnunet_folders(NNUNET_RESULTS)
    target = results / identity.folder
    _check_place(identity, target)
    patterns = [MANIFEST, PLANS, DATASET, *(f"fold_{fold}/{CHECKPOINT}" for fold in identity.folds)]
    try:
        files = Path(snapshot_download(repository, revision=manifest.parent.name, allow_patterns=patterns))
    except Exception as error:
        if is_of_the_disk(error):
            raise
        raise hub.explained(error, repository, f"fold_*/{CHECKPOINT}") from error
    results.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".meddino_fetch_", suffix=PARTIAL_SUFFIX, dir=results) as folder:
        whole = Path(folder, target.name)
        model = join_model(files, identity, repository, whole)
        target.parent.mkdir(exist_ok=True)
        whole.rename(target)
    return Fetched(target, model.predict_command)


def _check_place(identity: Identity, target: Path) -> None:
    """Refuse to overwrite a model, and to give two datasets one number, which nnU-Net finds ambiguous."""
    if target.exists():
        raise ConfigurationError(f"{target} is there already and is not overwritten. Move it away, then fetch again.")
    folders = [Path(folder) for variable in NNUNET_PATHS if (folder := variable.get())]
    number = identity.dataset[:10]
    others = [name for name in dataset_names(folders) if name.startswith(number) and name != identity.dataset]
    if others:
        variables = ", ".join(variable.name for variable in NNUNET_PATHS)
        msg = (
            f"The model is of {identity.dataset}, and here {others[0]} has the same number: nnU-Net would find neither "
            f"by it. Export other folders ({variables}) for the fetched model, then fetch again."
        )
        raise ConfigurationError(msg)
