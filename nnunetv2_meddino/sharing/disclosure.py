"""What of a model leaves this machine: names of files, folders and cases stay, unless the cases are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nnunetv2_meddino.trainers.fine_tuning import FINE_TUNING
from nnunetv2_meddino.trainers.training_input import LOADER
from nnunetv2_meddino.weights.contamination import SEEN_CASES, is_several, listed_cases, unlisted

_DATASET = (
    *("channel_names", "modality", "labels", "regions_class_order", "file_ending", "overwrite_image_reader_writer"),
    "numTraining",
)
"""What prediction reads of ``dataset.json``, and the number of training cases; elsewhere it may list files by name."""

_ORIGIN = (
    *("name", "sha256", "size_bytes", "format", "licence", "licence_url", "input_statistics"),
    *("trainer", "dataset", "fold", "epochs", FINE_TUNING, "step"),
)
_CORPUS = ("hash", "volumes", "slices")
SEEN = "seen"
"""Key, in published provenance, of what is told of seen cases without their ids."""

_PUBLIC_SOURCE = "hub: "
"""Beginning of the source of weights from a repository; any other source is a path."""


def published_dataset(dataset_json: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is published of ``dataset.json``."""
    return {key: dataset_json[key] for key in _DATASET if key in dataset_json}


def published_origin(provenance: Mapping[str, Any], *, with_cases: bool) -> dict[str, Any]:
    """Return what is published of the provenance of weights, and of all that they were made from.

    Without the lists of cases the keys of the lists are absent, too: such weights do not say what they have seen.

    Args:
        provenance: As ``read_weights`` returns it and trainers keep it.
        with_cases: Whether the ids of the cases that they have seen are published.

    Returns:
        JSON values; under ``SEEN`` the number of ids by collection, and the names of weights that list none.
    """
    counts = {source: len(ids) for source, ids in listed_cases(provenance).items()}
    return _published(provenance, with_cases) | {SEEN: {"ids": counts, "unlisted": list(unlisted(provenance))}}


def _published(provenance: Mapping[str, Any], with_cases: bool) -> dict[str, Any]:
    result = {key: provenance[key] for key in _ORIGIN if key in provenance}
    if str(provenance.get("source")).startswith(_PUBLIC_SOURCE):
        result["source"] = provenance["source"]
    if isinstance(configuration := provenance.get("configuration"), str):  # that of a pretraining holds paths
        result["configuration"] = configuration
    if corpus := provenance.get("corpus"):
        result["corpus"] = {key: corpus[key] for key in _CORPUS if key in corpus}
        result["corpus"]["sources"] = sorted(corpus.get("sources", ()))
    if with_cases and SEEN_CASES in provenance:
        result[SEEN_CASES] = provenance[SEEN_CASES]
    derived_from = provenance.get("derived_from")
    if not isinstance(derived_from, Mapping):
        result["derived_from"] = derived_from
    elif is_several(derived_from):
        result["derived_from"] = {name: _published(origin, with_cases) for name, origin in derived_from.items()}
    else:
        result["derived_from"] = _published(derived_from, with_cases)
    return result


def published_training(kept: Mapping[str, Any], *, with_cases: bool) -> dict[str, Any]:
    """Return what is published of what our trainers keep in a checkpoint; random states stay.

    Args:
        kept: ``init_args['meddino']``.
        with_cases: As for ``published_origin``.
    """
    result = {key: kept[key] for key in (FINE_TUNING,) if key in kept}
    if loader := kept.get(LOADER):
        result[LOADER] = {"name": loader["name"]}
    if weights := kept.get("weights"):
        result["weights"] = published_origin(weights, with_cases=with_cases)
    return result
