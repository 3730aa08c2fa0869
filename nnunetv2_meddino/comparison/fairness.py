"""What makes rows unequal beyond the method: resolution, folds, length of training, and what the weights have seen."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nnunetv2_meddino.comparison.folders import FOLD_ALL
from nnunetv2_meddino.comparison.results import DatasetResults, MethodResults
from nnunetv2_meddino.comparison.wording import counted
from nnunetv2_meddino.weights.catalog import CATALOG, CatalogEntry
from nnunetv2_meddino.weights.contamination import history, seen_cases, unlisted

# Patterns of dataset names, in lower case and without "DatasetXXX_", and the collections whose images they hold.
# nnU-Net's own names of the Decathlon tasks are bare ("Dataset003_Liver"); the Decathlon's liver images are LiTS'.
_ALIASES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"(?<![a-z])amos(?![a-z])", ("AMOS22",)),
    (r"(?<![a-z])(btcv|synapse)(?![a-z])", ("BTCV",)),
    (r"(?<![a-z])kits(?![a-z])", ("KiTS",)),
    (r"(?<![a-z])lits(?![a-z])", ("LiTS", "MSD Liver")),
    (r"(?<![a-z])chaos(?![a-z])", ("CHAOS",)),
    (r"(?<![a-z])word(?![a-z])", ("WORD",)),
    (r"abdomen[-_]?ct[-_]?1k", ("AbdomenCT-1K",)),
    (r"pancreas[-_]?ct(?![a-z])", ("Pancreas-CT",)),
    (r"(?<![a-z])ct[-_]?org", ("CT-ORG",)),
    (r"total[-_]?seg", ("TotalSegmentator",)),
    (r"abdomen[-_]?atlas", ("AbdomenAtlas 3.0",)),
    (r"^(msd[-_]?|task03[-_]?)?liver$", ("MSD Liver", "LiTS")),
    (r"^(msd[-_]?|task06[-_]?)?lung$", ("MSD Lung",)),
    (r"^(msd[-_]?|task07[-_]?)?pancreas$", ("MSD Pancreas",)),
    (r"^(msd[-_]?|task08[-_]?)?hepatic[-_]?vessel$", ("MSD Hepatic Vessel",)),
    (r"^(msd[-_]?|task09[-_]?)?spleen$", ("MSD Spleen",)),
    (r"^(msd[-_]?|task10[-_]?)?colon$", ("MSD Colon",)),
)

MIN_CASES_FOR_A_TEST = 6
"""With five pairs the smallest two-sided p of the signed-rank test is 2 / 2^5 = 0.0625."""


@dataclass(frozen=True)
class Notice:
    """A reason to doubt a comparison, or a remark."""

    dataset: str
    """The dataset."""
    rows: tuple[str, ...]
    """Names of the methods that it is about."""
    text: str
    """What is the case, with the values."""
    is_warning: bool = True
    """False for a mere remark."""


def collections_of(dataset: str) -> tuple[str, ...]:
    """Return the public collections that a dataset's name stands for; empty where it says nothing."""
    name = re.sub(r"^dataset\d{3}_", "", dataset.lower())
    return next((collections for pattern, collections in _ALIASES if re.search(pattern, name)), ())


def notices(datasets: Sequence[DatasetResults]) -> list[Notice]:
    """Return everything that makes rows unequal, warnings first."""
    found = [notice for dataset in datasets for notice in _notices(dataset)]
    return sorted(found, key=lambda notice: not notice.is_warning)


def _notices(dataset: DatasetResults) -> Iterator[Notice]:
    name, rows = dataset.name, dataset.rows
    yield from _differences(
        name,
        rows,
        "resolution",
        lambda row: (row.model.patch_size, tuple(round(mm, 4) for mm in row.model.spacing_mm)),
        _resolution,
    )
    yield from _differences(name, rows, "folds", lambda row: tuple(row.folds), lambda row: ", ".join(row.folds))
    union = {case for row in rows for case in row.scores.cases}
    yield from _differences(name, rows, "evaluated cases", lambda row: row.scores.cases, lambda row: _cases(row, union))
    yield from _differences(name, rows, "length of training", _iterations, _length)
    yield from _differences(name, rows, "loaders of the training", _loaders, lambda row: _loaders(row) or "")
    yield from _differences(name, rows, "fine-tuning", _fine_tunings, lambda row: _fine_tunings(row) or "")
    yield from _differences(name, rows, "mirroring at test time", _mirroring, lambda row: _mirroring(row) or "")
    for row in rows:
        yield from _row_notices(dataset.name, row)
    for sentence in dataset.absent:
        yield Notice(name, (), sentence)
    fewest = min(len(row.scores.cases) for row in rows)
    if len(rows) > 1 and fewest < MIN_CASES_FOR_A_TEST:
        text = (
            f"With {fewest} cases no difference can be significant at 5 %: at least {MIN_CASES_FOR_A_TEST} are needed."
        )
        yield Notice(name, (), text, is_warning=False)


def _differences(
    dataset: str,
    rows: Sequence[MethodResults],
    what: str,
    key: Callable[[MethodResults], Hashable],
    show: Callable[[MethodResults], str],
) -> Iterator[Notice]:
    """Warn where rows that are known to have a property differ in it; rows are named with their values."""
    known = [row for row in rows if key(row) is not None]
    if len({key(row) for row in known}) > 1:
        groups: dict[Hashable, list[MethodResults]] = {}
        for row in known:
            groups.setdefault(key(row), []).append(row)
        parts = [f"{', '.join(row.method.name for row in group)}: {show(group[0])}" for group in groups.values()]
        text = f"Different {what}. {'; '.join(parts)}."
        yield Notice(dataset, tuple(row.method.name for row in known), text)


def _resolution(row: MethodResults) -> str:
    patch = " x ".join(map(str, row.model.patch_size))
    return f"patch {patch} at {' x '.join(f'{mm:.3g}' for mm in row.model.spacing_mm)} mm"


def _cases(row: MethodResults, union: set[str]) -> str:
    """Say how many cases a row has and which of all it lacks, the first few of them."""
    lacking = sorted(union.difference(row.scores.cases))
    more = f" and {len(lacking) - 5} more" if len(lacking) > 5 else ""
    without = f" (without {', '.join(lacking[:5])}{more})" if lacking else ""
    return f"{counted(len(row.scores.cases), 'case')}{without}"


def _iterations(row: MethodResults) -> Hashable:
    planned = {(t.epochs_planned, t.iterations_per_epoch) for t in row.trainings.values()}
    planned = {(epochs, iterations) for epochs, iterations in planned if epochs and iterations}
    return tuple(sorted(planned)) or None


def _length(row: MethodResults) -> str:
    planned = {(t.epochs_planned, t.iterations_per_epoch) for t in row.trainings.values()}
    shown = [
        f"{counted(epochs, 'epoch')} x {counted(iterations or '?', 'iteration')}"
        for epochs, iterations in sorted(planned, key=str)
        if epochs
    ]
    return f"{' or '.join(shown)}, batch size {row.model.batch_size}"


def _loaders(row: MethodResults) -> str | None:
    return " or ".join(sorted({t.loader for t in row.trainings.values() if t.loader is not None})) or None


def _fine_tunings(row: MethodResults) -> str | None:
    """Say how the encoder was fine-tuned; None: the row has no pretrained one."""
    known = {t.fine_tuning or "as its trainer defines it" for t in row.trainings.values() if t.weights}
    return " or ".join(sorted(known)) or None


def _mirroring(row: MethodResults) -> str | None:
    """Say how predictions are mirrored, so that rows of two and three dimensions can be compared."""
    axes = {t.mirroring for t in row.trainings.values() if t.mirroring is not None}
    if not axes:
        return None
    dimensions = len(row.model.patch_size)
    names = {"all axes" if len(a) >= dimensions else "some axes" if a else "none" for a in axes}
    return " or ".join(sorted(names))


def _row_notices(dataset: str, row: MethodResults) -> Iterator[Notice]:
    name = row.method.name
    unfinished: dict[str, list[str]] = {}
    for fold, training in row.trainings.items():
        planned, done = training.epochs_planned, training.epochs_done
        if not training.finished or (planned is not None and done is not None and done < planned):
            progress = f"{'?' if done is None else done} of {counted('?' if planned is None else planned, 'epoch')}"
            progress += "" if training.finished else ", no checkpoint_final.pth"
            unfinished.setdefault(progress, []).append(fold)
    for progress, folds in unfinished.items():
        which = f"fold {folds[0]}" if len(folds) == 1 else f"folds {', '.join(folds)}"
        yield Notice(dataset, (name,), f"{name}: the training of {which} is not finished ({progress}).")
    for remark in row.remarks:
        yield Notice(dataset, (name,), f"{name} {remark}.")
    if FOLD_ALL in row.folds:
        yield Notice(dataset, (name,), f"{name}: fold 'all' is evaluated on the cases that it was trained on.")
    yield from _corpus(dataset, row)


def _corpus(dataset: str, row: MethodResults) -> Iterator[Notice]:
    """Compare the dataset with what the pretrained weights have read."""
    name = row.method.name
    origins = {str(t.weights.get("name")): t.weights for t in row.trainings.values() if t.weights}
    for weights_name, provenance in origins.items():
        if weights_name == "none":
            continue
        listed, unknown = seen_cases(provenance, row.scores.cases), unlisted(provenance)
        entry = catalog_entry(provenance)
        if listed is not None:
            yield _listed_cases(dataset, name, weights_name, listed)
        if entry is not None and entry.collections:
            yield from _collections(dataset, name, entry)
        elif listed is None or unknown:
            text = f"{name}: nothing is known of the images that its weights ({weights_name}) were pretrained on."
            if listed is not None:
                text = f"{name}: nothing is known of the images of {', '.join(unknown)}, which its weights"
                text += f" ({weights_name}) were made from."
            elif entry is not None:
                text = f"{name}: no medical collection is named for the pretraining of its weights ({weights_name})."
            yield Notice(dataset, (name,), text, is_warning=False)


def _collections(dataset: str, name: str, entry: CatalogEntry) -> Iterator[Notice]:
    """Compare the dataset's name with the collections that the publisher of weights names."""
    if shared := [c for c in collections_of(dataset) if c in entry.collections]:
        text = f"{name}: its weights ({entry.name}) were pretrained on images of {' and '.join(shared)}, possibly"
        yield Notice(dataset, (name,), f"{text} those of the cases evaluated here.")
    elif not collections_of(dataset):
        text = f"{name}: its weights ({entry.name}) were pretrained on {', '.join(entry.collections)}. The name of"
        text += " this dataset does not say whether it is drawn from one of them."
        yield Notice(dataset, (name,), text, is_warning=False)


def _listed_cases(dataset: str, name: str, weights: str, sources: Mapping[str, Sequence[str]]) -> Notice:
    """Say which of the evaluated cases are among those that the weights list."""
    seen = {case: found for case, found in sources.items() if found}
    its = f"the corpus that its weights ({weights}) were pretrained on"
    if not seen:
        text = f"{name}: none of the {len(sources)} evaluated cases has the id of a case in {its}; contents were not"
        return Notice(dataset, (name,), f"{text} compared.", is_warning=False)
    shown = [f"{case} in {' and '.join(found)}" for case, found in sorted(seen.items())[:5]]
    more = f" and {len(seen) - 5} more" if len(seen) > 5 else ""
    text = f"{name}: {len(seen)} of the {len(sources)} evaluated cases have the ids of cases in {its}:"
    return Notice(dataset, (name,), f"{text} {', '.join(shown)}{more}.")


def catalog_entry(provenance: Mapping[str, Any]) -> CatalogEntry | None:
    """Return the catalog's entry of weights, or of what they were made from; one with collections goes first."""
    found = [CATALOG[name] for w in history(provenance) if (name := str(w.get("name"))) in CATALOG]
    return next((entry for entry in found if entry.collections), found[0] if found else None)
