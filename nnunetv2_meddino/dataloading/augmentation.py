"""nnU-Net's augmentation of 2D training samples, drawn apart from being applied.

Transforms, probabilities and ranges are those of ``nnUNetTrainer.get_training_transforms`` (nnunetv2 2.8.1) for a 2D
configuration. Two things differ, neither of them in what is drawn. The slice itself is sampled: a patch that is turned
or shrunk shows more of the slice where nnU-Net's crop has ended and shows 0. And patches are mirrored while they are
sampled, not at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from nnunetv2_meddino.compiled import jit
from nnunetv2_meddino.dataloading.warp import OUTSIDE, warp

Range = tuple[float, float]
PerChannel = tuple[float, ...]

ROTATION_PROBABILITY = 0.2
SCALING_PROBABILITY, SCALING = 0.2, (0.7, 1.4)
MIRROR_PROBABILITY = 0.5
NOISE_PROBABILITY, NOISE_STD = 0.1, (0.0, 0.1)
"""nnU-Net calls it a variance, and takes it for the standard deviation."""
BLUR_PROBABILITY, BLUR_SIGMA_PX = 0.2, (0.5, 1.0)
BRIGHTNESS_PROBABILITY, BRIGHTNESS = 0.15, (0.75, 1.25)
CONTRAST_PROBABILITY, CONTRAST = 0.15, (0.75, 1.25)
LOW_RESOLUTION_PROBABILITY, LOW_RESOLUTION = 0.25, (0.5, 1.0)
GAMMA_OF_INVERTED_PROBABILITY, GAMMA_PROBABILITY, GAMMA = 0.1, 0.3, (0.7, 1.5)
CHANNEL_PROBABILITY = 0.5
"""Of each channel to be blurred, or of lower resolution, where the sample is."""

SMALLEST = 1e-7
"""What a value range or a standard deviation is at least when it divides, as in batchgeneratorsv2."""


@dataclass(frozen=True)
class AugmentationSettings:
    """What nnU-Net's trainer decides about the augmentation of a configuration."""

    channels: int
    """Channels of the image."""
    rotation_rad: Range
    """Lowest and highest angle: half a turn, or 15 degrees where a patch is more than 1.5 times as long as wide."""
    mirror_axes: tuple[int, ...] = (0, 1)
    """Axes that may be mirrored: 0 rows, 1 columns."""


@dataclass(frozen=True)
class Augmentation:
    """What happens to one sample: plain numbers, 1 or 0 where nothing does."""

    rotation_rad: float
    """Angle by which the patch is turned in the slice, from rows to columns."""
    scaling: float
    """Pixels of the slice for one of the patch: above 1, objects get smaller."""
    mirrored: tuple[bool, bool]
    """Whether rows, and columns, are in reverse order."""
    noise_std: float
    """Standard deviation of Gaussian noise, the same in all channels; 0 for none."""
    noise_seed: int
    """Seed of the noise."""
    blur_sigma_px: tuple[Range, ...]
    """Standard deviation of each channel's Gaussian blur along rows and columns; 0 for none."""
    brightness: PerChannel
    """What each channel's values are multiplied with."""
    contrast: PerChannel
    """What each channel's distances from its mean are multiplied with; the channel's range stays."""
    low_resolution: PerChannel
    """The share of pixels of each axis that is left before the channel is enlarged again."""
    gamma_of_inverted: PerChannel
    """Exponent of each channel's values counted down from the highest; mean and standard deviation stay."""
    gamma: PerChannel
    """Exponent of each channel's values counted up from the lowest; mean and standard deviation stay."""

    def matrix(self, corner: tuple[float, float], size: tuple[int, int]) -> NDArray[np.float64]:
        """Return the matrix for ``warp`` of the patch that unturned, unscaled and unmirrored begins at ``corner``.

        Args:
            corner: Row and column of the slice where the patch's first pixel would be.
            size: Rows and columns of the patch.

        Returns:
            ``(2, 3)``: turns, scales and mirrors about the centre of the patch.
        """
        cosine, sine = math.cos(self.rotation_rad), math.sin(self.rotation_rad)
        turn = np.array([[cosine, -sine], [sine, cosine]]) * self.scaling
        linear = turn * np.where(self.mirrored, -1.0, 1.0)
        half = (np.array(size) - 1) / 2
        return np.column_stack([linear, corner + half - linear @ half])


def draw_augmentation(rng: np.random.Generator, settings: AugmentationSettings) -> Augmentation:
    """Draw what happens to one sample, with nnU-Net's probabilities and ranges."""

    def chance(probability: float) -> bool:
        return bool(rng.random() < probability)

    def per_channel(probability: float, draw: Callable[[], float]) -> PerChannel:
        return tuple(draw() for _ in range(settings.channels)) if chance(probability) else (1.0,) * settings.channels

    def around_one(around: Range) -> Callable[[], float]:
        return lambda: rng.uniform(around[0], 1) if chance(0.5) else rng.uniform(1, around[1])

    rotated, scaled, blurred = map(chance, (ROTATION_PROBABILITY, SCALING_PROBABILITY, BLUR_PROBABILITY))
    return Augmentation(
        rotation_rad=rng.uniform(*settings.rotation_rad) if rotated else 0.0,
        scaling=rng.uniform(*SCALING) if scaled else 1.0,
        mirrored=(
            0 in settings.mirror_axes and chance(MIRROR_PROBABILITY),
            1 in settings.mirror_axes and chance(MIRROR_PROBABILITY),
        ),
        noise_std=rng.uniform(*NOISE_STD) if chance(NOISE_PROBABILITY) else 0.0,
        noise_seed=int(rng.integers(2**63)),
        blur_sigma_px=tuple(
            (rng.uniform(*BLUR_SIGMA_PX), rng.uniform(*BLUR_SIGMA_PX))
            if blurred and chance(CHANNEL_PROBABILITY)
            else (0.0, 0.0)
            for _ in range(settings.channels)
        ),
        brightness=per_channel(BRIGHTNESS_PROBABILITY, around_one(BRIGHTNESS)),
        contrast=per_channel(CONTRAST_PROBABILITY, around_one(CONTRAST)),
        low_resolution=per_channel(
            LOW_RESOLUTION_PROBABILITY,
            lambda: rng.uniform(*LOW_RESOLUTION) if chance(CHANNEL_PROBABILITY) else 1.0,
        ),
        gamma_of_inverted=per_channel(GAMMA_OF_INVERTED_PROBABILITY, around_one(GAMMA)),
        gamma=per_channel(GAMMA_PROBABILITY, around_one(GAMMA)),
    )


def augment(
    image: NDArray[np.float32],
    labels: NDArray[np.int16],
    augmentation: Augmentation,
    matrix: NDArray[np.float64],
    size: tuple[int, int],
    masked: Sequence[bool] = (),
) -> tuple[NDArray[np.float32], NDArray[np.int16]]:
    """Make a training sample of a slice.

    Args:
        image: ``(C, H, W)``: the slice, or the part of it that ``source_box`` names.
        labels: ``(H, W)``; ``OUTSIDE`` is allowed.
        augmentation: What to do.
        matrix: That of the augmentation, with the first row and column of ``image`` at 0.
        size: Rows and columns of the sample.
        masked: For each channel whether it is 0 outside of what nnU-Net normalised (``use_mask_for_norm``).

    Returns:
        The image, ``(C, rows, columns)``, and the labels, ``(rows, columns)``, in which ``OUTSIDE`` has become 0.
    """
    image, labels = warp(image, labels, matrix, size)
    change_intensities(image, augmentation)
    outside = labels == OUTSIDE
    for channel, is_masked in zip(image, masked, strict=False):
        if is_masked:
            channel[outside] = 0
    labels[outside] = 0
    return image, labels


def change_intensities(image: NDArray[np.float32], augmentation: Augmentation) -> None:
    """Do in place what an augmentation does to the values of a patch, ``(C, rows, columns)``, in nnU-Net's order."""
    if augmentation.noise_std > 0:
        generator = torch.Generator().manual_seed(augmentation.noise_seed)
        torch.from_numpy(image).add_(torch.randn(image.shape, generator=generator), alpha=augmentation.noise_std)
    for number, channel in enumerate(image):
        if any(augmentation.blur_sigma_px[number]):
            blur(channel, augmentation.blur_sigma_px[number])
        if augmentation.brightness[number] != 1:
            channel *= augmentation.brightness[number]
        if augmentation.contrast[number] != 1:
            change_contrast(channel, augmentation.contrast[number])
        if augmentation.low_resolution[number] != 1:
            lower_resolution(channel, augmentation.low_resolution[number])
        if augmentation.gamma_of_inverted[number] != 1:
            np.negative(channel, out=channel)
            apply_gamma(channel, augmentation.gamma_of_inverted[number])
            np.negative(channel, out=channel)
        if augmentation.gamma[number] != 1:
            apply_gamma(channel, augmentation.gamma[number])


def blur(channel: NDArray[np.float32], sigma_px: Range) -> None:
    """Blur a channel in place along rows and columns, reflected about the centres of its outermost pixels."""
    down, across = (half_gaussian(sigma) for sigma in sigma_px)
    rows = np.pad(np.arange(channel.shape[0]), len(down) - 1, mode="reflect")
    columns = np.pad(np.arange(channel.shape[1]), len(across) - 1, mode="reflect")
    _convolve(channel, rows, columns, down, across)


def half_gaussian(sigma_px: float) -> NDArray[np.float32]:
    """Return weights from the centre outwards: 6 sigma + 0.5 taps, to the nearest odd number, as batchgeneratorsv2."""
    weights = np.exp(-0.5 * (np.arange(int(3 * sigma_px + 0.25) + 1) / sigma_px) ** 2)
    return (weights / (2 * weights.sum() - weights[0])).astype(np.float32)


@jit
def _convolve(
    channel: NDArray[np.float32],
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
    down: NDArray[np.float32],
    across: NDArray[np.float32],
) -> None:
    """Convolve in place with symmetric weights; ``rows`` and ``columns`` say where those of the padded channel are."""
    height, width = channel.shape
    padded = np.empty(len(columns), np.float32)
    once = np.empty((height, width), np.float32)
    reach = len(across) - 1
    for row in range(height):
        for column in range(len(columns)):
            padded[column] = channel[row, columns[column]]
        for column in range(width):
            once[row, column] = across[0] * padded[column + reach]
        for step in range(1, len(across)):
            for column in range(width):
                once[row, column] += across[step] * (padded[column + reach - step] + padded[column + reach + step])
    reach = len(down) - 1
    for row in range(height):
        for column in range(width):
            channel[row, column] = down[0] * once[row, column]
        for step in range(1, len(down)):
            above, below = rows[row + reach - step], rows[row + reach + step]
            for column in range(width):
                channel[row, column] += down[step] * (once[above, column] + once[below, column])


def change_contrast(channel: NDArray[np.float32], factor: float) -> None:
    """Multiply distances from the mean in place, within the range that the channel has."""
    low, high = _extremes(channel)
    mean = float(channel.mean())
    _scale(channel, factor, mean * (1 - factor))
    np.clip(channel, low, high, out=channel)


def lower_resolution(channel: NDArray[np.float32], share: float) -> None:
    """Keep a share of the pixels of each axis, the nearest ones, and interpolate between them bilinearly, in place."""
    rows, columns = (_nearest(length, round(length * share)) for length in channel.shape)
    coarse = torch.from_numpy(channel.take(rows, axis=0).take(columns, axis=1))
    fine = interpolate(coarse[None, None], channel.shape, mode="bilinear")
    channel[:] = fine[0, 0].numpy()


def _nearest(length: int, kept: int) -> NDArray[np.intp]:
    """Return which pixels hold the centres of ``kept`` equal parts of an axis, rounded as torch's ``nearest-exact``."""
    return ((np.arange(kept, dtype=np.float32) + 0.5) * (np.float32(length) / np.float32(kept))).astype(np.intp)


def apply_gamma(channel: NDArray[np.float32], gamma: float) -> None:
    """Raise values, as shares of their range, to a power in place; the mean and the standard deviation stay."""
    low, high = _extremes(channel)
    mean, std = _mean_and_std(channel)
    extent = high - low
    channel -= np.float32(low)
    channel *= np.float32(1 / max(extent, SMALLEST))
    np.power(channel, np.float32(gamma), out=channel)
    mean_now, std_now = _mean_and_std(channel)
    factor = extent * std / max(extent * std_now, SMALLEST)
    _scale(channel, factor, mean - factor * mean_now)


def _extremes(channel: NDArray[np.float32]) -> tuple[float, float]:
    return float(channel.min()), float(channel.max())


def _mean_and_std(channel: NDArray[np.float32]) -> tuple[float, float]:
    return float(channel.mean()), float(channel.std())


def _scale(channel: NDArray[np.float32], factor: float, offset: float) -> None:
    channel *= np.float32(factor)
    channel += np.float32(offset)


def to_regions(labels: NDArray[np.int16], regions: Sequence[int | Sequence[int]]) -> NDArray[np.bool_]:
    """Turn labels into nnU-Net's regions.

    Args:
        labels: ``(rows, columns)``.
        regions: The labels of each region; the ignore label as one more, where there is one.

    Returns:
        ``(regions, rows, columns)``: whether a pixel has one of the region's labels.
    """
    return np.stack([np.isin(labels, region) for region in regions])
