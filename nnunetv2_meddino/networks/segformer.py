"""SegFormer, a baseline: the Mix Transformer (MiT) encoder and the all-MLP head of the transformers library.

Paper: "SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers", Xie et al. 2021,
arXiv:2105.15203. The implementation is Hugging Face's (Apache-2.0); this file adds any number of channels, any image
size and the logits at full resolution.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import SegformerConfig, SegformerModel
from transformers.models.segformer.modeling_segformer import SegformerDecodeHead

from nnunetv2_meddino.networks.layers import (
    check_channels,
    pad_to_multiple,
    refuse_deep_supervision,
    stem_input_channels,
)
from nnunetv2_meddino.networks.mit import MiTConfig
from nnunetv2_meddino.networks.precision import network_autocast

STRIDE = 32
"""Pixels to one token of the last stage."""


class MixTransformer(SegformerModel):
    """MiT encoder for images of any number of channels.

    Args:
        config: The architecture.
        in_channels: Channels of the images, any number from 1; one is repeated to the stem's three.
        drop_path: Stochastic depth of the last block; it grows linearly from 0 (paper: 0.1).
    """

    def __init__(self, config: MiTConfig, in_channels: int = 3, drop_path: float = 0.1) -> None:
        super().__init__(
            _library_config(config, num_channels=stem_input_channels(in_channels), drop_path_rate=drop_path)
        )
        self.in_channels = in_channels

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the feature maps of the four stages, at 1/4, 1/8, 1/16 and 1/32 of the image's size.

        Raises:
            ConfigurationError: The image has another number of channels than the network.
        """
        check_channels(image, self.in_channels)
        features = image.expand(-1, self.config.num_channels, -1, -1)
        maps = []
        for stage in self.stages:
            features = stage(features)
            maps.append(features)
        return maps


class SegFormer(nn.Module):
    """SegFormer with logits at the image's size.

    Every argument is a plain JSON value, as nnU-Net's plans need; the first two have the names nnU-Net calls them by.

    Args:
        input_channels: Channels of the images.
        num_classes: Classes or regions K, background included where there is one.
        mit: Fields of ``MiTConfig``.
        drop_path: Stochastic depth of the encoder in training.
        deep_supervision: Must be False; there because nnU-Net passes it.

    Raises:
        ConfigurationError: Deep supervision is asked for.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        *,
        mit: Mapping[str, Any],
        drop_path: float = 0.1,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        refuse_deep_supervision("SegFormer", deep_supervision)
        config = MiTConfig.from_dict(mit)
        self.encoder = MixTransformer(config, input_channels, drop_path)
        self.decoder = SegformerDecodeHead(_library_config(config, num_labels=num_classes))

    def forward(self, image: Tensor) -> Tensor:
        """Segment images of any size.

        Args:
            image: ``(B, C, H, W)``.

        Returns:
            ``(B, K, H, W)`` float32 logits, interpolated bilinearly from a quarter of the size (paper). H and W that
            are no multiples of 32 are padded with zeros below and right and the logits cropped back.
        """
        height, width = image.shape[-2:]
        with network_autocast(image.device.type):
            padded = pad_to_multiple(image, STRIDE)
            logits = self.decoder(self.encoder(padded))
        logits = F.interpolate(logits.float(), size=padded.shape[-2:], mode="bilinear", align_corners=False)
        return logits[:, :, :height, :width].contiguous()


def _library_config(config: MiTConfig, **others: Any) -> SegformerConfig:
    """Return the configuration that the transformers library takes; ``others`` are fields of it."""
    return SegformerConfig(
        hidden_sizes=list(config.hidden_sizes),
        depths=list(config.depths),
        num_attention_heads=list(config.num_heads),
        decoder_hidden_size=config.decoder_dim,
        **others,
    )
