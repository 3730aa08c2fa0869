"""All numbers of a report: means with intervals, and every method against the reference, corrected together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from nnunetv2_meddino.comparison.folders import Method, listed, suggestion
from nnunetv2_meddino.comparison.results import DatasetResults, MethodResults
from nnunetv2_meddino.comparison.scores import Scores, case_means
from nnunetv2_meddino.comparison.statistics import Estimate, Paired, estimate, holm, paired
from nnunetv2_meddino.errors import ConfigurationError
from nnunetv2_meddino.evaluation.results import METRICS, Metric

DEFAULT_REFERENCE = "nnUNetTrainer"


@dataclass(frozen=True)
class Comparison:
    """A method against the reference on the cases that both have, and its p-value within its family."""

    paired: Paired
    p_holm: float | None


@dataclass(frozen=True)
class Entry:
    """One metric of one method on one dataset."""

    dataset: str
    """Name of the dataset."""
    method: Method
    """The row."""
    label: str | None
    """nnU-Net's key of the class, or None: each case's mean over its classes."""
    metric: Metric
    """The metric."""
    estimate: Estimate
    """Mean over cases."""
    class_mean: float
    """Mean over classes of their means, nnU-Net's ``foreground_mean``; NaN for a single class' entry."""
    n_missed: int
    """Cells of these cases in which the reference has the class and the prediction lacks it. They are 0 in Dice and NSD
    and left out of distances."""
    n_only_predicted: int
    """Cells in which the prediction alone has the class; left out of everything."""
    comparison: Comparison | None = None
    """Against the reference; None for the reference itself, and where the dataset lacks it."""


@dataclass(frozen=True)
class Analysis:
    """All entries, and the sizes of the two families of tests."""

    reference: Method
    entries: list[Entry]
    family: int
    """Tests of the means over classes: datasets x metrics x methods."""
    exploratory_family: int
    """Tests of single classes."""

    def entry(self, dataset: str, method: Method, metric: Metric, label: str | None = None) -> Entry:
        """Return one of the entries."""
        key = (dataset, method, metric, label)
        return next(e for e in self.entries if (e.dataset, e.method, e.metric, e.label) == key)


def choose_reference(name: str | None, methods: Sequence[Method]) -> Method:
    """Return the method that the others are compared with.

    Args:
        name: A trainer, or ``Trainer__Plans__configuration``. None takes nnUNetTrainer where it has a row (the first of
            them), otherwise the first row.
        methods: The rows, at least one.

    Raises:
        ConfigurationError: No row has this name, or several rows are of this trainer.
    """
    methods = list(dict.fromkeys(methods))
    if name is None:
        stock = [method for method in methods if method.trainer == DEFAULT_REFERENCE]
        return (stock or methods)[0]
    found = [method for method in methods if name in (method.name, method.trainer)]
    names = {method.name for method in methods}
    if len(found) > 1:
        msg = f"--reference {name} is any of {', '.join(method.name for method in found)}. Give one of these names."
        raise ConfigurationError(msg)
    if not found:
        close = suggestion(name, names | {method.trainer for method in methods})
        raise ConfigurationError(f"--reference {name} is not among the rows.{close} The rows are: {listed(names)}.")
    return found[0]


def analyse(datasets: Sequence[DatasetResults], reference: Method) -> Analysis:
    """Estimate every mean and compare every method with the reference on identical cases.

    P-values of the means over classes are corrected together over datasets, metrics and methods; those of single
    classes, which only explore, are corrected together as a family of their own.
    """
    entries: list[Entry] = []
    for dataset in datasets:
        base = next((row for row in dataset.rows if row.method == reference), None)
        for row in dataset.rows:
            against = None if base is None or base is row else base
            entries.extend(_entries(dataset.name, row, against))
    main = _corrected([entry for entry in entries if entry.label is None])
    single = _corrected([entry for entry in entries if entry.label is not None])
    return Analysis(reference, main + single, _tests(main), _tests(single))


def _entries(dataset: str, row: MethodResults, reference: MethodResults | None) -> Iterable[Entry]:
    scores = row.scores
    for metric in METRICS:
        values = scores.values[metric.key]
        class_estimates = [estimate(values[:, column]) for column in range(values.shape[1])]
        means = [e.mean for e in class_estimates if e.n]
        yield Entry(
            dataset=dataset,
            method=row.method,
            label=None,
            metric=metric,
            estimate=estimate(case_means(values)),
            class_mean=sum(means) / len(means) if means else float("nan"),
            n_missed=int(scores.missed.sum()),
            n_only_predicted=int(scores.only_predicted.sum()),
            comparison=_compare(metric, scores, reference, None),
        )
        for column, (label, class_estimate) in enumerate(zip(scores.classes, class_estimates, strict=True)):
            yield Entry(
                dataset=dataset,
                method=row.method,
                label=label,
                metric=metric,
                estimate=class_estimate,
                class_mean=float("nan"),
                n_missed=int(scores.missed[:, column].sum()),
                n_only_predicted=int(scores.only_predicted[:, column].sum()),
                comparison=_compare(metric, scores, reference, column),
            )


def _compare(metric: Metric, scores: Scores, reference: MethodResults | None, column: int | None) -> Comparison | None:
    """Pair two methods on the cells that are defined in both, so that a missed class favours neither."""
    if reference is None:
        return None
    ours, theirs = paired_cells(metric, scores, reference.scores)
    if column is None:
        a, b = case_means(ours), case_means(theirs)
    else:
        a, b = ours[:, column], theirs[:, column]
    return Comparison(paired(a, b, higher_is_better=metric.higher_is_better), None)


def common_cases(a: Scores, b: Scores) -> list[str]:
    """Return the cases that both have, in order."""
    return [case for case in a.cases if case in set(b.cases)]


def paired_cells(metric: Metric, a: Scores, b: Scores) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return both methods' values ``(C, K)`` of their common cases; what is undefined in one is NaN in both."""
    cases = common_cases(a, b)
    ours, theirs = a.select(cases).values[metric.key].copy(), b.select(cases).values[metric.key].copy()
    undefined = np.isnan(ours) | np.isnan(theirs)
    ours[undefined] = theirs[undefined] = np.nan
    return ours, theirs


def _corrected(entries: list[Entry]) -> list[Entry]:
    adjusted = holm([None if e.comparison is None else e.comparison.paired.p for e in entries])
    return [
        e if e.comparison is None else replace(e, comparison=replace(e.comparison, p_holm=p))
        for e, p in zip(entries, adjusted, strict=True)
    ]


def _tests(entries: Iterable[Entry]) -> int:
    return sum(e.comparison is not None and e.comparison.p_holm is not None for e in entries)
