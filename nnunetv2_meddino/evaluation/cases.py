"""Evaluation of the files of one case, or of many, on several cores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813

from nnunetv2_meddino import process_pool
from nnunetv2_meddino.errors import ConfigurationError, DataError
from nnunetv2_meddino.evaluation.classes import DEFAULT_TOLERANCES_MM, LabelSet, Tolerances, tolerances_by_class
from nnunetv2_meddino.evaluation.metrics import evaluate_case
from nnunetv2_meddino.evaluation.pairs import Failure, Pair, Pairing
from nnunetv2_meddino.evaluation.results import CaseMetrics
from nnunetv2_meddino.imaging.segmentation import (
    Segmentation,
    check_same_grid,
    read_segmentation,
    simpleitk_segmentation,
)

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

    work = partial(_outcome, labels=labels, tolerances_mm=tolerances)
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


def evaluate_pair(
    reference: Path | str | sitk.Image,
    prediction: Path | str | sitk.Image,
    labels: LabelSet,
    tolerances_mm: Tolerances = DEFAULT_TOLERANCES_MM,
) -> CaseMetrics:
    """Compare two label maps, each in a file or a SimpleITK image, on the same grid; for arrays see ``evaluate_case``.

    Args:
        reference: The truth; its header gives the voxel size.
        prediction: What is measured.
        labels: The classes.
        tolerances_mm: NSD tolerances, for all classes or by name of the class.

    Raises:
        DataError: A file cannot be read, the grids differ, or a label is not declared.
        ConfigurationError: A tolerance is invalid, or one of the two is neither a file nor a SimpleITK image.
    """
    first, second = _segmentation(reference, "reference"), _segmentation(prediction, "prediction")
    check_same_grid(first, second)
    return _metrics(first, second, _spacing(first), labels, tolerances_mm)


def _segmentation(given: Path | str | sitk.Image, role: str) -> Segmentation:
    if isinstance(given, sitk.Image):
        return simpleitk_segmentation(given, f"the {role} in memory")
    if isinstance(given, (str, Path)):
        return read_segmentation(Path(given))
    msg = f"The {role} is a {type(given).__name__}; give a file or a SimpleITK image, or call evaluate_case for arrays."
    raise ConfigurationError(msg)


def _outcome(pair: Pair, labels: LabelSet, tolerances_mm: Tolerances) -> CaseResult | Failure:
    """Read and evaluate one case; an error in its files is returned, not raised."""
    try:
        reference, prediction = read_segmentation(pair.reference), read_segmentation(pair.prediction)
        check_same_grid(reference, prediction, aligned=pair.aligned)
        spacing = _spacing(prediction if pair.aligned else reference)
        metrics = _metrics(reference, prediction, spacing, labels, tolerances_mm)
    except DataError as error:
        return Failure(pair.case, str(error))
    except MemoryError:
        return Failure(pair.case, f"{pair.prediction}: not enough memory; use fewer processes (-np).")
    return CaseResult(pair, spacing, metrics)


def _spacing(segmentation: Segmentation) -> tuple[float, float, float]:
    z, y, x = (round(s, SPACING_DECIMALS) for s in segmentation.grid.spacing_mm)
    return z, y, x


def _metrics(
    reference: Segmentation,
    prediction: Segmentation,
    spacing_mm: tuple[float, float, float],
    labels: LabelSet,
    tolerances_mm: Tolerances,
) -> CaseMetrics:
    """Measure; raise ``DataError`` where a volume holds a label that is not declared."""
    try:
        metrics = evaluate_case(
            reference.labels,
            prediction.labels,
            spacing_mm,
            labels.classes,
            tolerances_mm=tolerances_mm,
            ignore_label=labels.ignore_label,
        )
    except DataError as error:
        raise DataError(f"{prediction.source} against {reference.source}: {error}") from error
    for segmentation in (reference, prediction):
        _check_declared(segmentation, metrics.undeclared_labels)
    return metrics


def _killed(pair: Pair) -> Failure:
    return Failure(pair.case, f"{pair.prediction}: the process was killed, most likely for its memory.")


def _check_declared(segmentation: Segmentation, undeclared: Sequence[int]) -> None:
    found = np.intersect1d(np.unique(segmentation.labels), undeclared).astype(np.int64).tolist() if undeclared else []
    if found:
        more = f" and {len(found) - 10} more" if len(found) > 10 else ""
        values = ", ".join(map(str, found[:10]))
        msg = f"{segmentation.source} holds labels that are not declared: {values}{more}. "
        raise DataError(f"{msg}Declare them, or correct the file.")
