"""Evaluation of many cases: what the classes and tolerances are, and the cases on several cores."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunetv2_meddino import process_pool
from nnunetv2_meddino.errors import ConfigurationError, DataError
from nnunetv2_meddino.evaluation.files import Failure, Pair, Pairing, check_same_grid, read_segmentation
from nnunetv2_meddino.evaluation.metrics import evaluate_case
from nnunetv2_meddino.evaluation.results import CaseMetrics

DEFAULT_TOLERANCES_MM = (1.0, 2.0)
"""Tolerances of NSD; the first, the headline, is that of the MedDINOv3 paper."""

SPACING_DECIMALS = 6
"""Headers store float32: 0.4 comes as 0.4000000059604645 and would move a distance beyond its tolerance."""

Tolerances = float | Iterable[float] | Mapping[str, float | Iterable[float]]


@dataclass(frozen=True)
class LabelSet:
    """What is evaluated.

    Attributes:
        classes: The labels of each class, by its name.
        keys: The name that nnU-Net's ``summary.json`` has for each class: ``1``, or ``(1, 2)`` for a region.
        ignore_label: Label of voxels of the reference that count for nothing.
    """

    classes: dict[str, tuple[int, ...]]
    keys: dict[str, str]
    ignore_label: int | None = None

    @classmethod
    def from_json(cls, content: Any, source: str) -> LabelSet:
        """Take the classes from nnU-Net's ``dataset.json``, from ``{name: id or [ids]}``, or from ``[id or [ids]]``.

        Background is left out; ``ignore`` names the label that counts for nothing. ``{"id": "name"}`` is understood.

        Args:
            content: What was read from the file.
            source: Its name, for messages.

        Raises:
            ConfigurationError: The classes are in another form, empty, or contradict one another.
        """
        if isinstance(content, Mapping) and isinstance(content.get("labels"), (Mapping, list)):
            content = content["labels"]
        if isinstance(content, list):
            content = {_key(entry): entry for entry in content}
        if not isinstance(content, Mapping):
            raise ConfigurationError(f"{source} must hold a dataset.json, {{name: id or [ids]}} or a list of ids.")
        if content and all(k.isdecimal() and isinstance(v, str) for k, v in content.items()):
            content = {name: int(label) for label, name in content.items()}
        entries = dict(content)
        ignored = entries.pop("ignore", None)
        labels = {name: _labels(name, entry, source) for name, entry in entries.items()}
        labels = {name: own for name, own in labels.items() if set(own) != {0}}
        with_regions = any(len(own) > 1 for own in labels.values())
        keys = {
            n: _key(list(own) if with_regions and isinstance(entries[n], list) else own[0]) for n, own in labels.items()
        }
        if ignored is not None and (len(_labels("ignore", ignored, source)) != 1 or isinstance(ignored, list)):
            raise ConfigurationError(f"The ignore label in {source} must be one whole number, not {ignored!r}.")
        for name, own in labels.items():
            if ignored in own:
                raise ConfigurationError(f"Class {name!r} in {source} contains the ignore label {ignored}.")
        if not labels or len(set(keys.values())) < len(keys):
            msg = f"{source} declares {'the same labels under two names' if labels else 'no class but background'}."
            raise ConfigurationError(msg)
        return cls(labels, keys, ignored)


def _labels(name: str, entry: Any, source: str) -> tuple[int, ...]:
    values = entry if isinstance(entry, list) else [entry]
    if not values or not all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in values):
        msg = f"Class {name!r} in {source} must be a label or a list of labels, whole numbers from 0, not {entry!r}."
        raise ConfigurationError(msg)
    return tuple(values)


def _key(entry: Any) -> str:
    return str(tuple(entry)) if isinstance(entry, list) else str(entry)


def tolerances_by_class(tolerances_mm: Tolerances, labels: LabelSet) -> dict[str, tuple[float, ...]]:
    """Return the tolerances of every class, in the order given and each once; the first is the headline.

    Raises:
        ConfigurationError: A class is unknown or has no tolerance, or a value is no length.
    """
    if not isinstance(tolerances_mm, Mapping):
        values = tuple(tolerances_mm) if isinstance(tolerances_mm, Iterable) else (tolerances_mm,)
        tolerances_mm = dict.fromkeys(labels.classes, values)
    if unknown := sorted(tolerances_mm.keys() - labels.classes.keys()):
        msg = f"NSD tolerances name unknown classes: {', '.join(unknown)}. The classes are {', '.join(labels.classes)}."
        raise ConfigurationError(msg)
    if missing := [name for name in labels.classes if name not in tolerances_mm]:
        raise ConfigurationError(f"No NSD tolerance is given for {', '.join(missing)}.")
    result = {}
    for name in labels.classes:
        given = tolerances_mm[name]
        own = tuple(dict.fromkeys(float(t) for t in (given if isinstance(given, Iterable) else (given,))))
        alike = len({f"{t:g}" for t in own}) < len(own)
        if not own or alike or not all(math.isfinite(t) and t >= 0 for t in own):
            msg = f"The NSD tolerances of {name!r} must be different lengths in mm, 0 or more, not {own}."
            raise ConfigurationError(msg)
        result[name] = own
    return result


@dataclass(frozen=True)
class CaseResult:
    """An evaluated case; spacing ``(z, y, x)`` as it was used."""

    pair: Pair
    spacing_mm: tuple[float, float, float]
    metrics: CaseMetrics


@dataclass(frozen=True)
class Evaluation:
    """All cases of one call, each in the order of their names.

    Attributes:
        labels: What was evaluated.
        tolerances_mm: Tolerances of NSD of every class.
        results: Evaluated cases.
        failures: Cases that could not be evaluated.
        notes: Remarks on files that were not looked at.
    """

    labels: LabelSet
    tolerances_mm: dict[str, tuple[float, ...]]
    results: list[CaseResult]
    failures: list[Failure]
    notes: list[str]


def evaluate_files(
    pairing: Pairing,
    labels: LabelSet,
    tolerances_mm: Tolerances = DEFAULT_TOLERANCES_MM,
    *,
    processes: int = 1,
    on_case: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Evaluate the cases that can be, and say of the others why not; the number of processes changes no result.

    Args:
        pairing: The cases.
        labels: The classes.
        tolerances_mm: Tolerances of NSD, for all classes or by name of the class.
        processes: Spawned processes of one thread each; 1 works in this process. In a script, call this under
            ``if __name__ == "__main__":``.
        on_case: Called after every case with the number of finished cases and of all.

    Raises:
        ConfigurationError: A tolerance makes no sense, or worker processes cannot start.
    """
    tolerances = tolerances_by_class(tolerances_mm, labels)
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
    """Read and evaluate one case; what is wrong with its files is returned, not raised."""
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
