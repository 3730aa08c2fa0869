"""The scores of a method: one value for each case, class and metric, read from the surface metrics of its folds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunetv2_meddino.errors import DataError
from nnunetv2_meddino.evaluation.results import METRICS
from nnunetv2_meddino.files import read_json


@dataclass(frozen=True)
class Scores:
    """Scores of C cases and K classes; NaN where a value is undefined."""

    cases: tuple[str, ...]
    """Names of the cases, in order."""
    classes: dict[str, str]
    """Name of each class by nnU-Net's key of it (``1``, or ``(1, 2)`` for a region)."""
    values: dict[str, NDArray[np.float64]]
    """``(C, K)`` by key of the metric."""
    missed: NDArray[np.bool_]
    """``(C, K)``: the reference holds the class and the prediction does not."""
    only_predicted: NDArray[np.bool_]
    """``(C, K)``: the prediction alone holds it; such a cell is undefined in every metric."""

    def select(self, cases: Sequence[str]) -> Scores:
        """Return the scores of some of the cases, in the order given."""
        rows = [self.cases.index(case) for case in cases]
        return Scores(
            tuple(cases),
            self.classes,
            {key: values[rows] for key, values in self.values.items()},
            self.missed[rows],
            self.only_predicted[rows],
        )


def case_means(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return each case's mean over its defined classes, ``(C, K)`` to ``(C,)``; NaN for a case that has none."""
    counts = np.count_nonzero(~np.isnan(values), axis=1)
    return np.divide(np.nansum(values, axis=1), counts, out=np.full(len(values), np.nan), where=counts > 0)


def read_scores(path: Path) -> tuple[Scores, list[str]]:
    """Read a ``surface_metrics.json``.

    Returns:
        The scores, and the names of the cases that could not be evaluated.

    Raises:
        DataError: The file is no such file, or was made with tolerances that leave out those of ``METRICS``.
    """
    content = read_json(path, DataError, "Move it away; the predictions are then measured again.")
    try:
        classes = {str(key): str(name) for key, name in content["classes"].items()}
        rows: list[Mapping[str, Any]] = content["metric_per_case"]
        cells = [[row["metrics"][key] for key in classes] for row in rows]
        values = {
            metric.key: np.array([[_number(cell[metric.key]) for cell in row] for row in cells]).reshape(
                len(rows), len(classes)
            )
            for metric in METRICS
        }
        counts = np.array([[(cell["n_ref"], cell["n_pred"]) for cell in row] for row in cells])
        counts = counts.reshape(len(rows), len(classes), 2)
        scores = Scores(
            cases=tuple(str(row["case"]) for row in rows),
            classes=classes,
            values=values,
            missed=(counts[..., 0] > 0) & (counts[..., 1] == 0),
            only_predicted=(counts[..., 0] == 0) & (counts[..., 1] > 0),
        )
        failed = [str(failure["case"]) for failure in content["failed"]]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        msg = f"{path} lacks what a comparison needs ({type(error).__name__}: {error})."
        raise DataError(
            f"{msg} It may be of other tolerances or damaged: remove it, and it is computed anew."
        ) from error
    return scores, failed


def pool(parts: Sequence[Scores]) -> Scores:
    """Return the cases of several folds together; a case of two folds keeps its place in the first.

    Raises:
        DataError: The folds declare different classes.
    """
    if any(part.classes != parts[0].classes for part in parts):
        msg = (
            f"Folds of one model declare different classes: {'; '.join(', '.join(p.classes.values()) for p in parts)}."
        )
        raise DataError(f"{msg} Remove their surface_metrics.json; they are computed anew.")
    where: dict[str, tuple[int, int]] = {}
    for index, part in enumerate(parts):
        for row, case in enumerate(part.cases):
            where.setdefault(case, (index, row))
    cases = sorted(where)

    def gather(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
        empty = arrays[0][:0]
        return np.stack([arrays[where[case][0]][where[case][1]] for case in cases]) if cases else empty

    return Scores(
        tuple(cases),
        parts[0].classes,
        {metric.key: gather([part.values[metric.key] for part in parts]) for metric in METRICS},
        gather([part.missed for part in parts]),
        gather([part.only_predicted for part in parts]),
    )


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
