"""A random ViT so small that it runs in milliseconds."""

from __future__ import annotations

import torch

from nnunetv2_meddino.networks.vit import VisionTransformer, ViTConfig

TINY = ViTConfig(embed_dim=48, depth=2, num_heads=2, mlp_hidden=96, patch_size=8)


def random_vit(in_channels: int = 1) -> VisionTransformer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vit = VisionTransformer(TINY, in_channels).eval()
    for block in vit.blocks:
        block.gamma_1.data.fill_(0.3)  # LayerScale as initialised would hide what the blocks do
        block.gamma_2.data.fill_(0.3)
    return vit
