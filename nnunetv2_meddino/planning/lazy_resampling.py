"""Configurations that store nothing: trained with the data of ``2d``, which our loader resamples slice by slice."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

from nnunetv2_meddino.dataloading.resampled_cases import RESAMPLED_FROM, SliceResampling
from nnunetv2_meddino.errors import ConfigurationError, PlanError
from nnunetv2_meddino.files import read_json
from nnunetv2_meddino.inference.resampling import check_resampling

SOURCE = "2d"


def resampled_while_training(
    configuration: Mapping[str, Any], source: ConfigurationManager, fingerprint: Path
) -> dict[str, Any]:
    """Return a configuration with the name of the one that it is trained with, and of a folder that need not exist.

    The folder has another name than that of stored data, so that what does not know the key finds no data, instead of
    data in another spacing.

    Args:
        configuration: As it would go into the plans; it inherits from ``2d``.
        source: The ``2d`` configuration.
        fingerprint: nnU-Net's of the dataset, which holds the spacing of every case.

    Raises:
        PlanError: Stored slices would not become those of the configuration.
    """
    complete = {**source.configuration, **configuration}
    advice = "Plan without --lazy-resample."
    for key in ("normalization_schemes", "use_mask_for_norm"):
        if complete[key] != source.configuration[key]:
            msg = f"{key} of the new configuration are {complete[key]}, those of {SOURCE} {source.configuration[key]},"
            raise PlanError(f"{msg} and stored slices are normalised already. {advice}")
    try:
        check_resampling(complete, "probabilities")
        resampling = SliceResampling.of(complete, (0, 1, 2))
    except ConfigurationError as error:
        raise PlanError(str(error)) from error
    for spacing in read_json(fingerprint, PlanError, advice)["spacings"]:
        if resampling.has_coarse_axis(spacing):
            sizes = " x ".join(f"{mm:g}" for mm in spacing)
            msg = f"A case has voxels of {sizes} mm: an axis of its slices is so coarse that nnU-Net resamples it by"
            raise PlanError(f"{msg} itself, which is not done while training. {advice}")
    return {**configuration, "data_identifier": f"{configuration['data_identifier']}_lazy", RESAMPLED_FROM: SOURCE}
