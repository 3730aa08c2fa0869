"""Which preprocessed data a training reads: that of its configuration, or another's that is resampled on the way."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nnunetv2_meddino.dataloading.resampled_cases import RESAMPLED_FROM, SliceResampling
from nnunetv2_meddino.environment import MEDDINO_LOADER
from nnunetv2_meddino.errors import ConfigurationError
from nnunetv2_meddino.trainers.training_input import STOCK, WHOLE_SLICE

if TYPE_CHECKING:
    from nnunetv2_meddino.trainers.base import BaseTrainer


def find_data(trainer: BaseTrainer, loader: str) -> tuple[str | None, SliceResampling | None]:
    """Return the folder of preprocessed data that a loader reads, and how its slices are resampled.

    For a configuration of ``meddino plan --lazy-resample`` the loader decides: nnU-Net's reads data of the
    configuration itself, ours always that of the configuration it is resampled from.

    Args:
        trainer: Whose training it is.
        loader: Name of the loader that makes the batches.

    Returns:
        The folder, None where nnU-Net's are not set; and None where it holds what the network is to see.

    Raises:
        ConfigurationError: There is no such data, or the plans resample in a way that is not done while training.
    """
    configuration, plans = trainer.configuration_manager, trainer.plans_manager
    source = configuration.configuration.get(RESAMPLED_FROM)
    if source is None or trainer.preprocessed_dataset_folder_base is None:
        return trainer.preprocessed_dataset_folder, None
    base, name = Path(trainer.preprocessed_dataset_folder_base), trainer.configuration_name
    own, sources = (base / c.data_identifier for c in (configuration, plans.get_configuration(source)))
    preprocess = f"nnUNetv2_preprocess -d {int(plans.dataset_name[7:10])} -plans_name {plans.plans_name} -c"
    if not has_data(trainer, loader):
        msg = (
            f"Configuration {name} was planned with --lazy-resample: no data of it is stored, and the loader {STOCK} "
            f"cannot resample that of {source}. Set {MEDDINO_LOADER.name}={WHOLE_SLICE}; or, for the loader {STOCK}, "
            f"run: {preprocess} {name}"
        )
        raise ConfigurationError(msg)
    if loader == STOCK:
        return str(own), None
    if not sources.is_dir():
        msg = f"Configuration {name} is trained with the data of {source}, and {sources} is missing. Run: {preprocess}"
        raise ConfigurationError(f"{msg} {source}")
    return str(sources), SliceResampling.of(configuration.configuration, plans.transpose_forward)


def has_data(trainer: BaseTrainer, loader: str) -> bool:
    """Whether a loader finds data; nnU-Net's does not where a configuration is only resampled, and not stored."""
    configuration = trainer.configuration_manager
    if loader != STOCK or RESAMPLED_FROM not in configuration.configuration:
        return True
    return (Path(trainer.preprocessed_dataset_folder_base) / configuration.data_identifier).is_dir()
