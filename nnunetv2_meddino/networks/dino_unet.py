"""DINO U-Net, a baseline: a frozen DINOv3 ViT, an adapter, the fidelity-aware projection and a U-Net decoder.

Paper: "Dino U-Net: Exploiting High-Fidelity Dense Features from Foundation Models for Medical Image Segmentation",
Gao et al. 2025, arXiv:2508.20909. Sizes that the paper leaves open are those of its released code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nnunetv2_meddino.errors import ConfigurationError
from nnunetv2_meddino.networks.layers import pad_to_multiple, refuse_deep_supervision
from nnunetv2_meddino.networks.precision import network_autocast
from nnunetv2_meddino.networks.vit import VisionTransformer, ViTConfig
from nnunetv2_meddino.networks.vit_adapter import ViTAdapter

FEATURES = (32, 64, 128, 256)
"""Channels of the four scales: the first four stages of nnU-Net's 2D U-Net, as in the released code."""
RANK = 256
"""Channels into which the fidelity-aware projection first reduces every scale (released code)."""
SQUEEZE = 16
"""Reduction in its squeeze-and-excitation (released code)."""
STRIDE, SMALLEST = 32, 64
"""Images are padded to a multiple of the coarsest stride, and so that its map has more than one pixel to normalise."""


class FidelityAwareProjection(nn.Module):
    """Reduction of the adapter's maps to the decoder's channels that keeps what the scales share (paper, 3.3).

    A basis shared by all scales modulates one of each scale's own (FiLM); a residual block with depth-wise
    convolution and squeeze-and-excitation refines the result.

    Args:
        dim: Channels D of the maps.
        features: Channels to reduce them to, one number for each scale.
    """

    def __init__(self, dim: int, features: Sequence[int] = FEATURES) -> None:
        super().__init__()
        self.shared_basis = nn.Conv2d(dim, RANK, 1)
        self.bases = nn.ModuleList(nn.Conv2d(dim, RANK, 1) for _ in features)
        self.modulations = nn.ModuleList(nn.Conv2d(RANK, 2 * RANK, 1) for _ in features)
        self.refinements = nn.ModuleList(_refinement(width) for width in features)
        self.shortcuts = nn.ModuleList(
            nn.Identity() if width == RANK else nn.Conv2d(RANK, width, 1) for width in features
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Map one ``(B, D, h, w)`` for each scale to ``(B, features, h, w)``."""
        projected = []
        for i, m in enumerate(maps):
            gain, shift = self.modulations[i](self.shared_basis(m)).chunk(2, dim=1)
            modulated = gain * self.bases[i](m) + shift
            projected.append(self.refinements[i](modulated) + self.shortcuts[i](modulated))
        return projected


class SqueezeExcitation(nn.Module):
    """Channels weighted by what their means say (Hu et al. 2018, arXiv:1709.01507)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(1, channels // SQUEEZE)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, hidden, 1),
            nn.ReLU(),
            nn.Conv2d(hidden, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Scale the channels of ``(B, C, h, w)``."""
        return x * self.gate(x)


class UNetDecoder(nn.Module):
    """nnU-Net's 2D decoder over four scales: transposed convolution, skip, two convolutions.

    Args:
        num_classes: Classes or regions K.
        features: Channels of the scales, fine to coarse.
    """

    def __init__(self, num_classes: int, features: Sequence[int] = FEATURES) -> None:
        super().__init__()
        steps = list(zip(features[:0:-1], features[-2::-1], strict=True))  # coarse to fine
        self.ups = nn.ModuleList(nn.ConvTranspose2d(below, skip, 2, stride=2) for below, skip in steps)
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(2 * skip, skip, 3, padding=1),
                *_norm_act(skip),
                nn.Conv2d(skip, skip, 3, padding=1),
                *_norm_act(skip),
            )
            for _, skip in steps
        )
        self.segment = nn.Conv2d(features[0], num_classes, 1)
        self.apply(_init_he)

    def forward(self, skips: Sequence[Tensor]) -> Tensor:
        """Map ``(B, features, h, w)`` of each scale, fine to coarse, to logits ``(B, K, h, w)`` of the finest."""
        x = skips[-1]
        for up, stage, skip in zip(self.ups, self.stages, skips[-2::-1], strict=True):
            x = stage(torch.cat([up(x), skip], dim=1))
        return self.segment(x)


class DINOUNet(nn.Module):
    """DINO U-Net: only the ViT is frozen; adapter, projection and decoder are trained.

    Every argument is a plain JSON value, as nnU-Net's plans need; the first two have the names nnU-Net calls them by.

    Args:
        input_channels: Channels of the images.
        num_classes: Classes or regions K, background included where there is one.
        vit: Fields of ``ViTConfig``.
        blocks: Indices of the four blocks that the adapter reads, ascending.
        deep_supervision: Must be False; there because nnU-Net passes it.

    Raises:
        ConfigurationError: ``blocks`` does not fit the ViT or the four scales, or deep supervision is asked for.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        *,
        vit: Mapping[str, Any],
        blocks: Sequence[int],
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        config = ViTConfig(**vit)
        refuse_deep_supervision("DINO U-Net", deep_supervision)
        if (
            list(blocks) != sorted(set(blocks))
            or len(blocks) != len(FEATURES)
            or not 0 <= blocks[0] <= blocks[-1] < config.depth
        ):
            msg = f"blocks is {list(blocks)}: DINO U-Net reads four of the {config.depth} blocks, ascending from 0."
            raise ConfigurationError(msg)
        self.blocks = tuple(blocks)
        self.encoder = VisionTransformer(config, input_channels).requires_grad_(False)
        self.adapter = ViTAdapter(config.embed_dim, input_channels, len(blocks))
        self.projection = FidelityAwareProjection(config.embed_dim)
        self.upsamplings = nn.ModuleList(nn.ConvTranspose2d(width, width, 2, stride=2) for width in FEATURES)
        self.decoder = UNetDecoder(num_classes)

    def forward(self, image: Tensor) -> Tensor:
        """Segment images of any size.

        Args:
            image: ``(B, C, H, W)``.

        Returns:
            ``(B, K, H, W)`` float32 logits. H and W that are no multiples of 32 are padded with zeros below and right
            and the logits cropped back.
        """
        height, width = image.shape[-2:]
        with network_autocast(image.device.type):
            padded = pad_to_multiple(image, STRIDE, at_least=SMALLEST)
            maps = self.adapter(padded, self.encoder(padded, self.blocks))
            # the same transposed convolution twice: from a quarter of the skip's size to the size itself
            skips = [up(up(m)) for up, m in zip(self.upsamplings, self.projection(maps), strict=True)]
            logits = self.decoder(skips)
        return logits[:, :, :height, :width].contiguous().float()


def _norm_act(channels: int) -> tuple[nn.Module, nn.Module]:
    """Return nnU-Net's normalisation and activation."""
    return nn.InstanceNorm2d(channels, affine=True), nn.LeakyReLU()


def _refinement(channels: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(RANK, channels, 1),
        *_norm_act(channels),
        nn.Conv2d(channels, channels, 3, padding=1, groups=channels),
        nn.Conv2d(channels, channels, 1),
        *_norm_act(channels),
        nn.Conv2d(channels, channels, 1),
        SqueezeExcitation(channels),
    )


def _init_he(module: nn.Module) -> None:
    """Initialise convolutions as nnU-Net does."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.kaiming_normal_(module.weight, a=1e-2)
        nn.init.zeros_(module.bias)
