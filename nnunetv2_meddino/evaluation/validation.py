"""Surface metrics after a trainer's validation, beside nnU-Net's own ``summary.json``."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nnunetv2_meddino.errors import DataError
from nnunetv2_meddino.evaluation.cases import evaluate_files
from nnunetv2_meddino.evaluation.classes import DEFAULT_TOLERANCES_MM, LabelSet, Tolerances
from nnunetv2_meddino.evaluation.pairs import Failure, Pair, Pairing
from nnunetv2_meddino.evaluation.reports import write_reports
from nnunetv2_meddino.evaluation.results import ASSD_VOXEL, NSD_VOXEL

logger = logging.getLogger(__name__)

SURFACE_METRICS = "surface_metrics.json"
"""Name of the file in the validation folder; the CSV file beside it has the same stem."""

LOGGED = (NSD_VOXEL.key, ASSD_VOXEL.key)
"""Keys of the means over classes that the training log shows."""


def evaluate_validation(
    validation_folder: Path,
    gt_folder: Path,
    dataset_json: Mapping[str, Any],
    *,
    cases: Collection[str] | None = None,
    tolerances_mm: Tolerances = DEFAULT_TOLERANCES_MM,
    processes: int = 1,
) -> Path:
    """Evaluate the predictions of a fold's validation cases with surface metrics, each on the grid of its image.

    nnU-Net leaves predictions of an earlier split in the folder, and the fold may have been trained on their cases:
    they are not scored, and a note names them. Cases that cannot be evaluated are logged and listed in the file.
    ``summary.json`` is not touched. Call it on one rank only. Of the references' headers only the shape is used, as
    nnU-Net matches labels to images voxel by voxel; predictions have the images' spacing.

    Args:
        validation_folder: ``fold_X/validation``.
        gt_folder: ``nnUNet_preprocessed/DatasetXXX_Name/gt_segmentations``.
        dataset_json: Content of ``dataset.json``: labels, regions, ignore label and file ending.
        cases: The fold's validation cases. None: those of ``validation_cases``; if they are unknown, every prediction
            is scored and a note says so.
        tolerances_mm: NSD tolerances.
        processes: Number of spawned processes; each imports the script that trains.

    Returns:
        ``validation_folder/surface_metrics.json``; the CSV file lies beside it.

    Raises:
        ConfigurationError: ``dataset_json`` declares no usable classes, or a tolerance is invalid.
        DataError: A folder is missing, ``splits_final.json`` is damaged, or no case is known and none predicted.
    """
    labels = LabelSet.from_json(dataset_json, "dataset.json")
    ending = dataset_json["file_ending"]
    predicted = _case_names(validation_folder, ending)
    _case_names(gt_folder, ending)
    notes = []
    if cases is None:
        cases = validation_cases(validation_folder, gt_folder, ending)
    if cases is None:
        if not predicted:
            msg = f"{validation_folder} holds no segmentation (a file that ends in {ending}). Validate the fold again."
            raise DataError(msg)
        cases = predicted
        notes.append(
            f"The validation cases of {validation_folder.absolute().parent.name} are not known (no such split in "
            f"{gt_folder.parent}): every prediction was scored."
        )
    elif others := unlisted_cases(validation_folder, ending, cases):
        notes.append(
            f"{validation_folder} holds predictions of cases that are not in the fold's validation list; they were "
            f"not scored, but nnU-Net's summary.json counts them: {', '.join(others)}."
        )
    evaluation = evaluate_files(
        _pairing(validation_folder, gt_folder, sorted(set(cases)), ending, notes),
        labels,
        tolerances_mm,
        processes=processes,
    )
    for failure in evaluation.failures:
        logger.warning("No surface metrics of case %s: %s", failure.case, failure.message)
    for note in evaluation.notes:
        logger.warning("%s", note)
    path = validation_folder / SURFACE_METRICS
    write_reports(evaluation, path)
    logger.info("Surface metrics of %d cases: %s", len(evaluation.results), path)
    return path


def validation_cases(validation_folder: Path, gt_folder: Path, ending: str) -> list[str] | None:
    """Return the cases that nnU-Net validates a fold on, in order.

    They are the fold's in ``splits_final.json`` beside ``gt_folder``; a random fifth, drawn as nnU-Net does, if that
    file has fewer folds; and all cases for fold ``all``.

    Args:
        validation_folder: ``fold_X/validation``.
        gt_folder: ``nnUNet_preprocessed/DatasetXXX_Name/gt_segmentations``.
        ending: File name ending of the segmentations.

    Returns:
        The names; None if the folder does not belong to a fold or there is no ``splits_final.json``.

    Raises:
        DataError: ``splits_final.json`` is damaged, or ``gt_folder`` is missing.
    """
    fold = validation_folder.absolute().parent.name.removeprefix("fold_")
    if fold == "all":
        return _case_names(gt_folder, ending)
    splits_file = gt_folder.parent / "splits_final.json"
    if not fold.isdecimal() or not splits_file.is_file():
        return None
    try:
        splits = json.loads(splits_file.read_text())
        if int(fold) < len(splits):
            return sorted(str(case) for case in splits[int(fold)]["val"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        msg = f"{splits_file} is not a list of splits as nnU-Net writes it ({type(error).__name__}: {error})."
        raise DataError(f"{msg} Restore it: it lists the cases that a fold was not trained on.") from error
    known = _case_names(gt_folder, ending)
    random = np.random.RandomState(12345 + int(fold))  # as nnUNetTrainer.do_split
    trained = set(random.choice(len(known), int(len(known) * 0.8), replace=False).tolist())
    return [case for index, case in enumerate(known) if index not in trained]


def unlisted_cases(validation_folder: Path, ending: str, cases: Collection[str]) -> list[str]:
    """Return the cases with a prediction in the folder that are not among ``cases``, in order."""
    return sorted(set(_case_names(validation_folder, ending)) - set(cases))


def mean_lines(content: Mapping[str, Any]) -> list[str]:
    """Return the lines of a training log for the content of a ``surface_metrics.json``: means, and cases left out."""
    failed = [failure["case"] for failure in content["failed"]]
    done = len(content["metric_per_case"])
    if not done:
        return [f"No surface metrics: none of {len(failed)} validation cases could be evaluated: {', '.join(failed)}"]
    lacking = f" over {done} of {done + len(failed)} cases; not evaluated: {', '.join(failed)}" if failed else ""
    return [f"Mean Validation {key}: {content['foreground_mean'][key]}{lacking}" for key in LOGGED]


def _case_names(folder: Path, ending: str) -> list[str]:
    """Return the names of the segmentations in a folder, in order."""
    if not folder.is_dir():
        raise DataError(f"{folder} does not exist or is not a folder.")
    files = (path.name for path in folder.iterdir() if not path.name.startswith("."))
    return sorted(name.removesuffix(ending) for name in files if name.endswith(ending))


def _pairing(validation_folder: Path, gt_folder: Path, cases: Iterable[str], ending: str, notes: list[str]) -> Pairing:
    """Pair the files of the cases; one without a prediction is a failure."""
    pairing = Pairing([], notes=notes)
    for case in cases:
        prediction = validation_folder / f"{case}{ending}"
        if prediction.is_file():
            pairing.pairs.append(Pair(case, gt_folder / prediction.name, prediction, aligned=True))
        else:
            msg = f"{prediction} does not exist, but the case is in the fold's validation list. Validate again (--val)."
            pairing.failures.append(Failure(case, msg))
    return pairing
