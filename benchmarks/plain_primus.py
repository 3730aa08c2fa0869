"""The Primus decoder as its paper draws it, channel-first and plain, and its weights put into a ``TokenDecoder``."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from nnunetv2_meddino.networks.token_decoder import TokenDecoder


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of a channel-first image, from its definition."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).square().mean(1, keepdim=True)
        return (x - mean) / (variance + 1e-6).sqrt() * self.weight[:, None, None] + self.bias[:, None, None]


class ChannelFirstDecoder(nn.Module):
    """Transposed convolution, LayerNorm and GELU four times, then a 1x1 convolution, with the published names."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        for _ in range(4):
            stages.append(
                nn.Sequential(nn.ConvTranspose2d(width, width // 2, 2, 2), ChannelNorm(width // 2), nn.GELU())
            )
            width //= 2
        self.decode = nn.Sequential(*stages, nn.Conv2d(width, num_classes, 1))

    def forward(self, maps: list[Tensor], grid: tuple[int, int]) -> Tensor:
        """Map patch tokens ``(B, h * w, D)`` of each block to logits ``(B, K, 16 h, 16 w)``."""
        return self.decode(torch.cat([m.transpose(1, 2).unflatten(2, grid) for m in maps], dim=1))


def load_published(decoder: TokenDecoder, state: Mapping[str, Tensor]) -> None:
    """Load the decoder of a published Primus network: tensors named ``decode.*``, all of them and no others."""
    own = {}
    for i in range(len(decoder.stages)):
        own[f"stages.{i}.weight"] = state[f"decode.{i}.0.weight"].permute(2, 3, 1, 0).flatten(0, 2)
        own[f"stages.{i}.bias"] = state[f"decode.{i}.0.bias"]
        own[f"stages.{i}.norm.weight"] = state[f"decode.{i}.1.weight"]
        own[f"stages.{i}.norm.bias"] = state[f"decode.{i}.1.bias"]
    last = len(decoder.stages)
    own["seg_layers.0.weight"] = state[f"decode.{last}.weight"][:, :, 0, 0]
    own["seg_layers.0.bias"] = state[f"decode.{last}.bias"]
    assert len(own) == len(state)
    decoder.load_state_dict(own)
