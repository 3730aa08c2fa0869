"""Small checkpoints for the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nnunetv2_meddino.networks.vit import VisionTransformer, ViTConfig
from nnunetv2_meddino.weights.load import PretrainedWeights

SMALL = ViTConfig(embed_dim=64, depth=2, num_heads=1, mlp_hidden=96)
"""Heads are 64 wide, as in every release, so that every layout shows it."""


def random_tensors(config: ViTConfig = SMALL, seed: int = 0) -> dict[str, Tensor]:
    """Return a state dict of ``VisionTransformer(config)`` in which no tensor is zero or constant."""
    generator = torch.Generator().manual_seed(seed)
    state = VisionTransformer(config).state_dict()
    return {name: torch.randn(tensor.shape, generator=generator) * 0.2 for name, tensor in state.items()}


def pretrained(config: ViTConfig = SMALL, seed: int = 0) -> PretrainedWeights:
    return PretrainedWeights(config, random_tensors(config, seed), {}, {"name": "random"})


def features(config: ViTConfig, tensors: dict[str, Tensor], image: Tensor) -> Tensor:
    """Return all tokens that the last block puts out, normed: ``(B, N, D)``."""
    network = VisionTransformer(config).eval()
    network.load_state_dict(tensors, strict=True)
    with torch.no_grad():
        return torch.cat(network.forward_tokens(image, [config.depth - 1])[0], dim=1)


class Plants:
    """Unpickling this in the ordinary way creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


ORIGIN = {"name": "our-run", "licence": "CC0-1.0", "seen_cases": {"LiTS": ["lits_007"]}, "derived_from": None}
MEASURED = {"mean": np.float32(80.5), "std": np.float32(42.25), "percentile_00_5": -150.0, "percentile_99_5": 220.0}


def checkpoint(path: Path, network: dict[str, torch.Tensor], vit: dict | None = None, **changes) -> Path:
    """Write what nnU-Net writes, of a configuration that inherits from 2d as those of our plans do."""
    options = {"vit": SMALL.to_dict()} if vit is None else vit
    entry = {"network_class_name": "nnunetv2_meddino.networks.meddinov3.MedDINOv3", "arch_kwargs": options}
    plans = {
        "dataset_name": "Dataset027_LiTS",
        "configurations": {
            "2d": {"normalization_schemes": ["CTNormalization"]},
            "2d_896": {"inherits_from": "2d", "architecture": entry},
        },
        "foreground_intensity_properties_per_channel": {"0": MEASURED},
    }
    content = {
        "network_weights": network,
        "optimizer_state": {"state": {0: {"exp_avg": torch.ones(3)}}},
        "grad_scaler_state": None,
        "logging": {"mean_fg_dice": [np.float32(0.5), np.float64(0.25)], "lrs": [np.float64(1e-3)]},
        "_best_ema": np.float32(0.5),
        "current_epoch": 40,
        "init_args": {
            "plans": plans,
            "configuration": "2d_896",
            "fold": 2,
            "dataset_json": {"numTraining": 131},
            "device": torch.device("cuda"),
            "meddino": {"weights": ORIGIN, "rng": {"cpu": torch.get_rng_state()}},
        },
        "trainer_name": "MedDINOv3Trainer",
        "inference_allowed_mirroring_axes": (0, 1),
        **changes,
    }
    torch.save(content, path)
    return path


def network_of(tensors: dict[str, torch.Tensor], prefix: str = "encoder.") -> dict[str, torch.Tensor]:
    """Return the weights of a network with this encoder and a decoder."""
    return {f"{prefix}{name}": t for name, t in tensors.items()} | {"decoder.head.weight": torch.ones(2)}
