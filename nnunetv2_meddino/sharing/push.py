"""Sending a trained model or a backbone to a repository, in one commit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import RepositoryNotFoundError

from nnunetv2_meddino.comparison.folders import FOLD_ALL
from nnunetv2_meddino.comparison.results import stored_scores
from nnunetv2_meddino.comparison.scores import Scores, pool
from nnunetv2_meddino.errors import WeightsError
from nnunetv2_meddino.files import is_of_the_disk, write_text
from nnunetv2_meddino.sharing.card import backbone_card, choose_licence, model_card, origins
from nnunetv2_meddino.sharing.disclosure import published_origin
from nnunetv2_meddino.sharing.model_files import CHECKPOINT, MANIFEST, Identity, split_model
from nnunetv2_meddino.weights.convert import FORMATS
from nnunetv2_meddino.weights.hub import WEIGHT_FILES, first_line, page_of
from nnunetv2_meddino.weights.load import TORCH_FORMATS, backbone_name, read_weights, write_weights

CARD = "README.md"
_TOKENS = "https://huggingface.co/settings/tokens"


@dataclass(frozen=True)
class Shipment:
    """What is sent."""

    repository: str
    folder: Path
    """Holds the files of the repository, and nothing else."""
    card: str
    """Content of its README.md."""

    @property
    def files(self) -> dict[str, int]:
        """Bytes of each file, by its name in the repository."""
        paths = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return {path.relative_to(self.folder).as_posix(): path.stat().st_size for path in paths}


def pack(source: Path, repository: str, folder: Path, *, licence: str | None, with_cases: bool) -> Shipment:
    """Write the files of a repository; nothing is sent.

    Args:
        source: Folder of a trained model in ``nnUNet_results``, or a backbone in a safetensors file of this package.
        repository: ``org/name``.
        folder: Empty, to write to.
        licence: Of what is sent; None takes that of the weights which it was made from.
        with_cases: Whether the ids of the cases that the pretraining has seen are sent.

    Raises:
        ConfigurationError: The folder is no trained model.
        WeightsError: The weights cannot be read, do not say where they are from, or have no licence.
    """
    if not source.exists():
        msg = f"There is no {source}. Give the folder of a trained model, or the file of a backbone."
        raise WeightsError(msg)
    pack_one = _pack_model if source.is_dir() else _pack_backbone
    card = pack_one(source, repository, folder, licence, with_cases)
    write_text(card, folder / CARD)
    return Shipment(repository, folder, card)


def _pack_model(source: Path, repository: str, folder: Path, licence: str | None, with_cases: bool) -> str:
    model = split_model(source, folder, with_cases=with_cases)
    chosen = choose_licence(licence, origins(model))
    measured = _measured(source, model.identity)
    scores = pool(list(measured.values())) if measured else None
    return model_card(repository, model, scores, list(measured), chosen)


def _pack_backbone(source: Path, repository: str, folder: Path, licence: str | None, with_cases: bool) -> str:
    weights = read_weights(str(source))
    layout, provenance = weights.provenance["format"], weights.provenance["derived_from"]
    if provenance is None or layout not in FORMATS or layout in TORCH_FORMATS:
        msg = (
            f"{source} is no safetensors file of this package, whose header says where the weights are from. Give the "
            "folder of a trained model, or a file that `meddino-pretrain export` or `meddino weights convert` wrote."
        )
        raise WeightsError(msg)
    origin = published_origin(provenance, with_cases=with_cases)
    chosen = choose_licence(licence, [origin])
    write_weights(folder / WEIGHT_FILES[0], weights.tensors, weights.config, origin, layout)
    size = backbone_name(weights.config) or f"{weights.config.depth} blocks of {weights.config.embed_dim} channels"
    return backbone_card(repository, WEIGHT_FILES[0], size, origin, chosen)


def _measured(model_folder: Path, identity: Identity) -> dict[str, Scores]:
    """Return the scores of each fold that has some; fold ``all`` validates on what it was trained on."""
    found = {fold: stored_scores(model_folder / f"fold_{fold}") for fold in identity.folds if fold != FOLD_ALL}
    return {fold: stored[0] for fold, stored in found.items() if stored and stored[0].cases}


def push(shipment: Shipment, *, public: bool) -> str:
    """Send all files in one commit and return its address; what an earlier push sent and this one lacks is deleted.

    Args:
        shipment: From ``pack``.
        public: Whether everybody may read the repository, which is made if it is not there.

    Raises:
        WeightsError: There is no access token, it does not permit this, the repository is there with the other
            visibility, or the hub cannot be reached; the message says what to do.
    """
    if get_token() is None:
        msg = (
            f"No access token is on this machine. Make one with the right to write on {_TOKENS}, run `hf auth login`, "
            "and run the same command again."
        )
        raise WeightsError(msg)
    api, repository = HfApi(library_name="nnunetv2-meddino"), shipment.repository
    try:
        private = _is_private(api, repository)
        if private is None:
            api.create_repo(repository, private=not public)
        elif private == public:
            raise _other_visibility(repository, private=private)
        stale = [MANIFEST, WEIGHT_FILES[0], f"fold_*/{CHECKPOINT}"]
        what = "Trained model" if MANIFEST in shipment.files else "Pretrained backbone"
        commit = api.upload_folder(
            repo_id=repository, folder_path=shipment.folder, commit_message=what, delete_patterns=stale
        )
    except WeightsError:
        raise
    except Exception as error:  # the client lets errors of its HTTP library through, which differs by version
        if is_of_the_disk(error):
            raise
        raise _explained(error, repository) from error
    return commit.commit_url


def _is_private(api: HfApi, repository: str) -> bool | None:
    """Return whether a repository is private; None where there is none that this account may read."""
    try:
        return bool(api.model_info(repository).private)
    except RepositoryNotFoundError:
        return None


def _other_visibility(repository: str, *, private: bool) -> WeightsError:
    is_, advice = ("private", "without --public") if private else ("public", "with --public, if everybody may have it")
    return WeightsError(
        f"The repository {repository} is there and is {is_}; a push does not change that. Push {advice}, name another "
        f"repository, or change its visibility first on {page_of(repository)}/settings."
    )


def _explained(error: Exception, repository: str) -> WeightsError:
    """Turn a failed upload into an error that says what to do."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    owner = repository.partition("/")[0]
    if status == 401:
        what = (
            f"The hub does not accept the access token of this machine. Make another with the right to write on "
            f"{_TOKENS} and run `hf auth login`."
        )
    elif status in (403, 404, 409):
        what = (
            f"The access token of this machine may not write to {repository}. `hf auth whoami` shows whose it is: "
            f"that account must be {owner} or a member of it with the right to write, and the token must have that "
            f"right, too ({_TOKENS}); `hf auth login` takes another one."
        )
    else:
        what = (
            f"The upload to {repository} broke off ({type(error).__name__}: {first_line(error)}). It is one commit, so "
            "nothing of it shows; whole files that have arrived are not sent again. Check the network."
        )
    return WeightsError(f"{what} Then run the same command again.")
