"""The CSV files of a report."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from nnunetv2_meddino.comparison.analysis import Analysis, Entry
from nnunetv2_meddino.comparison.folders import Method
from nnunetv2_meddino.comparison.results import DatasetResults, MethodResults
from nnunetv2_meddino.comparison.statistics import Interval
from nnunetv2_meddino.evaluation.results import METRICS
from nnunetv2_meddino.files import write_text

ALL_CLASSES = "all classes"
"""Stands in the column ``class`` for the mean over classes; the column ``label`` is empty there."""

Value = str | int | float | None


def write_summary_csv(datasets: Sequence[DatasetResults], analysis: Analysis, path: Path) -> None:
    """Write one row for each dataset, method, class and metric: mean, interval, counts, and the comparison."""
    classes = {dataset.name: dataset.rows[0].scores.classes for dataset in datasets}
    _write([_summary_row(entry, classes[entry.dataset], analysis.reference) for entry in analysis.entries], path)


def _summary_row(entry: Entry, classes: Mapping[str, str], reference: Method) -> dict[str, Value]:
    row: dict[str, Value] = {
        "dataset": entry.dataset,
        **_method(entry.method),
        "class": ALL_CLASSES if entry.label is None else classes[entry.label],
        "label": entry.label,
        "metric": entry.metric.key,
        "mean": entry.estimate.mean,
        **_bounds("", entry.estimate.interval),
        "n": entry.estimate.n,
        "n_missed": entry.n_missed,
        "n_only_predicted": entry.n_only_predicted,
        "mean_of_class_means": entry.class_mean,
    }
    against = dict.fromkeys(_COMPARISON)
    if entry.comparison is not None:
        paired = entry.comparison.paired
        against = {
            "reference": reference.name,
            "n_pairs": paired.n,
            "mean_difference": paired.mean,
            **_bounds("mean_difference_", paired.mean_interval),
            "median_difference": paired.median,
            **_bounds("median_difference_", paired.median_interval),
            "wins": paired.wins,
            "ties": paired.ties,
            "losses": paired.losses,
            "p": paired.p,
            "p_holm": entry.comparison.p_holm,
        }
    return row | against


_COMPARISON = (
    *("reference", "n_pairs", "mean_difference", "mean_difference_low", "mean_difference_high"),
    *("median_difference", "median_difference_low", "median_difference_high"),
    *("wins", "ties", "losses", "p", "p_holm"),
)


def write_cases_csv(datasets: Sequence[DatasetResults], path: Path) -> None:
    """Write one row for each dataset, method, case and class, with all metrics; undefined values are empty."""
    rows = [row for dataset in datasets for results in dataset.rows for row in _case_rows(dataset.name, results)]
    _write(rows, path)


def _case_rows(dataset: str, results: MethodResults) -> list[dict[str, Value]]:
    scores = results.scores
    return [
        {
            "dataset": dataset,
            **_method(results.method),
            "case": case,
            "class": name,
            "label": label,
            **{metric.key: float(scores.values[metric.key][row, column]) for metric in METRICS},
            "missed": int(scores.missed[row, column]),
            "only_predicted": int(scores.only_predicted[row, column]),
        }
        for row, case in enumerate(scores.cases)
        for column, (label, name) in enumerate(scores.classes.items())
    ]


def _method(method: Method) -> dict[str, Value]:
    return {
        "method": method.name,
        "trainer": method.trainer,
        "plans": method.plans,
        "configuration": method.configuration,
    }


def _bounds(prefix: str, interval: Interval | None) -> dict[str, Value]:
    return {
        f"{prefix}low": None if interval is None else interval.low,
        f"{prefix}high": None if interval is None else interval.high,
    }


def _write(rows: Sequence[Mapping[str, Value]], path: Path) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: "" if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()})
    write_text(text.getvalue(), path)
