"""From a batch of slices to a training batch: views, masks, and what was drawn, the same code on every device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from nnunetv2_meddino.errors import DataError
from pretraining.groups import Share
from pretraining.views.config import ViewConfig
from pretraining.views.crops import ViewParameters, draw_parameters
from pretraining.views.intensity import IntensityScale, augment, intensity_scale, to_input, to_unit
from pretraining.views.masks import PatchMasks, draw_masks
from pretraining.views.resize import crop_resize, resize

GLOBAL_VIEWS, LOCAL_VIEWS = slice(2), slice(2, None)


class SliceBatch(Protocol):
    """Slices as the corpus hands them over: padded int16 pixels on any device, the rest on the host."""

    @property
    def pixels(self) -> Tensor:
        """``(B, S, S)`` int16, each slice at the top left."""

    @property
    def sizes(self) -> Tensor:
        """``(B, 2)`` height and width."""

    @property
    def global_index(self) -> Tensor:
        """``(B,)`` positions in the step's global batch, ascending by one."""


@dataclass(frozen=True)
class Views:
    """A training batch of B slices, crop-major: crop 0 of all slices, then crop 1 of all, as the DINOv3 reference."""

    global_crops: Tensor
    """``(2B, 1, g, g)``."""
    local_crops: Tensor
    """``(L * B, 1, l, l)``."""
    gram_crops: Tensor | None
    """``(2B, 1, G, G)``, regions and flips of ``global_crops`` without augmentation; None without a Gram size."""
    masks: PatchMasks
    """Masked patches of ``global_crops``."""
    parameters: ViewParameters
    """All that was drawn, on the host."""


def make_views(
    slices: SliceBatch,
    config: ViewConfig,
    *,
    seed: int,
    step: int,
    share: Share | None = None,
) -> Views:
    """Make all views of a batch where its pixels are.

    The crops of a slice depend on the seed, the step and its global index alone: however batches are split over ranks,
    the same views come out, on every device up to rounding. Masks are drawn for the group that the batch is a share of,
    since their counts are spread over it.

    Args:
        slices: The batch.
        config: What the views look like.
        seed: 0 to 2**32 - 1.
        step: Training step.
        share: What the batch is of its group; by default all of it.

    Raises:
        ConfigurationError: The seed is out of range.
        DataError: The batch is not int16, or a slice is larger than its padding.
    """
    _check_batch(slices)
    parameters = draw_parameters(slices.sizes, slices.global_index, config, seed=seed, step=step)
    grid = config.global_size // config.masks.patch_size
    share = share or Share.whole(len(slices.pixels))
    first = int(slices.global_index[0]) - share.start
    group_masks = draw_masks(2 * share.group, grid, config.masks, seed=seed, step=step, first=first)
    masks = group_masks.of_slices(share.start, share.count)
    # products in bfloat16 would cost 3 of the 11 bits of a CT value
    with torch.no_grad(), torch.autocast(slices.pixels.device.type, enabled=False):
        scale = intensity_scale(slices.pixels, slices.sizes, parameters.window, config.intensity)
        unit = to_unit(slices.pixels, scale)
        global_crops, gram_crops = _global_crops(unit, scale, parameters, config)
        local_crops = _crops(unit, parameters, LOCAL_VIEWS, config.local_size)
        local_crops = to_input(_augmented(local_crops, parameters, LOCAL_VIEWS, config.blur_kernel), scale)
    return Views(global_crops, local_crops, gram_crops, masks.to(slices.pixels.device), parameters)


def _check_batch(slices: SliceBatch) -> None:
    if slices.pixels.dtype != torch.int16:
        raise DataError(f"slices must be int16 as the corpus stores them, not {slices.pixels.dtype}")
    if (slices.sizes > torch.tensor(slices.pixels.shape[1:])).any() or (slices.sizes < 1).any():
        raise DataError(f"slice sizes {slices.sizes.tolist()} do not fit the batch {tuple(slices.pixels.shape)}")


def _global_crops(
    unit: Tensor, scale: IntensityScale, parameters: ViewParameters, config: ViewConfig
) -> tuple[Tensor, Tensor | None]:
    """Return global and Gram crops, both resized from one crop of the larger size, as the reference does."""
    base = _crops(unit, parameters, GLOBAL_VIEWS, max(config.global_size, config.gram_size or 0))
    gram = None if config.gram_size is None else to_input(_resized(base, config.gram_size), scale)
    crops = _augmented(_resized(base, config.global_size), parameters, GLOBAL_VIEWS, config.blur_kernel)
    return to_input(crops, scale), gram


def _crops(unit: Tensor, parameters: ViewParameters, views: slice, size: int) -> Tensor:
    """Return crops ``(V * B, 1, size, size)`` on the unit scale before augmentation."""
    crops = crop_resize(unit, parameters.boxes[:, views], parameters.flips[:, views], size)
    # the bicubic kernel overshoots; no value beyond the clipping range is ever seen outside of training
    return crops.clamp_(0, 1).transpose(0, 1).reshape(-1, 1, size, size)


def _resized(crops: Tensor, size: int) -> Tensor:
    return crops if crops.shape[-1] == size else resize(crops, size).clamp_(0, 1)


def _augmented(crops: Tensor, parameters: ViewParameters, views: slice, blur_kernel: int) -> Tensor:
    names = ("brightness", "contrast", "contrast_first", "blur_sigma", "solarise_threshold")
    crop_major = {name: getattr(parameters, name)[:, views].T.flatten() for name in names}
    return augment(crops, blur_kernel=blur_kernel, **crop_major)
