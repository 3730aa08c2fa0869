"""Models with random weights in nnU-Net's layout, and nnU-Net's own predictions with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from numpy.typing import NDArray

from nnunetv2_meddino.files import write_json
from nnunetv2_meddino.trainers import find_trainer


def write_model(
    folder: Path,
    *,
    channels: int = 1,
    labels: Mapping[str, Any] | None = None,
    regions_class_order: Sequence[int] | None = None,
    folds: Sequence[int | str] = (0,),
    transpose: Sequence[int] = (0, 1, 2),
    file_ending: str = ".nii.gz",
    reader: str = "SimpleITKIO",
    trainer: str = "nnUNetTrainer",
    spacing_mm: Sequence[float] = (3.0, 1.0, 1.0),
    **configuration: Any,
) -> Path:
    """Write a trained-model folder with random weights: a small U-Net, unless the configuration says otherwise.

    Args:
        folder: To be made.
        channels: Of the images.
        labels: Of dataset.json.
        regions_class_order: Of dataset.json.
        folds: To write, each with its own weights.
        transpose: ``transpose_forward`` of the plans.
        file_ending: Of dataset.json.
        reader: ``image_reader_writer`` of the plans.
        trainer: That the checkpoints name.
        spacing_mm: ``original_median_spacing_after_transp`` of the plans.
        **configuration: Settings of the configuration ``2d`` that differ from those below.
    """
    labels = labels or {"background": 0, "ring": 1, "core": 2}
    dataset_json: dict[str, Any] = {
        "channel_names": {str(channel): "CT" for channel in range(channels)},
        "labels": dict(labels),
        "numTraining": 5,
        "file_ending": file_ending,
    }
    if regions_class_order is not None:
        dataset_json["regions_class_order"] = list(regions_class_order)
    resampling = {"is_seg": False, "order_z": 0, "force_separate_z": None}
    plans = {
        "dataset_name": "Dataset998_Discs",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": list(spacing_mm),
        "original_median_shape_after_transp": [6, 48, 40],
        "image_reader_writer": reader,
        "transpose_forward": list(transpose),
        "transpose_backward": np.argsort(transpose).tolist(),
        "configurations": {
            "2d": {
                "data_identifier": "nnUNetPlans_2d",
                "preprocessor_name": "DefaultPreprocessor",
                "batch_size": 2,
                "patch_size": [64, 64],
                "median_image_size_in_voxels": [48.0, 40.0],
                "spacing": [0.7, 0.8],
                "normalization_schemes": ["CTNormalization"] * channels,
                "use_mask_for_norm": [False] * channels,
                "resampling_fn_data": "resample_data_or_seg_to_shape",
                "resampling_fn_seg": "resample_data_or_seg_to_shape",
                "resampling_fn_data_kwargs": {**resampling, "order": 3},
                "resampling_fn_seg_kwargs": {**resampling, "is_seg": True, "order": 1},
                "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
                "resampling_fn_probabilities_kwargs": {**resampling, "order": 1},
                "architecture": ARCHITECTURE,
                "batch_dice": True,
                **configuration,
            }
        },
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            str(channel): {
                "max": 300.0,
                "mean": 70.0,
                "median": 60.0,
                "min": -80.0,
                "percentile_00_5": -60.0,
                "percentile_99_5": 240.0,
                "std": 50.0,
            }
            for channel in range(channels)
        },
    }
    write_json(plans, folder / "plans.json")
    write_json(dataset_json, folder / "dataset.json")
    manager = PlansManager(plans)
    heads = manager.get_label_manager(dataset_json).num_segmentation_heads
    for i, fold in enumerate(folds):
        torch.manual_seed(i)
        network = find_trainer("nnUNetTrainer_demo").build_network_architecture(  # type: ignore[attr-defined]
            manager, manager.get_configuration("2d"), channels, heads, enable_deep_supervision=False
        )
        with torch.no_grad():
            network.decoder.seg_layers[-1].weight.mul_(4)
        (folder / f"fold_{fold}").mkdir(parents=True)
        checkpoint = {
            "network_weights": network.state_dict(),
            "trainer_name": trainer,
            "init_args": {"configuration": "2d", "plans": plans, "fold": fold},
            "inference_allowed_mirroring_axes": (0, 1),
        }
        torch.save(checkpoint, folder / f"fold_{fold}" / "checkpoint_final.pth")
    return folder


ARCHITECTURE = {
    "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
    "arch_kwargs": {
        "n_stages": 3,
        "features_per_stage": [8, 16, 16],
        "conv_op": "torch.nn.modules.conv.Conv2d",
        "kernel_sizes": [[3, 3]] * 3,
        "strides": [[1, 1], [2, 2], [2, 2]],
        "n_conv_per_stage": [1, 1, 1],
        "n_conv_per_stage_decoder": [1, 1],
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    },
    "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
}
"""A U-Net of three stages."""


def stock_prediction(
    folder: Path,
    values: NDArray[Any],
    spacing: Sequence[float],
    *,
    folds: Sequence[int | str] = (0,),
    mirroring: bool = True,
    half: bool = True,
) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Return nnU-Net's labels ``(z, y, x)`` and probabilities ``(K, z, y, x)`` of an array ``(C, z, y, x)``.

    ``half`` is nnU-Net as it is, which keeps logits in half precision; else it keeps them in single precision.
    """
    predictor = nnUNetPredictor(use_mirroring=mirroring, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(folder), tuple(folds), "checkpoint_final.pth")
    with nullcontext() if half else mock.patch.object(torch, "half", torch.float32):
        labels, probabilities = predictor.predict_single_npy_array(
            values.astype(np.float32), {"spacing": list(spacing)}, None, None, save_or_return_probabilities=True
        )
    return labels, probabilities
