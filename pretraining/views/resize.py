"""Antialiased bicubic cropping and resizing of whole batches as two matrix products."""

from __future__ import annotations

import math

import torch
from torch import Tensor

CUBIC_A = -0.5
"""Keys' bicubic kernel, as Pillow and torch use with antialiasing (without it torch takes -0.75)."""


def crop_resize(images: Tensor, boxes: Tensor, flips: Tensor, size: int) -> Tensor:
    """Cut regions out of images and resize them to squares.

    Equals cropping and then ``torch.nn.functional.interpolate(mode="bicubic", antialias=True)``, for all regions at
    once: ``Wy @ image @ Wx.T`` with a row of weights for each output pixel. Pixels outside a region are ignored.

    Args:
        images: ``(B, S, S)`` float.
        boxes: ``(B, V, 4)`` top, left, height, width, on the host.
        flips: ``(B, V)`` bool, mirror left and right, on the host.
        size: Output side in pixels.

    Returns:
        ``(B, V, size, size)`` on the device of ``images``. Values may leave the input's range: bicubic overshoots.
    """
    batch, views = flips.shape
    top, left, height, width = boxes.flatten(0, 1).unbind(1)
    vertical = _weights(top, height, torch.zeros_like(flips).flatten(), size, images.shape[1], images)
    horizontal = _weights(left, width, flips.flatten(), size, images.shape[2], images)
    # all views of an image share its one copy: their rows are one tall matrix
    rows = torch.bmm(vertical.view(batch, views * size, -1), images).view(batch * views, size, -1)
    return torch.bmm(rows, horizontal.transpose(1, 2)).view(batch, views, size, size)


def resize(images: Tensor, size: int) -> Tensor:
    """Resize square images ``(N, C, S, S)`` to ``(N, C, size, size)``, antialiased bicubic."""
    side = images.shape[-1]
    whole = torch.tensor([side])
    weights = _weights(torch.zeros_like(whole), whole, torch.zeros(1, dtype=torch.bool), size, side, images)[0]
    return weights @ images @ weights.T


def _weights(starts: Tensor, lengths: Tensor, mirrored: Tensor, size: int, side: int, like: Tensor) -> Tensor:
    """Return the weights ``(N, size, side)`` that resize ``lengths`` pixels from ``starts`` on to ``size`` pixels.

    Weights are computed for the few pixels under the kernel and then scattered: the full matrix is mostly zeros.
    """
    taps = 2 * math.ceil(2 * max(float(lengths.max()) / size, 1.0)) + 1
    start, length, flip = (values.to(like.device)[:, None] for values in (starts, lengths, mirrored))
    scale = length / size
    stretch = scale.clamp_min(1.0)  # the kernel widens where the image shrinks: that is the antialiasing
    output = torch.arange(size, device=like.device)
    centre = torch.where(flip, size - 1 - output, output).add(0.5) * scale
    first = (centre - 2 * stretch + 0.5).floor().clamp_min(0)
    pixel = first[..., None] + torch.arange(taps, device=like.device)
    weight = _cubic((pixel + 0.5 - centre[..., None]) / stretch[..., None]) * (pixel < length[..., None])
    weight = weight / weight.sum(-1, keepdim=True)
    column = (pixel.long() + start[..., None]).clamp_max(side - 1)
    return like.new_zeros(len(starts), size, side).scatter_add_(2, column, weight.to(like.dtype))


def _cubic(distance: Tensor) -> Tensor:
    """Return Keys' cubic convolution kernel, zero from a distance of 2 on (Keys, IEEE TASSP 1981)."""
    x = distance.abs()
    near = ((CUBIC_A + 2) * x - (CUBIC_A + 3)) * x * x + 1
    far = CUBIC_A * (((x - 5) * x + 8) * x - 4)
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
