"""The final validation of a training: its cases predicted slice by slice, and nnU-Net's files and scores of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from nnunetv2.configuration import default_num_processes
from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder

from nnunetv2_meddino.commands import VALIDATION
from nnunetv2_meddino.errors import ConfigurationError
from nnunetv2_meddino.inference.case_writer import CaseWriter, predict_into
from nnunetv2_meddino.inference.model import Model
from nnunetv2_meddino.inference.plans import check_slicewise
from nnunetv2_meddino.inference.predictor import Predictor
from nnunetv2_meddino.inference.preprocessing import StoredSlices
from nnunetv2_meddino.inference.resampling import Resampling, check_resampling, resampling_of

if TYPE_CHECKING:
    from nnunetv2_meddino.trainers.base import BaseTrainer


def why_not_slicewise(trainer: BaseTrainer) -> str | None:
    """Return why a training's cases cannot be validated slice by slice, or None."""
    if trainer.configuration_manager.next_stage_names is not None:
        return "it writes what the next stage of the cascade needs"
    try:
        check_slicewise(trainer.configuration_manager, trainer.output_folder)
        check_resampling(trainer.configuration_manager.configuration, "probabilities")
    except ConfigurationError as error:
        return str(error)
    return None


def validate(trainer: BaseTrainer, save_probabilities: bool) -> None:
    """Predict the validation cases of a fold from their preprocessed files, and score them as nnU-Net does.

    Under DDP each process predicts its share, and process 0 scores all.
    """
    folder = Path(trainer.output_folder) / "validation"
    trainer.network.eval()
    model = Model(
        trainer.plans_manager,
        trainer.configuration_manager,
        trainer.dataset_json,
        [trainer.plain_network],
        tuple(trainer.inference_allowed_mirroring_axes or ()),
    )
    predictor = Predictor(model, trainer.device)
    _, keys = trainer.do_split()
    ranks = dist.get_world_size() if trainer.is_ddp else 1
    dataset = trainer.dataset_class(
        trainer.preprocessed_dataset_folder,
        keys[trainer.local_rank :: ranks],
        folder_with_segs_from_previous_stage=trainer.folder_with_segs_from_previous_stage,
    )
    own = len(dataset.identifiers)
    trainer.print_to_log_file(f"{VALIDATION}: predicting slice by slice into {folder} (cases: {len(keys)})")
    with CaseWriter(model, folder, predictor.times) as writer:
        for number, key in enumerate(dataset.identifiers, start=1):
            trainer.print_to_log_file(f"predicting {key} ({number} of {own})")
            data, _, _, properties = dataset.load_case(key)
            slices = StoredSlices(data, properties, trainer.device, _resampling(trainer, key, data.shape, properties))
            predict_into(writer, predictor, key, slices, save_probabilities)
            if trainer.is_ddp and number <= len(keys) // ranks:
                dist.barrier()  # the processes stay together: NCCL gives up on one that is waited for too long
    if trainer.is_ddp:
        dist.barrier()
    if trainer.local_rank == 0:
        _score(trainer, folder, len(keys))


def _resampling(
    trainer: BaseTrainer, case: str, stored: Sequence[int], properties: Mapping[str, Any]
) -> Resampling | None:
    """Return what makes the slices of a case those that the network sees; None where they are stored as such."""
    if trainer.slice_resampling is None:
        return None
    spacing = trainer.slice_resampling.spacing_of(properties)
    return resampling_of(
        trainer.configuration_manager.configuration,
        "data",
        stored[1:],
        trainer.slice_resampling.shape(case, properties),
        spacing,
        (spacing[0], *trainer.slice_resampling.spacing_mm),
    )


def _score(trainer: BaseTrainer, folder: Path, cases: int) -> None:
    labels = trainer.label_manager
    trainer.print_to_log_file(f"{VALIDATION}: Dice as nnU-Net computes it (cases: {cases})")
    metrics = compute_metrics_on_folder(
        str(Path(trainer.preprocessed_dataset_folder_base) / "gt_segmentations"),
        str(folder),
        str(folder / "summary.json"),
        trainer.plans_manager.image_reader_writer_class(),
        trainer.dataset_json["file_ending"],
        labels.foreground_regions if labels.has_regions else labels.foreground_labels,
        labels.ignore_label,
        num_processes=min(default_num_processes, cases),
        chill=True,
    )
    for label, values in metrics["mean"].items():
        trainer.logger.log_summary(f"final_val/class_{label}_dice", values["Dice"])
    dice = metrics["foreground_mean"]["Dice"]
    trainer.logger.log_summary("final_val/foreground_dice", dice)
    trainer.print_to_log_file("Validation complete", also_print_to_console=True)
    trainer.print_to_log_file("Mean Validation Dice: ", dice, also_print_to_console=True)
