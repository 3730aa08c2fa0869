"""What the networks share: a first layer for any number of channels, images of any size."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_meddino.errors import ConfigurationError

STEM_CHANNELS = 3
"""Channels of every pretrained stem (RGB)."""


def stem_input_channels(image_channels: int) -> int:
    """Return how many input channels the stem's weight has for images of ``image_channels`` channels.

    A one-channel image uses the three-channel weight (see ``Stem``); any other number has a weight of its own.

    Raises:
        ConfigurationError: There is no channel.
    """
    if image_channels < 1:
        msg = f"The images have {image_channels} channels; at least 1 is needed. Check channel_names in dataset.json."
        raise ConfigurationError(msg)
    return STEM_CHANNELS if image_channels == 1 else image_channels


def adapt_stem(weight: Tensor, image_channels: int) -> Tensor:
    """Turn a three-channel stem weight into one for images of ``image_channels`` channels.

    One and three channels keep the weight as it is. For C others, the three are repeated in turn (R, G, B, R, ...)
    and scaled by ``3 / C``, so that an image whose channels are all equal gives the activations it gave before when
    C is a multiple of 3, and activations of the same size otherwise.

    Args:
        weight: ``(D, 3, p, p)``.
        image_channels: Channels C of the images.

    Returns:
        ``(D, stem_input_channels(C), p, p)``.
    """
    channels = stem_input_channels(image_channels)
    if channels == weight.shape[1]:
        return weight
    repeats = -(-channels // STEM_CHANNELS)
    return weight.repeat(1, repeats, 1, 1)[:, :channels] * (STEM_CHANNELS / channels)


class Stem(nn.Conv2d):
    """Patch embedding that takes a grey image for three equal channels.

    Summing the three-channel weight in the forward is exactly what repeating the image three times computes, at a
    third of the work; and because the parameter stays the three-channel one, gradients, weight decay and the
    optimizer's steps are those of repeating as well.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, C, H, W)`` to ``(B, D, H / p, W / p)``."""
        if x.shape[1] == 1 and self.in_channels == STEM_CHANNELS:
            weight = self.weight.sum(dim=1, keepdim=True)
            return F.conv2d(x, weight, self.bias, stride=self.stride)
        return super().forward(x)


def pad_to_multiple(image: Tensor, multiple: int, *, at_least: int = 0) -> Tensor:
    """Add zeros below and right; zero is the mean intensity after nnU-Net's normalisation.

    Args:
        image: ``(B, C, H, W)``.
        multiple: Of which H and W become multiples.
        at_least: Smallest H and W to pad to, a multiple of ``multiple``.
    """
    height, width = (torch.sym_max(at_least, parts(side, multiple) * multiple) for side in image.shape[-2:])
    return F.pad(image, (0, width - image.shape[-1], 0, height - image.shape[-2]))


def parts(side: int, size: int) -> int:
    """Return how many parts of a size a side has, the last of which may be smaller.

    In an ONNX file of torch, ``//`` rounds towards zero, so that ``-(-side // size)`` would be one too few.
    """
    return (side + size - 1) // size


def refuse_deep_supervision(network: str, asked: bool) -> None:
    """Refuse what nnU-Net passes to every network and these, which decode at one resolution, do not have.

    Raises:
        ConfigurationError: It is asked for.
    """
    if asked:
        raise ConfigurationError(f"{network} has no deep supervision; set enable_deep_supervision = False.")


def check_channels(image: Tensor, expected: int) -> None:
    """Check that images ``(B, C, H, W)`` have the channels that a network was built for.

    Raises:
        ConfigurationError: They have another number.
    """
    if image.shape[1] != expected:
        msg = (
            f"The image has {image.shape[1]} channels, the network was built for {expected}. Predict images with the "
            "channels that the model was trained on."
        )
        raise ConfigurationError(msg)
