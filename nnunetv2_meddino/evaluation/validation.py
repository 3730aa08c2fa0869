"""Surface metrics after a trainer's validation, beside nnU-Net's own ``summary.json``."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from nnunetv2_meddino.evaluation.files import pair_files
from nnunetv2_meddino.evaluation.folders import DEFAULT_TOLERANCES_MM, LabelSet, Tolerances, evaluate_files
from nnunetv2_meddino.evaluation.reports import write_reports

logger = logging.getLogger(__name__)

SURFACE_METRICS = "surface_metrics.json"
"""Name of the file in the validation folder; the CSV file beside it has the same stem."""

LOGGED = ("NSD_voxel_1mm", "ASSD_voxel_mm")
"""Means over classes that a training log shows beside nnU-Net's Dice."""


def evaluate_validation(
    validation_folder: Path,
    gt_folder: Path,
    dataset_json: Mapping[str, Any],
    *,
    tolerances_mm: Tolerances = DEFAULT_TOLERANCES_MM,
    processes: int = 1,
) -> Path:
    """Evaluate every prediction in a fold's validation folder, as nnU-Net does, with surface metrics.

    Cases that cannot be evaluated are logged and listed in the file. ``summary.json`` is not touched. Call it on one
    rank only. Origin and direction in the headers are not compared: the predictions have those of the images, which
    nnU-Net has laid on the references voxel by voxel, whatever their headers say.

    Args:
        validation_folder: ``fold_X/validation``.
        gt_folder: ``nnUNet_preprocessed/DatasetXXX_Name/gt_segmentations``.
        dataset_json: Content of ``dataset.json``: labels, regions, ignore label and file ending.
        tolerances_mm: Tolerances of NSD.
        processes: Spawned processes; each imports the script that trains.

    Returns:
        The file written, ``validation_folder/surface_metrics.json``; the CSV file lies beside it.

    Raises:
        ConfigurationError: ``dataset_json`` declares no usable classes, or a tolerance makes no sense.
        DataError: A folder is missing or holds no segmentation.
    """
    labels = LabelSet.from_json(dataset_json, "dataset.json")
    endings = (dataset_json["file_ending"].lower(),)
    pairing = pair_files(gt_folder, validation_folder, endings=endings, only_predicted=True)
    pairing = replace(pairing, pairs=[replace(pair, aligned=True) for pair in pairing.pairs])
    evaluation = evaluate_files(pairing, labels, tolerances_mm, processes=processes)
    for failure in evaluation.failures:
        logger.warning("No surface metrics of case %s: %s", failure.case, failure.message)
    for note in evaluation.notes:
        logger.warning("%s", note)
    path = validation_folder / SURFACE_METRICS
    write_reports(evaluation, path)
    logger.info("Surface metrics of %d cases: %s", len(evaluation.results), path)
    return path
