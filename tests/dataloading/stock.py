"""nnU-Net's own training transforms of a 2D configuration, by name."""

from __future__ import annotations

import copy
import functools

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_meddino.dataloading.augmentation import Augmentation

HALF_TURN = (-np.pi, np.pi)
INTENSITIES = ("noise", "blur", "brightness", "contrast", "low_resolution", "gamma_of_inverted", "gamma")


@functools.cache
def transforms(size: tuple[int, int], masked: tuple[bool, ...] = ()) -> dict[str, BasicTransform]:
    """Return nnU-Net's transforms in its order; those of intensities without the probability of a sample."""
    composed = nnUNetTrainer.get_training_transforms(
        np.array(size), HALF_TURN, None, (0, 1), do_dummy_2d_data_aug=False, use_mask_for_norm=list(masked)
    )
    names = ("spatial", *INTENSITIES, "mirror", *(("mask",) if any(masked) else ()), "padding_label")
    assert len(names) == len(composed.transforms)
    return dict(zip(names, composed.transforms, strict=True))


def inner(size: tuple[int, int], name: str) -> BasicTransform:
    """Return an intensity transform without the probability that a sample has it."""
    return transforms(size)[name].transform


def apply(size: tuple[int, int], name: str, image: np.ndarray, **parameters: object) -> np.ndarray:
    """Apply an intensity transform with given parameters to a copy of ``(C, rows, columns)``."""
    return inner(size, name)._apply_to_image(torch.from_numpy(image.copy()), **parameters).numpy()


def spatial(size: tuple[int, int], rotation_rad: float, scaling: float) -> SpatialTransform:
    """Return nnU-Net's spatial transform of this rotation and scaling."""
    transform = copy.copy(transforms(size)["spatial"])
    transform.p_rotation = transform.p_scaling = 1
    transform.rotation, transform.scaling = rotation_rad, scaling
    return transform


def drawn(channels: int) -> Augmentation:
    """Return what nnU-Net's transforms draw for one sample."""
    image = torch.zeros(channels, 8, 8)
    steps = {name: transform.get_parameters(image=image) for name, transform in transforms((8, 8)).items()}
    steps |= {
        name: transforms((8, 8))[name].transform.get_parameters(image=image) if steps[name]["apply_transform"] else None
        for name in INTENSITIES
    }
    turn = np.eye(2) if steps["spatial"]["affine"] is None else steps["spatial"]["affine"]
    scalings = np.linalg.norm(turn, axis=0).round(12)
    assert scalings[0] == scalings[1]

    def per_channel(name: str, key: str) -> tuple[float, ...]:
        values = np.ones(channels)
        if steps[name]:
            drawn_values = np.array(steps[name][key])
            assert key != "scales" or (drawn_values[..., :1] == drawn_values).all()
            values[steps[name]["apply_to_channel"].numpy()] = (
                drawn_values[:, 0] if drawn_values.ndim == 2 else drawn_values
            )
        return tuple(values)

    sigmas = np.zeros((channels, 2))
    if steps["blur"]:
        sigmas[steps["blur"]["apply_to_channel"].numpy()] = np.reshape(steps["blur"]["sigmas"], (-1, 2))
    return Augmentation(
        rotation_rad=np.arctan2(turn[1, 0], turn[0, 0]),
        scaling=scalings[0],
        mirrored=(0 in steps["mirror"]["axes"], 1 in steps["mirror"]["axes"]),
        noise_std=steps["noise"]["sigmas"] if steps["noise"] else 0.0,
        noise_seed=0,
        blur_sigma_px=tuple(map(tuple, sigmas)),
        brightness=per_channel("brightness", "multipliers"),
        contrast=per_channel("contrast", "multipliers"),
        low_resolution=per_channel("low_resolution", "scales"),
        gamma_of_inverted=per_channel("gamma_of_inverted", "gamma"),
        gamma=per_channel("gamma", "gamma"),
    )
