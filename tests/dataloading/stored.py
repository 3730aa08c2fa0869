"""Cases that nnU-Net's preprocessing has stored for two configurations: ``2d``, and one of another spacing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from scipy.ndimage import gaussian_filter

DATASET = {"labels": {"background": 0, "ring": 1, "core": 2}, "channel_names": {"0": "CT"}, "numTraining": 3}
RESAMPLING = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}


def plans_of(spacing_mm: Sequence[float], *, seg_order: int = 1, **changes: Any) -> PlansManager:
    """Return plans with a ``2d`` of 1 x 1 mm and a ``2d_fine``, each of which names its folder."""
    native = {
        "data_identifier": "native",
        "preprocessor_name": "DefaultPreprocessor",
        "patch_size": [40, 40],
        "architecture": {},
        "spacing": [1.0, 1.0],
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": RESAMPLING,
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_seg_kwargs": {**RESAMPLING, "is_seg": True, "order": seg_order},
    }
    fine = {"inherits_from": "2d", "data_identifier": "fine", "spacing": list(spacing_mm), **changes}
    statistics = {"mean": 70.0, "std": 50.0, "percentile_00_5": -60.0, "percentile_99_5": 180.0}
    return PlansManager(
        {
            "plans_name": "P",
            "dataset_name": "Dataset998_Discs",
            "transpose_forward": [0, 1, 2],
            "transpose_backward": [0, 1, 2],
            "configurations": {"2d": native, "2d_fine": fine},
            "label_manager": "LabelManager",
            "foreground_intensity_properties_per_channel": {"0": statistics},
        }
    )


def scan(number: int, shape: tuple[int, int, int] = (4, 44, 52)) -> tuple[np.ndarray, np.ndarray]:
    """Return image and labels ``(1, z, y, x)``: a disc with a core in noise, and nothing along three borders."""
    rng = np.random.default_rng(number)
    z, y, x = np.indices(shape)
    radius = np.hypot(y - shape[1] * (0.4 + 0.05 * number), x - shape[2] * 0.6) + z
    labels = ((radius < 13).astype(np.int16) + (radius < 6))[None]
    image = labels * 90.0 + 20 + gaussian_filter(rng.normal(0, 60, shape), (0, 0.7, 0.7))
    image *= np.linspace(0.4, 1, shape[0])[:, None, None]  # so that slices have ranges of their own
    image[..., :2, :], image[..., -1] = 0, 0
    return image.astype(np.float32), labels


def store(
    folder: Path, plans: PlansManager, configuration: str, spacings: Sequence[Sequence[float]]
) -> nnUNetDatasetBlosc2:
    """Preprocess one case for each spacing ``(z, y, x)`` as ``nnUNetv2_preprocess`` does, and open the dataset."""
    manager = plans.get_configuration(configuration)
    target = folder / manager.data_identifier
    target.mkdir(parents=True)
    for number, spacing in enumerate(spacings):
        image, labels = scan(number)
        data, seg, properties = DefaultPreprocessor(verbose=False).run_case_npy(
            image, labels, {"spacing": list(spacing)}, plans, manager, DATASET
        )
        blocks = {"chunks": (1, 1, 32, 32), "blocks": (1, 1, 16, 16)}
        name = str(target / f"case_{number}")
        nnUNetDatasetBlosc2.save_case(data.astype(np.float32), seg.astype(np.int16), properties, name, **blocks)
    return nnUNetDatasetBlosc2(str(target))
