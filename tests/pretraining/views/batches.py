"""Batches of slices for the tests of views."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    pixels: Tensor
    sizes: Tensor
    global_index: Tensor

    def part(self, start: int, stop: int) -> Batch:
        return Batch(self.pixels[start:stop], self.sizes[start:stop], self.global_index[start:stop])

    def padded_with(self, value: int) -> Batch:
        pixels = self.pixels.clone()
        for image, (height, width) in zip(pixels, self.sizes.tolist(), strict=True):
            image[height:] = value
            image[:, width:] = value
        return replace(self, pixels=pixels)


def noise(count: int, side: int, sizes: list[tuple[int, int]] | None = None, *, seed: int = 0) -> Batch:
    """Slices of noise over the CT range and beyond, padded with air."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(-1200, 1500, (count, side, side), generator=generator, dtype=torch.int16)
    return Batch(pixels, torch.tensor(sizes or [(side, side)] * count), torch.arange(count)).padded_with(-1024)


def ramp(count: int, side: int, axis: int) -> Batch:
    """Slices whose values are their rows (axis 0) or columns (axis 1)."""
    line = torch.arange(side, dtype=torch.int16)
    image = line[:, None].expand(side, side) if axis == 0 else line.expand(side, side)
    return Batch(image.repeat(count, 1, 1), torch.tensor([(side, side)] * count), torch.arange(count))
