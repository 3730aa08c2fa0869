"""Evaluation of many cases, on several cores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunetv2_meddino import process_pool
from nnunetv2_meddino.errors import DataError
from nnunetv2_meddino.evaluation.classes import DEFAULT_TOLERANCES_MM, LabelSet, Tolerances, tolerances_by_class
from nnunetv2_meddino.evaluation.metrics import evaluate_case
from nnunetv2_meddino.evaluation.pairs import Failure, Pair, Pairing
from nnunetv2_meddino.evaluation.results import CaseMetrics
from nnunetv2_meddino.imaging.segmentation import check_same_grid, read_segmentation

SPACING_DECIMALS = 6
"""Headers store float32: 0.4 is read as 0.4000000059604645, which would put a distance beyond its tolerance."""


@dataclass(frozen=True)
class CaseResult:
    """An evaluated case."""

    pair: Pair
    spacing_mm: tuple[float, float, float]
    """Voxel size ``(z, y, x)`` that was used."""
    metrics: CaseMetrics


@dataclass(frozen=True)
class Evaluation:
    """Results of many cases, sorted by name."""

    labels: LabelSet
    tolerances_mm: dict[str, tuple[float, ...]]
    """NSD tolerances of every class."""
    results: list[CaseResult]
    failures: list[Failure]
    """Cases that could not be evaluated."""
    notes: list[str]
    """Remarks on files that were not evaluated."""


def evaluate_files(
    pairing: Pairing,
    labels: LabelSet,
    tolerances_mm: Tolerances = DEFAULT_TOLERANCES_MM,
    *,
    processes: int = 1,
    on_case: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Evaluate every case; one that cannot be evaluated becomes a failure with its reason.

    Args:
        pairing: The cases.
        labels: The classes.
        tolerances_mm: NSD tolerances, for all classes or by name of the class.
        processes: Number of spawned processes with one thread each, which changes no result; 1 works in this process.
            In a script, call this under ``if __name__ == "__main__":``.
        on_case: Called after every case with the number of finished cases and the number of all.

    Raises:
        ConfigurationError: A tolerance is invalid, or worker processes cannot start.
    """
    tolerances = tolerances_by_class(tolerances_mm, list(labels.classes))
    outcomes: list[CaseResult | Failure] = []

    def keep(outcome: CaseResult | Failure) -> None:
        outcomes.append(outcome)
        if on_case is not None:
            on_case(len(outcomes), len(pairing.pairs))

    work = partial(evaluate_pair, labels=labels, tolerances_mm=tolerances)
    process_pool.run(work, pairing.pairs, processes=processes, lost=_killed, keep=keep)
    return Evaluation(
        labels=labels,
        tolerances_mm=tolerances,
        results=sorted((o for o in outcomes if isinstance(o, CaseResult)), key=lambda result: result.pair.case),
        failures=sorted(
            [*pairing.failures, *(o for o in outcomes if isinstance(o, Failure))], key=lambda failure: failure.case
        ),
        notes=pairing.notes,
    )


def evaluate_pair(pair: Pair, labels: LabelSet, tolerances_mm: Mapping[str, tuple[float, ...]]) -> CaseResult | Failure:
    """Read and evaluate one case; an error in its files is returned, not raised."""
    try:
        reference, prediction = read_segmentation(pair.reference), read_segmentation(pair.prediction)
        check_same_grid(reference, prediction, aligned=pair.aligned)
        measured = prediction if pair.aligned else reference
        z, y, x = (round(s, SPACING_DECIMALS) for s in measured.grid.spacing_mm)
        try:
            metrics = evaluate_case(
                reference.labels,
                prediction.labels,
                (z, y, x),
                labels.classes,
                tolerances_mm=tolerances_mm,
                ignore_label=labels.ignore_label,
            )
        except DataError as error:
            raise DataError(f"{pair.prediction} against {pair.reference}: {error}") from error
        for segmentation in (reference, prediction):
            _check_declared(segmentation.labels, segmentation.path, metrics.undeclared_labels)
    except DataError as error:
        return Failure(pair.case, str(error))
    except MemoryError:
        return Failure(pair.case, f"{pair.prediction}: not enough memory; use fewer processes (-np).")
    return CaseResult(pair, (z, y, x), metrics)


def _killed(pair: Pair) -> Failure:
    return Failure(pair.case, f"{pair.prediction}: the process was killed, most likely for its memory.")


def _check_declared(labels: NDArray[Any], path: Path, undeclared: Sequence[int]) -> None:
    found = np.intersect1d(np.unique(labels), undeclared).astype(np.int64).tolist() if undeclared else []
    if found:
        more = f" and {len(found) - 10} more" if len(found) > 10 else ""
        values = ", ".join(map(str, found[:10]))
        msg = f"{path} holds labels that are not declared: {values}{more}. Declare them, or correct the file."
        raise DataError(msg)
