"""The model card of a repository: the hub's metadata, and what is known of a model, from its provenance."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import EvalResult, ModelCardData
from numpy.typing import NDArray

from nnunetv2_meddino.command_line import REPORTED_VERSIONS
from nnunetv2_meddino.comparison.report.document import Cell, Table, to_markdown
from nnunetv2_meddino.comparison.report.report import mean_cell
from nnunetv2_meddino.comparison.scores import Scores, case_means
from nnunetv2_meddino.comparison.statistics import RESAMPLES, estimate
from nnunetv2_meddino.comparison.wording import counted
from nnunetv2_meddino.errors import WeightsError
from nnunetv2_meddino.evaluation.results import METRICS, Metric
from nnunetv2_meddino.sharing.disclosure import SEEN
from nnunetv2_meddino.sharing.model_files import SharedModel, train_command
from nnunetv2_meddino.trainers.fine_tuning import FINE_TUNING, FULL
from nnunetv2_meddino.trainers.training_input import LOADER, STOCK
from nnunetv2_meddino.weights.backbones import NO_WEIGHTS
from nnunetv2_meddino.weights.catalog import CATALOG
from nnunetv2_meddino.weights.contamination import SEEN_CASES, history
from nnunetv2_meddino.weights.trained import PROVENANCE

LIBRARY = "nnunetv2-meddino"
_TAGS = ("nnU-Net", "medical-imaging", "DINOv3")
_HUB_LICENCES = frozenset(
    (
        *("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "mpl-2.0", "gpl-3.0", "lgpl-3.0", "agpl-3.0", "cc0-1.0"),
        *(f"cc-by{terms}-4.0" for terms in ("", "-sa", "-nc", "-nd", "-nc-sa", "-nc-nd")),
    )
)
"""Licences that the hub knows by a name of its own; others it takes as ``other`` with ``license_name``."""


@dataclass(frozen=True)
class Licence:
    """Under which terms something is published."""

    name: str
    url: str | None
    stated_by: str
    """Who says so, for the card."""


def choose_licence(asked_for: str | None, origins: Iterable[Mapping[str, Any]]) -> Licence:
    """Return the licence that was asked for, or the one that the weights state; none is ever supposed.

    Args:
        asked_for: By whoever pushes.
        origins: Provenance of the weights, one for each fold.

    Raises:
        WeightsError: Neither is there, or the folds' weights are under several.
    """
    if asked_for:
        return Licence(asked_for, None, "chosen at the push")
    stated = {(origin.get("licence"), origin.get("licence_url"), origin.get("name")) for origin in origins}
    licences = {(licence, url) for licence, url, _ in stated}
    if len(licences) != 1 or None in {licence for licence, _ in licences}:
        what = "state several licences" if len(licences) > 1 else "state no licence"
        msg = (
            f"The weights that this was made from {what}, and none is supposed. Ask whoever owns them and the data, "
            "and name it: --licence cc-by-4.0, for example."
        )
        raise WeightsError(msg)
    licence, url, name = next(iter(stated))
    return Licence(str(licence), url, f"that of {name}")


def model_card(
    repository: str, model: SharedModel, scores: Scores | None, folds: Sequence[str], licence: Licence
) -> str:
    """Return the card of a trained model.

    Args:
        repository: Where it goes to, ``org/name``.
        model: What is published of it.
        scores: Of validation cases; None where they are not measured.
        folds: Whose cases these are.
        licence: Its own.
    """
    identity, method, origin = model.identity, model.identity.method, origins(model)[0]
    title = repository.partition("/")[2]
    results = {"model_name": title, "eval_results": _results(identity.dataset, scores)} if scores else {}
    parts = [
        f"# {title}",
        f"A segmentation model in nnU-Net's format: {_code(method.trainer)}, configuration "
        f"{_code(method.configuration)}, trained on {_code(identity.dataset)} (folds: {', '.join(identity.folds)}). "
        "Its weights are safetensors; no file here is a pickle.",
        "## Use",
        _block("pip install nnunetv2-meddino", f"meddino fetch {repository}", model.predict_command),
        "nnU-Net's own `nnUNetv2_predict` works on the fetched model as well.",
        "## Scores",
        _scores(scores, folds) if scores else "No validation of its folds is measured.",
        "## Training",
        _training(model),
        "## What it has seen",
        f"- Fine-tuning: {model.dataset_json.get('numTraining', '?')} cases of {_code(identity.dataset)}; no ids are "
        "listed.\n" + _seen(origin),
        *_end(licence, origin),
    ]
    return _card(_metadata(licence, "image-segmentation", origin, **results), parts)


def backbone_card(
    repository: str, filename: str, architecture: str, origin: Mapping[str, Any], licence: Licence
) -> str:
    """Return the card of a pretrained backbone.

    Args:
        repository: Where it goes to.
        filename: Of the weights there.
        architecture: What it is, in words.
        origin: Published provenance of the weights.
        licence: Its own.
    """
    parts = [
        f"# {repository.partition('/')[2]}",
        f"Pretrained weights of a DINOv3 ViT ({architecture}), to segment medical images with nnU-Net. "
        f"{_code(filename)} is a safetensors file with architecture and provenance in its header.",
        "## Use",
        _block("pip install nnunetv2-meddino", train_command(repository)),
        "## What it has seen",
        _seen(origin),
        *_end(licence, origin),
    ]
    return _card(_metadata(licence, "image-feature-extraction", origin), parts)


def origins(model: SharedModel) -> list[dict[str, Any]]:
    """Return the published provenance of the weights that each fold began with; empty where a checkpoint has none."""
    return [training[PROVENANCE].get("weights", {}) for training in model.trainings.values()]


def _metadata(licence: Licence, task: str, origin: Mapping[str, Any], **others: Any) -> ModelCardData:
    name = licence.name.lower()
    known = name in _HUB_LICENCES
    bases = (CATALOG[entry["name"]].repository for entry in history(origin) if entry.get("name") in CATALOG)
    return ModelCardData(
        license=name if known else "other",
        license_name=None if known else re.sub(r"[^a-z0-9.]+", "-", name).strip("-"),
        license_link=None if known else licence.url,
        library_name=LIBRARY,
        pipeline_tag=task,
        tags=list(_TAGS),
        base_model=next(bases, None),
        **others,
    )


def _results(dataset: str, scores: Scores) -> list[EvalResult]:
    """Return the mean of every metric, for the hub's table of results."""
    means = [(metric, estimate(case_means(scores.values[metric.key])).mean) for metric in METRICS]
    return [
        EvalResult(
            task_type="image-segmentation",
            dataset_type=dataset,
            dataset_name=dataset,
            dataset_split="validation",
            metric_type=metric.key,
            metric_name=metric.title,
            metric_value=round(mean, metric.decimals),
        )
        for metric, mean in means
        if math.isfinite(mean)
    ]


def _scores(scores: Scores, folds: Sequence[str]) -> str:
    rows = [("all classes", {metric.key: case_means(scores.values[metric.key]) for metric in METRICS})]
    for column, name in enumerate(scores.classes.values()):
        rows.append((name, {metric.key: scores.values[metric.key][:, column] for metric in METRICS}))
    table = Table(
        ("class", *(metric.title for metric in METRICS)),
        tuple((Cell(name), *(_mean(values[metric.key], metric) for metric in METRICS)) for name, values in rows),
        caption=f"{counted(len(scores.cases), 'validation case')} of {'folds' if len(folds) > 1 else 'fold'} "
        f"{', '.join(folds)}. Means over cases, in brackets their 95 % bootstrap intervals (BCa, {RESAMPLES} resamples "
        "over cases), n: cases in which a value is defined. All classes: of each case's mean over its classes.",
    )
    return to_markdown([table], Path())


def _mean(values: NDArray[np.float64], metric: Metric) -> Cell:
    found = estimate(values)
    cell = mean_cell(found, metric)
    return Cell(cell.text, "\n".join(part for part in (cell.small, f"n {found.n}") if part))


def _training(model: SharedModel) -> str:
    configuration, dataset = model.configuration, model.dataset_json
    kept = [training[PROVENANCE] for training in model.trainings.values()]
    epochs = sorted({str(training["current_epoch"] or "unknown") for training in model.trainings.values()})
    tuned = sorted({entry.get(FINE_TUNING, {}).get("name", FULL) for entry in kept if entry})
    loaders = sorted({entry.get(LOADER, {}).get("name", STOCK) for entry in kept})
    began = sorted({str(origin.get("name", "no pretrained weights that it names")) for origin in origins(model)})
    rows = {
        "channels": ", ".join(str(name) for name in dataset.get("channel_names", {}).values()),
        "classes": ", ".join(str(name) for name in dataset.get("labels", {})),
        "began with": ", ".join(began),
        "fine-tuning of the encoder": ", ".join(tuned) or "no pretrained encoder",
        "epochs": ", ".join(epochs),
        "patch, px": " x ".join(map(str, configuration.patch_size)),
        "spacing, mm": " x ".join(f"{mm:.3g}" for mm in configuration.spacing),
        "batch size": str(configuration.batch_size),
        "loader": ", ".join(loaders),
    }
    table = Table(("", ""), tuple((Cell(name), Cell(value)) for name, value in rows.items()), left=2)
    return to_markdown([table], Path())


def _seen(origin: Mapping[str, Any]) -> str:
    """Return a list of what is known of the images that pretrained weights were made from."""
    if origin.get("name") in (None, NO_WEIGHTS):
        return "- Pretraining: no pretrained weights are named."
    lines = []
    for entry in history(origin):
        if corpus := entry.get("corpus"):
            size = ", ".join(f"{corpus[key]:,} {key}" for key in ("volumes", "slices") if key in corpus)
            lines.append(
                f"- Corpus of {_code(str(entry['name']))}: hash {_code(str(corpus.get('hash')))}, {size}, of "
                f"{', '.join(corpus['sources'])}."
            )
    if counts := origin[SEEN]["ids"]:
        listed = any(SEEN_CASES in entry for entry in history(origin))
        where = "the ids are in the provenance; `meddino weights seen` looks them up" if listed else "not published"
        lines.append(
            f"- Case ids of the pretraining: {', '.join(f'{n} of {name}' for name, n in counts.items())} ({where})."
        )
    for name in origin[SEEN]["unlisted"]:
        collections = CATALOG[name].collections if name in CATALOG else ()
        named = f"; its publisher names {', '.join(collections)}" if collections else ""
        lines.append(f"- {_code(name)} lists no cases{named}.")
    return "\n".join(lines) or f"- {_code(str(origin['name']))} was made from no medical images that are known."


def _end(licence: Licence, origin: Mapping[str, Any]) -> list[str]:
    """Return the parts that every card ends with: licence, versions."""
    named = [CATALOG[entry["name"]] for entry in history(origin) if entry.get("name") in CATALOG]
    stated = {(entry["licence"], entry.get("licence_url")) for entry in history(origin) if entry.get("licence")}
    stated |= {(entry.licence, entry.licence_url) for entry in named}
    stated.discard((licence.name, licence.url))
    made_from = [
        f"- Made from weights under {name}{f', {url}' if url else ''}." for name, url in sorted(stated, key=str)
    ]
    own = f"- {licence.name}{f', {licence.url}' if licence.url else ''} ({licence.stated_by})."
    versions = ", ".join(f"{name} {version(name)}" for name in REPORTED_VERSIONS)
    return ["## Licence", "\n".join([own, *made_from]), "## Versions", f"Written by `meddino push` with {versions}."]


def _code(text: str) -> str:
    return f"`{text.replace('`', '')}`"


def _block(*lines: str) -> str:
    return "\n".join(["```bash", *lines, "```"])


def _card(data: ModelCardData, parts: Sequence[str]) -> str:
    body = "\n\n".join(part.strip() for part in parts)
    return f"---\n{data.to_yaml()}\n---\n\n{body}\n"
