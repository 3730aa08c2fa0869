"""Augmentation on the device that trains: workers read, one batch at a time is warped and changed with torch.

What is drawn and the formulas are those of ``augmentation`` and ``warp``; noise has the drawn standard deviation, but a
GPU draws other numbers than a worker. Nothing here waits for a GPU: all that decides what is done is known to the host.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate, pad

from nnunetv2_meddino.dataloading.augmentation import SCALING, SMALLEST, Augmentation, Range, half_gaussian
from nnunetv2_meddino.dataloading.loader import Batch, Box, SampleSettings, SliceBatches
from nnunetv2_meddino.dataloading.warp import OUTSIDE


class Boxes(NamedTuple):
    """The boxes of a batch as workers hand them over: of a type in which torch finds the tensors to pin."""

    images: Tensor
    """Float32, in one dimension: the image ``(C, H, W)`` of each box, one after the other."""
    labels: Tensor
    """Int16, in one dimension: the labels ``(H, W)`` of each box."""
    sizes: NDArray[np.int64]
    """``(B, 2)``: rows and columns of each box."""
    matrices: NDArray[np.float64]
    """``(B, 2, 3)``: as for ``warp``, with the first row and column of the box at 0."""
    augmentations: list[Augmentation | None]
    """None for nothing."""
    keys: list[str]
    """The cases."""


def pack(boxes: Iterable[Box]) -> Boxes:
    """Put the boxes of a batch into one piece of memory, whatever their sizes."""
    boxes = list(boxes)
    return Boxes(
        images=torch.from_numpy(np.concatenate([box.image.ravel() for box in boxes])),
        labels=torch.from_numpy(np.concatenate([box.labels.ravel() for box in boxes])),
        sizes=np.array([box.labels.shape for box in boxes], np.int64),
        matrices=np.stack([box.matrix for box in boxes]),
        augmentations=[box.augmentation for box in boxes],
        keys=[box.case for box in boxes],
    )


class BoxBatches(SliceBatches):
    """The boxes that a batch of one rank is made of, at any step."""

    def hand_over(self, step: int) -> Boxes:
        """Read the boxes of a step.

        Raises:
            DataError: A case cannot be read.
        """
        return pack(self.boxes(step))

    def most_bytes(self) -> int:
        """Return the bytes of the largest boxes that can be drawn: the patch turned and scaled, inside its slice.

        Raises:
            DataError: A case cannot be read.
        """
        cases, (rows, columns) = self.cases, self.draws.size
        reach = math.ceil(SCALING[1] * math.hypot(rows - 1, columns - 1)) + 2
        most = max(min(reach, height) * min(reach, width) for _, height, width in map(cases.shape, cases.names))
        of_pixel = 4 * cases.channels(cases.names[0]) + 2
        return len(self.places) * most * of_pixel


@dataclass(frozen=True)
class DeviceAugmentation:
    """Makes batches of boxes on a device."""

    size: tuple[int, int]
    """Rows and columns of a sample."""
    settings: SampleSettings
    device: torch.device

    def __call__(self, boxes: Boxes) -> Batch:
        """Return what ``SliceBatches`` would make of the boxes, on the device."""
        data, labels = warp(boxes, self.size, self.device)
        for image, augmentation in zip(data, boxes.augmentations, strict=True):
            if augmentation is not None:
                change_intensities(image, augmentation)
        outside = labels == OUTSIDE
        for channel, is_masked in zip(data.unbind(1), self.settings.masked, strict=False):
            if is_masked:
                channel.masked_fill_(outside, 0)
        labels.masked_fill_(outside, 0)
        regions = self.settings.regions
        target = labels[:, None] if regions is None else to_regions(labels, regions)
        return {"data": data, "target": target, "keys": boxes.keys}


def warp(boxes: Boxes, size: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Sample all patches of a batch, each from its box, as ``dataloading.warp.warp`` does one.

    Args:
        boxes: From ``pack``.
        size: Rows and columns of a patch.
        device: Where to.

    Returns:
        Images ``(B, C, rows, columns)``, 0 outside of the slice, and labels ``(B, rows, columns)``, ``OUTSIDE`` there.
    """
    images, labels = (tensor.to(device, non_blocking=True) for tensor in (boxes.images, boxes.labels))
    areas = boxes.sizes.prod(axis=1)
    per_box = np.column_stack([boxes.sizes, areas, areas.cumsum() - areas])
    height, width, area, start = _on(device, per_box).T[..., None, None]  # each (B, 1, 1)
    channels = images.numel() // labels.numel()
    shifts = area[:, None] * torch.arange(channels, device=device)[:, None, None]  # (B, C, 1, 1)
    (above, left), (down, right) = _places(boxes.matrices, size, device)
    patches = torch.zeros(len(areas), channels, *size, device=device)
    neighbours, weights = [], []
    for below, beside in ((0, 0), (0, 1), (1, 0), (1, 1)):
        y, x = above + below, left + beside
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        place = torch.where(inside, y * width + x, 0)
        weight = (down if below else 1 - down) * (right if beside else 1 - right)
        values = images[(channels * start + place)[:, None] + shifts]
        patches += values * torch.where(inside, weight, 0)[:, None]
        neighbours.append(torch.where(inside, labels[start + place], OUTSIDE))
        weights.append(weight)
    return patches, _heaviest(neighbours, weights)


def _places(
    matrices: NDArray[np.float64], size: tuple[int, int], device: torch.device
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return where each pixel of the patches lies: row and column of the pixel above left, and how far beyond it.

    A place is the sum of what its row and its column contribute. Whole pixels are split off from either in float64, so
    that float32 holds the rest to 1e-7 pixels; not every device has float64.

    Returns:
        Two int64 tensors and two float32 tensors, from 0 to below 1, each ``(B, rows, columns)``.
    """
    rows, columns = size
    by_row = matrices[:, :, :1] * np.arange(rows) + matrices[:, :, 2:]
    by_column = matrices[:, :, 1:2] * np.arange(columns)
    places = np.concatenate([by_row, by_column], axis=2)
    whole = np.floor(places)
    pixels, rests = _on(device, whole.astype(np.int64)), _on(device, (places - whole).astype(np.float32))
    pixel = pixels[:, :, :rows, None] + pixels[:, :, None, rows:]
    rest = rests[:, :, :rows, None] + rests[:, :, None, rows:]
    carried = rest.floor()
    return (pixel + carried.long()).unbind(1), (rest - carried).unbind(1)


def _on(device: torch.device, array: NDArray) -> Tensor:
    return torch.from_numpy(array).to(device, non_blocking=True)


def _heaviest(neighbours: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """Return the label with most of the weight among the four of each pixel, the first of several."""
    best, most = neighbours[0], torch.full_like(weights[0], -1)
    for candidate in neighbours:
        weight = torch.zeros_like(most)
        for neighbour, own in zip(neighbours, weights, strict=True):
            weight += torch.where(neighbour == candidate, own, 0)
        best = torch.where(weight > most, candidate, best)
        most = torch.maximum(weight, most)
    return best


def change_intensities(image: Tensor, augmentation: Augmentation) -> None:
    """Do in place what an augmentation does to the values of a patch, ``(C, rows, columns)``, in nnU-Net's order."""
    if augmentation.noise_std > 0:
        generator = torch.Generator(image.device).manual_seed(augmentation.noise_seed)
        noise = torch.randn(image.shape, generator=generator, device=image.device)
        image.add_(noise, alpha=augmentation.noise_std)
    for number, channel in enumerate(image):
        if any(augmentation.blur_sigma_px[number]):
            blur(channel, augmentation.blur_sigma_px[number])
        if augmentation.brightness[number] != 1:
            channel.mul_(augmentation.brightness[number])
        if augmentation.contrast[number] != 1:
            change_contrast(channel, augmentation.contrast[number])
        if augmentation.low_resolution[number] != 1:
            lower_resolution(channel, augmentation.low_resolution[number])
        if augmentation.gamma_of_inverted[number] != 1:
            apply_gamma(channel.neg_(), augmentation.gamma_of_inverted[number])
            channel.neg_()
        if augmentation.gamma[number] != 1:
            apply_gamma(channel, augmentation.gamma[number])


def blur(channel: Tensor, sigma_px: Range) -> None:
    """Blur a channel in place along rows and columns, reflected about the centres of its outermost pixels."""
    blurred = channel
    for axis, sigma in enumerate(sigma_px):
        blurred = _convolve(blurred, axis, half_gaussian(sigma).tolist())
    channel.copy_(blurred)


def _convolve(channel: Tensor, axis: int, weights: Sequence[float]) -> Tensor:
    """Convolve along an axis with symmetric weights; not by torch's, which is less precise on a GPU (TF32)."""
    length, reach = channel.shape[axis], len(weights) - 1
    widths = (0, 0, reach, reach) if axis == 0 else (reach, reach, 0, 0)
    padded = pad(channel[None], widths, mode="reflect")[0]
    result = channel * weights[0]
    for step, weight in enumerate(weights[1:], start=1):
        both = padded.narrow(axis, reach - step, length) + padded.narrow(axis, reach + step, length)
        result.add_(both, alpha=weight)
    return result


def change_contrast(channel: Tensor, factor: float) -> None:
    """Multiply distances from the mean in place, within the range that the channel has."""
    low, high = channel.aminmax()
    mean = channel.mean()
    channel.mul_(factor).add_(mean * (1 - factor)).clamp_(low, high)


def lower_resolution(channel: Tensor, share: float) -> None:
    """Keep a share of the pixels of each axis, the nearest ones, and interpolate between them bilinearly, in place."""
    kept = [round(length * share) for length in channel.shape]
    coarse = interpolate(channel[None, None], kept, mode="nearest-exact")
    channel.copy_(interpolate(coarse, channel.shape, mode="bilinear")[0, 0])


def apply_gamma(channel: Tensor, gamma: float) -> None:
    """Raise values, as shares of their range, to a power in place; the mean and the standard deviation stay."""
    low, high = channel.aminmax()
    std, mean = torch.std_mean(channel, correction=0)
    extent = high - low
    channel.sub_(low).div_(extent.clamp(min=SMALLEST)).pow_(gamma)
    std_now, mean_now = torch.std_mean(channel, correction=0)
    factor = extent * std / (extent * std_now).clamp(min=SMALLEST)
    channel.mul_(factor).add_(mean - factor * mean_now)


def to_regions(labels: Tensor, regions: Sequence[int | Sequence[int]]) -> Tensor:
    """Turn labels ``(B, rows, columns)`` into nnU-Net's regions, ``(B, regions, rows, columns)`` boolean."""
    return torch.stack([_is_one_of(labels, region) for region in regions], dim=1)


def _is_one_of(labels: Tensor, region: int | Sequence[int]) -> Tensor:
    of_region = (region,) if isinstance(region, int) else region
    return functools.reduce(torch.logical_or, [labels == label for label in of_region])
