"""What is random about views, drawn from seeds before anything is done: regions, flips, augmentation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnunetv2_meddino.counter_random import numpy_generator
from pretraining.counter_random import Stream
from pretraining.views.config import ViewConfig

TRIES = 10
"""Regions drawn before the central one is taken, as torchvision's RandomResizedCrop."""

NO_SOLARISE = 2.0
"""A threshold above every value."""

DRAWS = 2 * TRIES + 10
"""Random numbers of a view."""


@dataclass(frozen=True)
class ViewParameters:
    """All that was drawn for a batch of B slices with V views each, on the host. Views 0 and 1 are the global ones."""

    boxes: Tensor
    """``(B, V, 4)`` int64: top, left, height, width of the region in pixels of the slice."""
    flips: Tensor
    """``(B, V)`` bool: mirrored left and right."""
    brightness: Tensor
    """``(B, V)`` float32 factor; 1 is none."""
    contrast: Tensor
    """``(B, V)`` float32 factor; 1 is none."""
    contrast_first: Tensor
    """``(B, V)`` bool: contrast before brightness."""
    blur_sigma: Tensor
    """``(B, V)`` float32 in pixels of the crop; 0 is none."""
    solarise_threshold: Tensor
    """``(B, V)`` float32 on the unit scale; 2 is none."""
    window: Tensor
    """``(B,)`` int64, which of the configured windows."""


DTYPES = {
    "boxes": torch.int64,
    "flips": torch.bool,
    "brightness": torch.float32,
    "contrast": torch.float32,
    "contrast_first": torch.bool,
    "blur_sigma": torch.float32,
    "solarise_threshold": torch.float32,
    "window": torch.int64,
}


def draw_parameters(sizes: Tensor, global_index: Tensor, config: ViewConfig, *, seed: int, step: int) -> ViewParameters:
    """Draw the parameters of all views of a batch.

    What a view gets depends on the seed, the step, the position of its slice in the step's global batch, its own number
    and the size of its slice, and on nothing else: not on the device, the rank, or what else is in the batch.

    Args:
        sizes: ``(B, 2)`` height and width of the slices in pixels.
        global_index: ``(B,)`` positions in the step's global batch.
        config: What to draw.
        seed: 0 to 2**32 - 1.
        step: Training step.

    Raises:
        ConfigurationError: The seed is out of range.
    """
    generators = [numpy_generator(seed, Stream.VIEWS, step, index) for index in global_index.tolist()]
    of_slice = np.array([generator.random() for generator in generators])
    draws = np.array([generator.random((config.num_views, DRAWS)) for generator in generators])
    scales = np.array([config.global_scale] * 2 + [config.local_scale] * config.num_local)
    boxes = draw_boxes(draws[..., : 2 * TRIES + 2], sizes.numpy()[:, None], scales, config.ratio)
    flip, jitter, brightness, contrast, order, blur, sigma, solarise = np.moveaxis(draws[..., 2 * TRIES + 2 :], -1, 0)
    jittered = jitter < config.jitter_probability
    blurred = blur < np.array(config.blur_probabilities)
    low, high = config.blur_sigma
    solarised = (solarise < config.global_2_solarise_probability) & (np.arange(config.num_views) == 1)
    drawn = {
        "boxes": boxes,
        "flips": flip < config.flip_probability,
        "brightness": np.where(jittered, 1 + config.brightness * (2 * brightness - 1), 1),
        "contrast": np.where(jittered, 1 + config.contrast * (2 * contrast - 1), 1),
        "contrast_first": order < 0.5,
        "blur_sigma": np.where(blurred, low + (high - low) * sigma, 0),
        "solarise_threshold": np.where(solarised, config.solarise_threshold, NO_SOLARISE),
        "window": np.floor(of_slice * len(config.intensity.windows_hu)),
    }
    return ViewParameters(**{name: torch.from_numpy(drawn[name]).to(dtype) for name, dtype in DTYPES.items()})


def draw_boxes(
    draws: NDArray[np.float64], sizes: NDArray[np.int64], scales: NDArray[np.float64], ratio: tuple[float, float]
) -> NDArray[np.int64]:
    """Return crop regions by the law of torchvision's ``RandomResizedCrop``.

    Ten times an area uniform in ``scales`` and an aspect log-uniform in ``ratio``; the first region that fits is put
    anywhere; if none fits, the largest central one of an allowed aspect.

    Args:
        draws: ``(..., 22)`` uniform in [0, 1): ten pairs for area and aspect, then the row and the column.
        sizes: ``(..., 2)`` height and width of the images.
        scales: ``(..., 2)`` smallest and largest share of the area.
        ratio: Smallest and largest width by height.

    Returns:
        ``(..., 4)`` int64: top, left, height, width, inside the image; the leading shapes are broadcast.
    """
    tries = draws[..., : 2 * TRIES].reshape(*draws.shape[:-1], TRIES, 2)
    full_height, full_width = sizes[..., None, 0], sizes[..., None, 1]
    share = scales[..., None, 0] + (scales[..., None, 1] - scales[..., None, 0]) * tries[..., 0]
    area = full_height * full_width * share
    low, high = np.log(ratio)
    aspect = np.exp(low + (high - low) * tries[..., 1])
    widths, heights = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    fits = (widths > 0) & (widths <= full_width) & (heights > 0) & (heights <= full_height)
    chosen = fits.argmax(-1)[..., None]
    height, width = (np.take_along_axis(side, chosen, -1)[..., 0] for side in (heights, widths))
    full_height, full_width, found = full_height[..., 0], full_width[..., 0], fits.any(-1)
    top = np.floor(draws[..., -2] * (full_height - height + 1))
    left = np.floor(draws[..., -1] * (full_width - width + 1))
    central_height = np.where(full_width / full_height < ratio[0], np.rint(full_width / ratio[0]), full_height)
    central_width = np.where(full_width / full_height > ratio[1], np.rint(full_height * ratio[1]), full_width)
    central = ((full_height - central_height) // 2, (full_width - central_width) // 2, central_height, central_width)
    box = [np.where(found, a, b) for a, b in zip((top, left, height, width), central, strict=True)]
    return np.stack(box, axis=-1).astype(np.int64)
