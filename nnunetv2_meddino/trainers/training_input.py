"""Where a trainer's batches come from: nnU-Net's own loader, or ours of whole slices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

from nnunetv2_meddino.dataloading.augmentation import AugmentationSettings
from nnunetv2_meddino.dataloading.cases import PreprocessedCases
from nnunetv2_meddino.dataloading.device_augmentation import BoxBatches, DeviceAugmentation
from nnunetv2_meddino.dataloading.draws import Draws, Stream
from nnunetv2_meddino.dataloading.loader import BatchLoader, SampleSettings, SliceBatches
from nnunetv2_meddino.dataloading.resampled_cases import ResampledCases
from nnunetv2_meddino.environment import MEDDINO_AUGMENT, MEDDINO_LOADER, require_unchanged
from nnunetv2_meddino.errors import ConfigurationError

if TYPE_CHECKING:
    from nnunetv2_meddino.trainers.base import BaseTrainer

STOCK = "stock"
WHOLE_SLICE = "whole_slice"
LOADERS = (STOCK, WHOLE_SLICE)
"""Values of ``MEDDINO_LOADER`` and of a trainer's ``loader``."""

WORKER, DEVICE = "worker", "device"
AUGMENTATIONS = (WORKER, DEVICE)
"""Values of ``MEDDINO_AUGMENT``: where whole slices are augmented."""

LOADER = "loader"
"""Key of the loader in the provenance that a checkpoint keeps: what ``choose_loader`` returned."""

SLICES_OF = "slices_of"
"""Key, in that, of the configuration whose slices are resampled as they are read, if any."""


def choose_loader(own: str, kept: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the loader of a training: that of ``MEDDINO_LOADER``, else the trainer's own.

    A training that is resumed keeps the loader that it began with. The seed is that of torch's generator:
    ``torch.manual_seed`` decides it, else chance.

    Args:
        own: The trainer's.
        kept: What this function returned when the training began; None for a fresh one.

    Returns:
        Its ``name`` and, of our own loader, ``seed`` and ``augmentation``: the value of ``MEDDINO_AUGMENT``.

    Raises:
        ConfigurationError: The loader or the place of augmentation is unknown, not that of the training that is
            resumed, or one cannot be had with the other.
    """
    name, augmentation = loader_name(own), MEDDINO_AUGMENT.get()
    if augmentation not in (None, *AUGMENTATIONS):
        msg = f"{MEDDINO_AUGMENT.name} is {augmentation!r}; it must be one of {', '.join(AUGMENTATIONS)}."
        raise ConfigurationError(msg)
    if kept is not None:
        require_unchanged(MEDDINO_LOADER, "loader", kept["name"])
        require_unchanged(MEDDINO_AUGMENT, "augmentation", kept.get("augmentation", WORKER))
        return dict(kept)
    if name != STOCK:
        return {"name": name, "seed": _seed(), "augmentation": augmentation or WORKER}
    if augmentation == DEVICE:
        msg = (
            f"{MEDDINO_AUGMENT.name} is {DEVICE}, and the loader {STOCK} augments in its processes only. Set "
            f"{MEDDINO_LOADER.name}={WHOLE_SLICE}, or unset {MEDDINO_AUGMENT.name}."
        )
        raise ConfigurationError(msg)
    return {"name": STOCK}


def loader_name(own: str) -> str:
    """Return the loader of a fresh training: ``MEDDINO_LOADER``, else the trainer's own.

    Raises:
        ConfigurationError: There is no such loader.
    """
    wanted = MEDDINO_LOADER.get()
    if (name := wanted or own) not in LOADERS:
        msg = f"{MEDDINO_LOADER.name if wanted else 'The loader of this trainer'} is {name!r}; it must be one of"
        raise ConfigurationError(f"{msg} {', '.join(LOADERS)}.")
    return name


def _seed() -> int:
    """Return the seed of this training, the same on all ranks."""
    seed = [torch.initial_seed() % 2**32]
    if dist.is_initialized():
        dist.broadcast_object_list(seed)
    return seed[0]


def whole_slice_loaders(trainer: BaseTrainer, loader: Mapping[str, Any]) -> tuple[BatchLoader, BatchLoader]:
    """Return the batches of training and validation from the trainer's current epoch on.

    Args:
        trainer: Whose.
        loader: From ``choose_loader``.

    Raises:
        ConfigurationError: The configuration needs the segmentation of a previous one, or the trainer several
            resolutions.
    """
    if trainer.is_cascaded or trainer.enable_deep_supervision:
        msg = (
            f"The loader {WHOLE_SLICE} makes neither input from a previous stage nor targets of several resolutions, "
            f"and training {trainer.configuration_name} needs one of them. Use the loader {STOCK}: set "
            f"{MEDDINO_LOADER.name}={STOCK}."
        )
        raise ConfigurationError(msg)
    training, validation = (_cases(trainer, dataset) for dataset in trainer.get_tr_and_val_datasets())
    processes = get_allowed_n_proc_DA()
    fewer = max(1, processes // 2) if processes else 0  # as nnU-Net
    return (
        _loader(trainer, training, loader, Stream.TRAINING, processes),
        _loader(trainer, validation, loader, Stream.VALIDATION, fewer),
    )


def _loader(
    trainer: BaseTrainer, cases: PreprocessedCases, loader: Mapping[str, Any], stream: Stream, workers: int
) -> BatchLoader:
    configuration, labels = trainer.configuration_manager, trainer.label_manager
    is_training = stream is Stream.TRAINING
    steps = trainer.num_iterations_per_epoch if is_training else trainer.num_val_iterations_per_epoch
    rows, columns = configuration.patch_size
    draws = Draws(
        cases,
        (rows, columns),
        batch_size=configuration.batch_size,
        forced=trainer.forced_foreground,
        seed=loader["seed"],
        stream=stream,
        annotated=(-1, *labels.all_labels) if labels.has_ignore_label else None,
    )
    ignored = (labels.ignore_label,) if labels.has_ignore_label else ()
    settings = SampleSettings(
        augmentation=_augmentation(trainer) if is_training else None,
        masked=tuple(configuration.use_mask_for_norm),
        regions=(*labels.foreground_regions, *ignored) if labels.has_regions else None,
    )
    rank = dist.get_rank() if trainer.is_ddp else 0
    places = range(rank * trainer.batch_size, (rank + 1) * trainer.batch_size)
    on_device = is_training and loader.get("augmentation") == DEVICE
    return BatchLoader(
        (BoxBatches if on_device else SliceBatches)(cases, draws, settings, places),
        first_step=trainer.current_epoch * steps,
        workers=workers,
        pin_memory=trainer.device.type == "cuda",
        finish=DeviceAugmentation(draws.size, settings, trainer.device) if on_device else None,
    )


def _cases(trainer: BaseTrainer, dataset: nnUNetBaseDataset) -> PreprocessedCases:
    resampling = trainer.slice_resampling
    return PreprocessedCases(dataset) if resampling is None else ResampledCases(dataset, resampling)


def _augmentation(trainer: BaseTrainer) -> AugmentationSettings:
    """Ask the trainer how far it turns and along which axes it mirrors; prediction may then mirror along these too."""
    rotation_rad, _, _, mirror_axes = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    return AugmentationSettings(trainer.num_input_channels, rotation_rad, tuple(mirror_axes or ()))
