"""Small networks of every kind that is exported, in which what is deep inside shows in the logits."""

from __future__ import annotations

import torch
from torch import nn

from nnunetv2_meddino.networks.dino_unet import DINOUNet
from nnunetv2_meddino.networks.meddinov3 import MedDINOv3
from nnunetv2_meddino.networks.segformer import SegFormer

VIT = {"embed_dim": 128, "depth": 2, "num_heads": 2, "mlp_hidden": 64}
"""Wide enough: the decoder halves it four times, and LayerNorm over two channels is a step, which rounding decides."""

MIT = {"hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 2], "decoder_dim": 16}


def small_network(kind: str) -> nn.Module:
    """Return a network for images of one channel."""
    torch.manual_seed(0)
    network = _network(kind)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "gamma" in name:  # of LayerScale, which begins at 1e-5 and would hide the attention
                parameter.fill_(1)
            if "qkv" in name:  # attention that looks somewhere, so that positions matter
                parameter.mul_(5)
            if "up" in name.split("."):  # of adapters, which begin at zero
                parameter.normal_(std=0.02)
    return network.eval().requires_grad_(requires_grad=False)


def _network(kind: str) -> nn.Module:
    if kind == "MedDINOv3":
        return MedDINOv3(1, 3, vit=VIT, blocks=[0, 1])
    if kind == "MedDINOv3 with LoRA":
        return MedDINOv3(1, 3, vit=VIT, blocks=[0, 1], lora={"rank": 2, "alpha": 4})
    if kind == "SegFormer":
        return SegFormer(1, 3, mit=MIT)
    network = DINOUNet(1, 3, vit={**VIT, "depth": 4}, blocks=[0, 1, 2, 3])
    network.adapter.read_blocks = (3,)  # one of six equal readings: tracing them takes longest
    network.adapter.extractors = network.adapter.extractors[:1]
    return network
