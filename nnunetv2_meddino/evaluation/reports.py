"""Reports of an evaluation: means over cases, JSON in nnU-Net's layout, CSV, and a table."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from nnunetv2_meddino.evaluation.cases import CaseResult, Evaluation
from nnunetv2_meddino.evaluation.results import Metric, nsd_metric, shown_metrics
from nnunetv2_meddino.files import write_json, write_text

DEFINITIONS = {
    "voxel": "surface = boundary voxels, each of weight 1; HD95 interpolated (MONAI, MedDINOv3)",
    "surfel": "surface = elements weighted by area; HD95 not interpolated (DeepMind surface-distance)",
    "NSD": "normalised surface distance at the tolerance in the key; 'class_tolerance' is the first one of each class",
    "undefined": "null: the reference lacks the class, or a distance where the prediction lacks it (n_missed)",
}

CLASS_TOLERANCE = "class_tolerance"
"""Suffix of NSD at the first tolerance of each class, where these differ."""

Row = dict[str, float | int]


@dataclass(frozen=True)
class ClassCounts:
    """Cases behind the means of one class."""

    n: int
    """Cases whose reference holds the class."""
    n_missed: int
    """Those of them whose prediction lacks it: 0 in the means of Dice and NSD, left out of those of distances."""
    n_fp_cases: int
    """Cases whose prediction alone holds the class; they are in no mean."""
    false_positive_volume_ml: float
    """Total volume predicted in those."""


@dataclass(frozen=True)
class Summary:
    """Means over cases without undefined values, by class and metric."""

    mean: dict[str, dict[str, float]]
    std: dict[str, dict[str, float]]
    """Standard deviation over cases (``n - 1``)."""
    counts: dict[str, ClassCounts]
    foreground_mean: dict[str, float]
    """Mean over classes of their means, of the metrics that every class has."""
    case_mean: dict[str, float]
    """Mean over cases of each case's mean over classes."""


def summarise(evaluation: Evaluation) -> Summary:
    """Average the metrics of all evaluated cases."""
    by_class = {
        name: [class_row(evaluation, result, name) for result in evaluation.results]
        for name in evaluation.labels.classes
    }
    mean = {name: _over(rows, _mean) for name, rows in by_class.items()}
    by_case = [_over(rows, _mean) for rows in zip(*by_class.values(), strict=True)]
    return Summary(
        mean=mean,
        std={name: _over(rows, _deviation) for name, rows in by_class.items()},
        counts={name: _counts(evaluation, name) for name in evaluation.labels.classes},
        foreground_mean=_over(list(mean.values()), _mean),
        case_mean=_over(by_case, _mean),
    )


def class_row(evaluation: Evaluation, result: CaseResult, name: str) -> Row:
    """Return the metrics of one class in one case; where tolerances differ, with NSD at the class' own first one."""
    row = result.metrics.classes[name].as_dict()
    if not _same_headline(evaluation):
        metrics, tolerance = result.metrics.classes[name], evaluation.tolerances_mm[name][0]
        for definition, boundary in (("voxel", metrics.voxel), ("surfel", metrics.surfel)):
            row[nsd_metric(definition, CLASS_TOLERANCE, "").key] = boundary.nsd[tolerance]
    return row


def summary_dict(evaluation: Evaluation) -> dict[str, Any]:
    """Return nnU-Net's ``summary.json`` with more keys, ready for strict JSON: undefined values are None."""
    summary, keys = summarise(evaluation), evaluation.labels.keys
    cases = [
        {
            "reference_file": str(result.pair.reference),
            "prediction_file": str(result.pair.prediction),
            "case": result.pair.case,
            "dimensions": result.metrics.dimensions,
            "spacing_zyx_mm": list(result.spacing_mm),
            "metrics": {key: class_row(evaluation, result, name) for name, key in keys.items()},
        }
        for result in evaluation.results
    ]
    content = {
        "foreground_mean": summary.foreground_mean,
        "case_mean": summary.case_mean,
        "mean": {keys[name]: values for name, values in summary.mean.items()},
        "std": {keys[name]: values for name, values in summary.std.items()},
        "case_counts": {keys[name]: vars(counts) for name, counts in summary.counts.items()},
        "classes": {key: name for name, key in keys.items()},
        "ignore_label": evaluation.labels.ignore_label,
        "nsd_tolerances_mm": {keys[name]: list(values) for name, values in evaluation.tolerances_mm.items()},
        "definitions": DEFINITIONS,
        "failed": [vars(failure) for failure in evaluation.failures],
        "notes": evaluation.notes,
        "metric_per_case": cases,
    }
    return _strict(content)


def write_reports(evaluation: Evaluation, path: Path | str) -> Path:
    """Write a JSON file and, beside it, a CSV file with one row per case and class, where undefined values are empty.

    Returns:
        The path of the CSV file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(summary_dict(evaluation), path)
    rows: list[dict[str, Any]] = []
    for result in evaluation.results:
        for name, metrics in result.metrics.classes.items():
            about = {
                "case": result.pair.case,
                "class": name,
                "label": evaluation.labels.keys[name],
                "dimensions": result.metrics.dimensions,
                "missed": int(metrics.missed),
                "only_predicted": int(metrics.only_predicted),
            }
            values = class_row(evaluation, result, name)
            rows.append(about | {k: "" if math.isnan(v) else v for k, v in values.items()})
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    beside = path.with_suffix(".csv")
    write_text(text.getvalue(), beside)
    return beside


def table(evaluation: Evaluation, *, stacked_heads: bool = False) -> Table:
    """Return the headline of every class and the mean: DSC, NSD in both definitions, ASSD and HD95, and the counts.

    Args:
        evaluation: The results.
        stacked_heads: Put every word of a head on its own line, for a narrow terminal.
    """
    summary, same = summarise(evaluation), _same_headline(evaluation)
    headline = {name: f"{values[0]:g}" for name, values in evaluation.tolerances_mm.items()}
    first = next(iter(headline.values()))
    at = (f"{first}mm", f"{first} mm") if same else (CLASS_TOLERANCE, "at tol.")
    metrics = shown_metrics(*at)
    result = Table(
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        caption="n: cases whose reference has the class; missed: those of them whose prediction lacks it, 0 in NSD and "
        "DSC and left out of distances; fp cases: cases whose prediction alone has it. Last row: means over classes, "
        "sums of counts.",
        caption_justify="left",
    )
    heads = [*(metric.title for metric in metrics), "n", "missed", "fp cases"]
    if not same:
        heads.insert(0, "tol. mm")
    result.add_column("class", no_wrap=True)
    for head in heads:
        result.add_column(head.replace(" ", "\n") if stacked_heads else head, justify="right", no_wrap=True)
    for name, counts in summary.counts.items():
        values = [_number(summary.mean[name][m.key], m) for m in metrics]
        numbers = [str(n) for n in (counts.n, counts.n_missed, counts.n_fp_cases)]
        result.add_row(Text(name), *([] if same else [headline[name]]), *values, *numbers)
    result.add_section()
    values = [_number(summary.foreground_mean[m.key], m) for m in metrics]
    every = summary.counts.values()
    sums = (sum(c.n for c in every), sum(c.n_missed for c in every), sum(c.n_fp_cases for c in every))
    result.add_row("mean", *([] if same else [""]), *values, *map(str, sums), style="bold")
    return result


def _same_headline(evaluation: Evaluation) -> bool:
    return len({values[0] for values in evaluation.tolerances_mm.values()}) == 1


def _counts(evaluation: Evaluation, name: str) -> ClassCounts:
    cases = [result.metrics.classes[name] for result in evaluation.results]
    alone = [case for case in cases if case.only_predicted]
    return ClassCounts(
        n=sum(case.n_ref > 0 for case in cases),
        n_missed=sum(case.missed for case in cases),
        n_fp_cases=len(alone),
        false_positive_volume_ml=math.fsum(case.false_positive_volume_ml for case in alone),
    )


def _over(rows: Iterable[Mapping[str, float]], statistic: Any) -> dict[str, float]:
    """Apply a statistic to the defined values of every metric that all rows have."""
    rows = list(rows)
    shared = [key for key in rows[0] if all(key in row for row in rows)] if rows else []
    return {key: statistic([row[key] for row in rows if not math.isnan(row[key])]) for key in shared}


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _deviation(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else math.nan


def _number(value: float, metric: Metric) -> str:
    return "-" if math.isnan(value) else f"{value:.{metric.decimals}f}"


def _strict(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: _strict(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_strict(value) for value in content]
    return None if isinstance(content, float) and math.isnan(content) else content
