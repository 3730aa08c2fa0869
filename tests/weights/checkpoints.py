"""Small checkpoints for the tests of this folder."""

from __future__ import annotations

from pathlib import Path

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
