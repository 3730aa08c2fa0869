"""iBOT block masks of a batch, with exactly the counts of the DINOv3 reference."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnunetv2_meddino.counter_random import numpy_generator
from pretraining.counter_random import Stream
from pretraining.views.config import MaskConfig

TRIES = 10
"""Blocks tried before the rest of a crop is masked patch by patch."""


@dataclass(frozen=True)
class PatchMasks:
    """Masked patches of the N = 2B global crops of some slices, crop-major; M patches are masked in all."""

    masks: Tensor
    """``(N, P)`` bool, patches row by row."""
    indices: Tensor
    """``(M,)`` int64, positions of the masked patches in the flattened masks."""
    weights: Tensor
    """``(M,)`` float32, one over the number of masked patches in the same crop."""

    def of_slices(self, start: int, count: int) -> PatchMasks:
        """Return the masks of both crops of some of the slices."""
        return _described(self.masks.unflatten(0, (2, -1))[:, start : start + count].flatten(0, 1))

    def to(self, device: torch.device | str) -> PatchMasks:
        """Return the masks on a device."""
        return PatchMasks(self.masks.to(device), self.indices.to(device), self.weights.to(device))


def mask_counts(crops: int, patches: int, config: MaskConfig) -> list[int]:
    """Return how many patches are masked in each masked crop, ascending.

    Of N crops ``int(N * probability)`` are masked; their shares are the upper edges of as many even parts of the range
    of ratios. Worked out in float32 as in the reference: 49 masked crops of 196 patches differ by one in float64.
    """
    masked = int(crops * config.probability)
    shares = torch.linspace(*config.ratio, masked + 1)[1:]
    return [int(patches * share) for share in shares]


def draw_masks(crops: int, grid: int, config: MaskConfig, *, seed: int, step: int, first: int) -> PatchMasks:
    """Draw the masks of a group of slices.

    Each masked crop is covered by blocks (BEiT: Bao et al. 2022), of an area uniform from ``min_patches`` to what is
    missing or half the crop, and a log-uniform aspect, as long as one of ten tries adds patches and not too many. What
    is then missing is filled up patch by patch at random, and the masks are given to crops at random.

    Args:
        crops: Number of global crops, N.
        grid: Patches along a side; P is its square.
        config: Shares and block shapes.
        seed: 0 to 2**32 - 1.
        step: Training step.
        first: Global index of the group's first slice, so that groups draw different masks.

    Raises:
        ConfigurationError: The seed is out of range.
    """
    generator = numpy_generator(seed, Stream.MASKS, step, first)
    targets = np.array(mask_counts(crops, grid * grid, config), np.int64)
    covered = _blocks(targets, grid, config, generator)
    missing = targets - covered.sum(1)
    order = generator.random(covered.shape)
    order[covered] = np.inf  # masked patches come last: the rank of the others says which of them fill up
    covered |= order.argsort(1).argsort(1) < missing[:, None]
    masks = np.zeros((crops, grid * grid), bool)
    masks[generator.random(crops).argsort()[: len(targets)]] = covered  # which crops are masked is random
    return _described(torch.from_numpy(masks))


def _described(masks: Tensor) -> PatchMasks:
    per_crop = masks.sum(1)
    weights = (1 / per_crop.clamp(min=1)).repeat_interleave(per_crop)
    return PatchMasks(masks, masks.flatten().nonzero()[:, 0], weights)


def _blocks(
    targets: NDArray[np.int64], grid: int, config: MaskConfig, generator: np.random.Generator
) -> NDArray[np.bool_]:
    """Return ``(n, P)`` masks of blocks, with at most the target number of patches each.

    All crops grow by one block at a time, in step, so that each step is a few operations on arrays.
    """
    covered = np.zeros((len(targets), grid, grid), bool)
    # summed-area tables of ``covered``: four look-ups count the masked patches in a block
    sums = np.zeros((len(targets), grid + 1, grid + 1), np.int64)
    largest = (grid // 2) * grid
    low_aspect = np.log(config.min_aspect)
    ticks = np.arange(grid)
    active = np.flatnonzero(targets > 0)
    while len(active):
        allowed = np.minimum(targets[active] - sums[active, -1, -1], largest)[:, None]
        area, aspect, row, column = np.moveaxis(generator.random((len(active), TRIES, 4)), -1, 0)
        area = config.min_patches + (allowed - config.min_patches) * area
        aspect = np.exp(low_aspect * (1 - 2 * aspect))
        height = np.rint(np.sqrt(area * aspect)).astype(np.int64)
        width = np.rint(np.sqrt(area / aspect)).astype(np.int64)
        top = (row * (grid - height + 1)).astype(np.int64).clip(0)
        left = (column * (grid - width + 1)).astype(np.int64).clip(0)
        fits = (height < grid) & (width < grid)
        # a block that does not fit becomes empty: it adds no patch and is never good
        bottom, right = np.where(fits, top + height, top), np.where(fits, left + width, left)
        crop = active[:, None]
        already = sums[crop, bottom, right] - sums[crop, top, right] - sums[crop, bottom, left] + sums[crop, top, left]
        new = (bottom - top) * (right - left) - already
        good = (new > 0) & (new <= allowed)
        first = good.argmax(1)
        grown = good.any(1)
        active = active[grown]  # a crop for which no try was good is finished, as in the reference
        box = [edges[grown, first[grown]][:, None] for edges in (top, bottom, left, right)]
        rows, columns = (ticks >= box[0]) & (ticks < box[1]), (ticks >= box[2]) & (ticks < box[3])
        covered[active] |= rows[:, :, None] & columns[:, None, :]
        sums[active, 1:, 1:] = covered[active].cumsum(1).cumsum(2)
        active = active[sums[active, -1, -1] < targets[active]]
    return covered.reshape(len(targets), grid * grid)
