"""From a batch of slices to a training batch: views, masks, and what was drawn, the same code on every device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from nnunetv2_meddino.errors import DataError
from pretraining.groups import Share
from pretraining.views.config import ViewConfig
from pretraining.views.crops import ViewParameters, draw_parameters
from pretraining.views.intensity import Levels, distort, slice_levels, to_input, to_unit
from pretraining.views.masks import PatchMasks, draw_masks
from pretraining.views.resize import crop_resize, resize

GLOBAL_VIEWS = (0, 1)


class SliceBatch(Protocol):
    """Slices as the corpus hands them over: padded int16 pixels on any device, the rest on the host."""

    @property
    def pixels(self) -> Tensor:
        """``(B, S, S)`` int16, each slice at the top left."""

    @property
    def sizes(self) -> Tensor:
        """``(B, 2)`` height and width."""

    @property
    def places(self) -> Tensor:
        """``(B,)`` places in the step's global batch, ascending by one."""


@dataclass(frozen=True)
class Views:
    """A training batch of B slices, crop-major: crop 0 of all slices, then crop 1 of all, as the DINOv3 reference.

    Attributes:
        global_crops: ``(2B, 1, g, g)``.
        local_crops: ``(L * B, 1, l, l)``.
        gram_crops: ``(2B, 1, G, G)``, regions and flips of ``global_crops``, undistorted; None without a Gram size.
        masks: Masked patches of ``global_crops``.
        parameters: All that was drawn, on the host.
    """

    global_crops: Tensor
    local_crops: Tensor
    gram_crops: Tensor | None
    masks: PatchMasks
    parameters: ViewParameters


def make_views(
    slices: SliceBatch,
    config: ViewConfig,
    *,
    seed: int,
    step: int,
    share: Share | None = None,
    dtype: torch.dtype = torch.float32,
) -> Views:
    """Make all views of a batch where its pixels are.

    The crops of a slice depend on the seed, the step and its place alone: batches may be split over ranks in any way,
    and the same views come out, on every device up to rounding. Masks are drawn for the group that the batch is a share
    of, since their counts are spread over it.

    Args:
        slices: The batch.
        config: What the views look like.
        seed: 0 to 2**32 - 1.
        step: Training step.
        share: What the batch is of its group; by default all of it.
        dtype: Of the crops; the work is done in float32.

    Raises:
        ConfigurationError: The seed is out of range.
        DataError: The batch is not int16, or a slice is larger than its padding.
    """
    _check_batch(slices)
    parameters = draw_parameters(slices.sizes, slices.places, config, seed=seed, step=step)
    grid = config.global_size // config.masks.patch_size
    share = share or Share.whole(len(slices.pixels))
    place = int(slices.places[0]) - share.start
    drawn = draw_masks(2 * share.group, grid, config.masks, seed=seed, step=step, place=place)
    masks = drawn.of_slices(share.start, share.count)
    # products in bfloat16 would cost 3 of the 11 bits of a CT value
    with torch.no_grad(), torch.autocast(slices.pixels.device.type, enabled=False):
        unit, levels = _unit_slices(slices, parameters, config)
        global_crops, gram_crops = _global_crops(unit, levels, parameters, config, GLOBAL_VIEWS)
        local_crops = _local_crops(unit, levels, parameters, config, range(2, config.num_views))
    return Views(
        global_crops.to(dtype),
        local_crops.to(dtype),
        None if gram_crops is None else gram_crops.to(dtype),
        masks.to(slices.pixels.device),
        parameters,
    )


def replay_view(slices: SliceBatch, parameters: ViewParameters, config: ViewConfig, view: int) -> Tensor:
    """Make one view of every slice again from what was drawn for it.

    Args:
        slices: The batch, or a part of it.
        parameters: Of the same slices; ``ViewParameters.of_sample`` gives those of one.
        config: As when the parameters were drawn.
        view: 0 and 1 are the global crops, the rest local.

    Returns:
        ``(B, 1, s, s)`` float32.

    Raises:
        DataError: As ``make_views``.
    """
    _check_batch(slices)
    with torch.no_grad(), torch.autocast(slices.pixels.device.type, enabled=False):
        unit, levels = _unit_slices(slices, parameters, config)
        if view in GLOBAL_VIEWS:
            return _global_crops(unit, levels, parameters, config, (view,))[0]
        return _local_crops(unit, levels, parameters, config, (view,))


def _check_batch(slices: SliceBatch) -> None:
    if slices.pixels.dtype != torch.int16:
        raise DataError(f"slices must be int16 as the corpus stores them, not {slices.pixels.dtype}")
    if (slices.sizes > torch.tensor(slices.pixels.shape[1:])).any() or (slices.sizes < 1).any():
        raise DataError(f"slice sizes {slices.sizes.tolist()} do not fit the batch {tuple(slices.pixels.shape)}")


def _unit_slices(slices: SliceBatch, parameters: ViewParameters, config: ViewConfig) -> tuple[Tensor, Levels]:
    levels = slice_levels(slices.pixels, slices.sizes, parameters.window, config.intensity)
    return to_unit(slices.pixels, levels), levels


def _global_crops(
    unit: Tensor, levels: Levels, parameters: ViewParameters, config: ViewConfig, views: Sequence[int]
) -> tuple[Tensor, Tensor | None]:
    """Return global and Gram crops, both resized from one crop of the larger size, as the reference does."""
    base = _crops(unit, parameters, views, max(config.global_size, config.gram_size or 0))
    gram = None if config.gram_size is None else to_input(_resized(base, config.gram_size), levels)
    crops = _distorted(_resized(base, config.global_size), parameters, views, config.blur_kernel)
    return to_input(crops, levels), gram


def _local_crops(
    unit: Tensor, levels: Levels, parameters: ViewParameters, config: ViewConfig, views: Sequence[int]
) -> Tensor:
    crops = _crops(unit, parameters, views, config.local_size)
    return to_input(_distorted(crops, parameters, views, config.blur_kernel), levels)


def _crops(unit: Tensor, parameters: ViewParameters, views: Sequence[int], size: int) -> Tensor:
    """Return undistorted crops ``(V * B, 1, size, size)`` on the unit scale."""
    chosen = list(views)
    crops = crop_resize(unit, parameters.boxes[:, chosen], parameters.flips[:, chosen], size)
    # the bicubic kernel overshoots; no value beyond the clipping range is ever seen outside of training
    return crops.clamp_(0, 1).transpose(0, 1).reshape(-1, 1, size, size)


def _resized(crops: Tensor, size: int) -> Tensor:
    return crops if crops.shape[-1] == size else resize(crops, size).clamp_(0, 1)


def _distorted(crops: Tensor, parameters: ViewParameters, views: Sequence[int], blur_kernel: int) -> Tensor:
    def column(values: Tensor) -> Tensor:
        return values[:, list(views)].T.flatten()

    return distort(
        crops,
        brightness=column(parameters.brightness),
        contrast=column(parameters.contrast),
        contrast_first=column(parameters.contrast_first),
        blur_sigma=column(parameters.blur_sigma),
        blur_kernel=blur_kernel,
        solarise_threshold=column(parameters.solarise_threshold),
    )
