"""Reads what nnU-Net left in its results folder: every method of a dataset, its scores, and its circumstances."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunetv2_meddino.comparison.folders import (
    FOLD_ALL,
    Folders,
    Method,
    fold_folders,
    is_trainer,
    known_trainers,
    listed,
    suggestion,
)
from nnunetv2_meddino.comparison.model import ModelFacts, Training, read_model, read_training
from nnunetv2_meddino.comparison.scores import Scores, pool, read_scores
from nnunetv2_meddino.errors import ConfigurationError, DataError
from nnunetv2_meddino.evaluation.validation import (
    SURFACE_METRICS,
    evaluate_validation,
    unlisted_cases,
    validation_cases,
)
from nnunetv2_meddino.files import read_json

logger = logging.getLogger(__name__)

RESTORE_DATASET = "Restore it from a copy of the trained model; it is that of the dataset when the model was trained."

Report = Callable[[str], None]
"""Is told what is being worked on."""


@dataclass(frozen=True)
class Selection:
    """What is compared; an empty tuple means everything that is found."""

    datasets: tuple[str, ...]
    """Numbers or names."""
    trainers: tuple[str, ...] = ()
    """Names of trainers; they also give the order of the rows."""
    configurations: tuple[str, ...] = ()
    """Names of configurations."""
    folds: tuple[str, ...] = ()
    """Names of folds. Empty: all numbered ones (``all`` has no unseen cases)."""
    plans: str | None = None
    """Name of the plans, or None for all."""

    def methods(self, plans: str) -> list[Method]:
        """Return every combination of the trainers and configurations that are named."""
        return [Method(trainer, plans, c) for trainer in self.trainers for c in self.configurations]


@dataclass(frozen=True)
class MethodResults:
    """A row: one method on one dataset."""

    method: Method
    """Trainer, plans, configuration."""
    folds: dict[str, Path]
    """Folder of every pooled fold, by its name."""
    scores: Scores
    """All cases of these folds, each once."""
    fold_of: dict[str, str]
    """Name of the fold whose prediction is scored, by case."""
    trainings: dict[str, Training]
    """How far each of the folds was trained."""
    model: ModelFacts
    """Network and resolution."""
    remarks: tuple[str, ...]
    """What is missing or odd in the folders, each a sentence without its subject."""


@dataclass(frozen=True)
class DatasetResults:
    """All methods of a dataset."""

    name: str
    """``DatasetXXX_Name``."""
    dataset_json: dict[str, Any]
    """Content of its ``dataset.json``."""
    rows: list[MethodResults]
    """Methods with scores."""
    absent: list[str] = field(default_factory=list)
    """What was asked for and has no scores, each a sentence."""


def collect(
    selection: Selection, folders: Folders, *, processes: int = 1, report: Report = lambda _: None
) -> list[DatasetResults]:
    """Read every method of every dataset, computing surface metrics where a validation has none.

    Args:
        selection: What to compare.
        folders: nnU-Net's folders.
        processes: Processes that compute missing surface metrics.
        report: Told what is being read or computed.

    Raises:
        ConfigurationError: A trainer or configuration is unknown, or fold ``all`` is mixed with others.
        DataError: A dataset is unknown or without results, methods disagree on its classes, or a file is damaged.
    """
    if FOLD_ALL in selection.folds and len(selection.folds) > 1:
        msg = "Fold 'all' validates on its own training cases and cannot be pooled with other folds. Compare it alone."
        raise ConfigurationError(msg)
    names = list(dict.fromkeys(folders.dataset(identifier) for identifier in selection.datasets))
    found = {name: folders.methods(name) for name in names}
    _check_names(selection, [method for methods in found.values() for method in methods])
    results = []
    for name in names:
        methods = [method for method in found[name] if _selected(method, selection)]
        order = {trainer: index for index, trainer in enumerate(selection.trainers)}
        methods.sort(key=lambda method: (order.get(method.trainer, 0), method))
        results.append(_dataset(name, methods, selection, folders, processes, report))
    return results


def _selected(method: Method, selection: Selection) -> bool:
    return (
        (not selection.trainers or method.trainer in selection.trainers)
        and (not selection.configurations or method.configuration in selection.configurations)
        and selection.plans in (None, method.plans)
    )


def _check_names(selection: Selection, methods: Sequence[Method]) -> None:
    """Refuse names that nothing found and nothing installed has; a name that merely has no results is no error."""
    trainers = {method.trainer for method in methods}
    for trainer in selection.trainers:
        if trainer not in trainers and not is_trainer(trainer, known := known_trainers()):
            msg = f"Trainer {trainer} is unknown.{suggestion(trainer, known | trainers)}"
            raise ConfigurationError(f"{msg} With results there are: {listed(trainers)}.")
    configurations = {method.configuration for method in methods}
    for configuration in selection.configurations:
        if configuration not in configurations:
            msg = f"No results of configuration {configuration}.{suggestion(configuration, configurations)}"
            raise ConfigurationError(f"{msg} With results there are: {listed(configurations)}; --run makes others.")


def _dataset(
    name: str, methods: Sequence[Method], selection: Selection, folders: Folders, processes: int, report: Report
) -> DatasetResults:
    rows, absent = [], []
    for trainer in selection.trainers:
        if trainer not in {method.trainer for method in methods}:
            absent.append(f"{trainer} has no results.")
    for method in methods:
        report(f"{name}: {method.name}")
        row = _method(name, method, selection, folders, processes, report)
        if isinstance(row, str):
            absent.append(f"{method.name} {row}")
        else:
            rows.append(row)
    if not rows:
        why = f" ({' '.join(absent)})" if absent else ""
        msg = f"No results of {name} to compare in {folders.results / name}{why}."
        raise DataError(f"{msg} Train and validate first, or let --run do it.")
    classes = rows[0].scores.classes
    for row in rows[1:]:
        if row.scores.classes != classes:
            declared = (", ".join(f"{k} {n}" for k, n in r.scores.classes.items()) for r in (rows[0], row))
            msg = "{} and {} were trained with different labels of {} ({}) and cannot be compared."
            msg = msg.format(rows[0].method.name, row.method.name, name, "; ".join(declared))
            raise DataError(f"{msg} Name the methods that belong together with --trainers and --configurations.")
    dataset_json = folders.model(name, rows[0].method) / "dataset.json"  # that of the training: it has these classes
    return DatasetResults(name, read_json(dataset_json, DataError, RESTORE_DATASET), rows, absent)


def _method(
    name: str, method: Method, selection: Selection, folders: Folders, processes: int, report: Report
) -> MethodResults | str:
    """Return the row, or why there is none."""
    model_folder = folders.model(name, method)
    present = fold_folders(model_folder)
    wanted = selection.folds or tuple(fold for fold in present if fold != FOLD_ALL)
    remarks: list[str] = []
    parts: list[Scores] = []
    pooled: dict[str, Path] = {}
    fold_of: dict[str, str] = {}
    for fold in wanted:
        folder = present.get(fold)
        if folder is None:
            remarks.append(f"has no fold {fold}")
        elif not (folder / "validation" / "summary.json").is_file():
            remarks.append(f"has no finished validation of fold {fold}")
        else:
            scores, found = _fold(name, model_folder, folder, folders, processes, report)
            remarks += found
            if twice := sorted(fold_of.keys() & set(scores.cases)):
                remarks.append(f"has cases in several folds, of which the first counts: {', '.join(twice)}")
            fold_of = dict.fromkeys(scores.cases, fold) | fold_of
            parts.append(scores)
            pooled[fold] = folder
    if not parts or not any(part.cases for part in parts):
        return "has no validated cases: it " + ("; it ".join(remarks) or "has no trained fold") + "."
    return MethodResults(
        method=method,
        folds=pooled,
        scores=pool(parts),
        fold_of=fold_of,
        trainings={fold: read_training(folder) for fold, folder in pooled.items()},
        model=read_model(model_folder, method),
        remarks=tuple(remarks),
    )


def _fold(
    name: str, model_folder: Path, fold_folder: Path, folders: Folders, processes: int, report: Report
) -> tuple[Scores, list[str]]:
    """Return the scores of a fold's validation cases, and remarks on its folder.

    Surface metrics are computed where they are missing, older than the validation, or not of all its cases alone.
    """
    validation = fold_folder / "validation"
    gt = folders.preprocessed / name / "gt_segmentations"
    fold = fold_folder.name.removeprefix("fold_")
    dataset_json = read_json(model_folder / "dataset.json", DataError, RESTORE_DATASET)
    listed = validation_cases(validation, gt, dataset_json["file_ending"])
    scores, failed = stored_scores(fold_folder) or (None, [])
    if scores is None or failed or (listed is not None and set(scores.cases) != set(listed)):
        report(f"{name}: surface metrics of {model_folder.name}, {fold_folder.name}")
        evaluate_validation(validation, gt, dataset_json, cases=listed, processes=processes)
        scores, failed = read_scores(validation / SURFACE_METRICS)
    remarks = []
    if failed:
        remarks.append(f"has cases in fold {fold} that could not be evaluated: {', '.join(failed)}")
    if listed is None:
        remarks.append(
            f"has a fold {fold} whose validation list is not known ({gt.parent / 'splits_final.json'} is missing): "
            "every prediction in it counts"
        )
    elif others := unlisted_cases(validation, dataset_json["file_ending"], listed):
        remarks.append(
            f"has predictions in fold {fold} that are not scored, for its validation list does not name their cases: "
            f"{', '.join(others)}"
        )
    return scores, remarks


def stored_scores(fold_folder: Path) -> tuple[Scores, list[str]] | None:
    """Return what ``read_scores`` reads of a fold's validation; None where it is not measured, or validated since.

    Raises:
        DataError: As ``read_scores``.
    """
    path, summary = (fold_folder / "validation" / name for name in (SURFACE_METRICS, "summary.json"))
    measured = path.is_file() and summary.is_file() and path.stat().st_mtime >= summary.stat().st_mtime
    return read_scores(path) if measured else None
