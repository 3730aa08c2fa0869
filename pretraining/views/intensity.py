"""Intensities of whole batches: to the unit scale, augmentation there, and to network inputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pretraining.views.config import IntensityConfig

EPSILON = 1e-8
"""Added to the standard deviation, as MedDINOv3 does."""

LOWEST, VALUES = -(2**15), 2**16
"""Of int16."""


@dataclass(frozen=True)
class IntensityScale:
    """How the values of each slice map to the unit scale and to network inputs, ``(B,)`` float32 each."""

    low: Tensor
    """Becomes 0 on the unit scale; lower values are clipped."""
    high: Tensor
    """Becomes 1 on the unit scale; higher values are clipped."""
    mean: Tensor
    """Becomes 0 in the network's input."""
    std: Tensor
    """Distance from the mean that becomes 1 in the network's input."""


def intensity_scale(pixels: Tensor, sizes: Tensor, window: Tensor, config: IntensityConfig) -> IntensityScale:
    """Return the scale of each slice by the configured rule; padding is ignored.

    Args:
        pixels: ``(B, S, S)`` int16.
        sizes: ``(B, 2)`` height and width.
        window: ``(B,)`` which of ``config.windows_hu``, for the rule ``window``.
        config: See there for the rules.
    """
    if config.rule == "ct":
        return _scale_of(pixels, [[*config.clip_hu, config.mean_hu, config.std_hu]] * len(pixels))
    if config.rule == "window":
        edges = [[c - w / 2, c + w / 2, c, w / 2] for c, w in config.windows_hu]
        return _scale_of(pixels, [edges[index] for index in window.tolist()])
    values = pixels.flatten(1).double()
    inside = _inside(pixels, sizes).flatten(1)
    lowest = values.masked_fill(~inside, torch.inf).amin(1)
    if config.rule == "zscore":
        highest = values.masked_fill(~inside, -torch.inf).amax(1)
        mean, std = _mean_std(values, inside)
        return _measured(lowest, highest, mean, std)
    body = inside & (values > lowest[:, None])
    body = torch.where(body.any(1, keepdim=True), body, inside)
    low, high = _percentiles(pixels.flatten(1), body, config.percentiles)
    return _measured(low, high, *_mean_std(values.clamp(low[:, None], high[:, None]), body))


def to_unit(pixels: Tensor, scale: IntensityScale) -> Tensor:
    """Return ``(B, S, S)`` int16 values clipped and scaled to [0, 1] in float32."""
    low, high = scale.low[:, None, None], scale.high[:, None, None]
    return ((pixels.float() - low) / (high - low)).clamp_(0, 1)


def to_input(crops: Tensor, scale: IntensityScale) -> Tensor:
    """Return unit-scale crops ``(V * B, 1, s, s)``, crop-major, as network inputs."""
    times = len(crops) // len(scale.low)
    low, high, mean, std = (
        values.repeat(times)[:, None, None, None] for values in (scale.low, scale.high, scale.mean, scale.std)
    )
    return (crops * (high - low) + (low - mean)) / (std + EPSILON)


def augment(
    crops: Tensor,
    *,
    brightness: Tensor,
    contrast: Tensor,
    contrast_first: Tensor,
    blur_sigma: Tensor,
    blur_kernel: int,
    solarise_threshold: Tensor,
) -> Tensor:
    """Change brightness and contrast, blur and solarise crops on the unit scale, each by its own parameters.

    The operations are torchvision's ``adjust_brightness``, ``adjust_contrast``, ``gaussian_blur`` and ``solarize`` for
    float images, in the order of DINOv3.

    Args:
        crops: ``(N, 1, s, s)`` in [0, 1].
        brightness: ``(N,)`` factors, on the host as all below.
        contrast: ``(N,)`` factors.
        contrast_first: ``(N,)`` bool.
        blur_sigma: ``(N,)`` in pixels, 0 for none.
        blur_kernel: Side of the kernel in pixels.
        solarise_threshold: ``(N,)``, above 1 for none.

    Returns:
        ``(N, 1, s, s)`` in [0, 1].
    """

    def column(values: Tensor) -> Tensor:
        return values.to(crops.device)[:, None, None, None]

    crops = (crops * column(torch.where(contrast_first, 1.0, brightness))).clamp_(0, 1)
    factor = column(contrast)
    crops = (crops * factor + (1 - factor) * crops.mean((1, 2, 3), keepdim=True)).clamp_(0, 1)
    crops = (crops * column(torch.where(contrast_first, brightness, 1.0))).clamp_(0, 1)
    blurred = blur_sigma.nonzero()[:, 0]
    if len(blurred):
        matrices = blur_matrices(blur_sigma[blurred].to(crops.device), blur_kernel, crops.shape[-1])
        here = blurred.to(crops.device)
        crops[here, 0] = torch.bmm(torch.bmm(matrices, crops[here, 0]), matrices.transpose(1, 2))
    if (solarise_threshold <= 1).any():
        crops = torch.where(crops >= column(solarise_threshold), 1 - crops, crops)
    return crops


def blur_matrices(sigma: Tensor, kernel: int, size: int) -> Tensor:
    """Return ``(N, size, size)`` that blur a column of pixels, reflected at its ends; ``sigma`` ``(N,)`` in pixels."""
    offsets = torch.arange(kernel, device=sigma.device) - kernel // 2
    weights = torch.exp(-0.5 * (offsets / sigma[:, None]) ** 2)
    weights = weights / weights.sum(1, keepdim=True)
    pixel = (torch.arange(size, device=sigma.device)[:, None] + offsets).abs()
    pixel = size - 1 - (size - 1 - pixel).abs()
    matrices = sigma.new_zeros(len(sigma), size, size)
    return matrices.scatter_add_(2, pixel.expand(len(sigma), -1, -1), weights[:, None].expand(-1, size, -1))


def _scale_of(pixels: Tensor, rows: list[list[float]]) -> IntensityScale:
    return IntensityScale(*torch.tensor(rows, device=pixels.device, dtype=torch.float32).unbind(1))


def _measured(low: Tensor, high: Tensor, mean: Tensor, std: Tensor) -> IntensityScale:
    """Return a measured scale whose ends differ, and whose spread is not 0, even where a slice has a single value."""
    return IntensityScale(low.float(), torch.maximum(high, low + 1).float(), mean.float(), std.clamp_min(1e-3).float())


def _inside(pixels: Tensor, sizes: Tensor) -> Tensor:
    height, width = sizes.to(pixels.device).unbind(1)
    rows = torch.arange(pixels.shape[1], device=pixels.device) < height[:, None]
    columns = torch.arange(pixels.shape[2], device=pixels.device) < width[:, None]
    return rows[:, :, None] & columns[:, None, :]


def _mean_std(values: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
    count = where.sum(1)
    mean = (values * where).sum(1) / count
    return mean, ((values - mean[:, None]).square() * where).sum(1).div(count).sqrt()


def _percentiles(pixels: Tensor, where: Tensor, percentiles: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Return percentiles ``(B,)`` float64 of int16 pixels ``(B, N)``, linear between neighbours; exact, by counting."""
    batch = len(pixels)
    keys = pixels.long() - LOWEST + VALUES * torch.arange(batch, device=pixels.device)[:, None]
    keys = torch.where(where, keys, batch * VALUES)
    counts = torch.bincount(keys.flatten(), minlength=batch * VALUES + 1)[:-1].view(batch, VALUES)
    below = counts.cumsum(1)
    total = below[:, -1]
    results = []
    for percent in percentiles:
        rank = (total - 1).double() * (percent / 100)
        ranks = torch.stack((rank.floor(), rank.ceil()), dim=1).long()
        first, second = torch.searchsorted(below, ranks, right=True).double().unbind(1)
        results.append(first + (second - first) * (rank - rank.floor()) + LOWEST)
    return results[0], results[1]
