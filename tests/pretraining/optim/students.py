"""Small students with the names of the real one."""

from __future__ import annotations

import torch
from torch import nn

from nnunetv2_meddino.networks.vit import VisionTransformer, ViTConfig


def head(width: int, hidden: int = 32, bottleneck: int = 16, prototypes: int = 64) -> nn.Module:
    module = nn.Module()
    module.mlp = nn.Sequential(
        nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
    )
    module.last_layer = nn.Linear(bottleneck, prototypes, bias=False)
    return module


def student(*, embed_dim: int = 32, depth: int = 2, num_heads: int = 2, untied: bool = False) -> nn.Module:
    module = nn.Module()
    module.backbone = VisionTransformer(
        ViTConfig(embed_dim, depth, num_heads, mlp_hidden=4 * embed_dim, qkv_bias=True, untied_cls_norm=untied)
    )
    module.backbone.mask_token = nn.Parameter(torch.zeros(1, embed_dim))
    if untied:
        module.backbone.local_cls_norm = nn.LayerNorm(embed_dim)
    module.dino_head, module.ibot_head = head(embed_dim), head(embed_dim)
    return module
