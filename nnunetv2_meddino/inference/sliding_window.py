"""Networks of a fixed patch size on slices of any size, as nnU-Net's prediction tiles and blends them."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from nnunetv2.inference.sliding_window_prediction import compute_gaussian, compute_steps_for_sliding_window
from torch import Tensor

Size = tuple[int, int]

SIGMA_SCALE = 1 / 8
"""Width of the Gaussian that weights a tile, in tiles (nnU-Net's)."""


class SlidingWindow:
    """Slices of one size, padded to at least a patch and covered by overlapping tiles."""

    def __init__(self, size: Size, patch_size: Size, step_size: float, device: torch.device) -> None:
        """Lay out the tiles.

        Args:
            size: Rows and columns of the slices.
            patch_size: Of the network.
            step_size: Distance of the tiles as a fraction of a patch, at most.
            device: Of the logits.
        """
        self.size, self.patch_size = size, patch_size
        padded = [max(n, p) for n, p in zip(size, patch_size, strict=True)]
        (self._top, bottom), (self._left, right) = (
            ((p - n) // 2, (p - n) - (p - n) // 2) for n, p in zip(size, padded, strict=True)
        )
        self._padding = (self._left, right, self._top, bottom)
        rows, columns = compute_steps_for_sliding_window(tuple(padded), patch_size, step_size)
        self._places = [
            (..., slice(row, row + patch_size[0]), slice(column, column + patch_size[1]))
            for row in rows
            for column in columns
        ]
        if len(self._places) > 1:
            weight = compute_gaussian(patch_size, SIGMA_SCALE, value_scaling_factor=10, device=device)
            self._weight = weight.float()  # nnU-Net's own, of half precision, in which far corners are hardly seen
            self._total = torch.zeros(padded, device=device)
            for place in self._places:
                self._total[place] += self._weight

    def logits(self, slices: Tensor, predict: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the logits of slices; where one tile covers the slice they are the network's own.

        Args:
            slices: ``(B, C, rows, columns)``.
            predict: The network: ``(B, C, *patch_size)`` to ``(B, K, *patch_size)`` float32.

        Returns:
            ``(B, K, rows, columns)`` float32.
        """
        padded = F.pad(slices, self._padding) if any(self._padding) else slices
        if len(self._places) == 1:
            logits = predict(padded)
        else:
            logits = torch.empty(0)
            for i, place in enumerate(self._places):
                tile = predict(padded[place].contiguous())
                if i == 0:
                    logits = tile.new_zeros(*tile.shape[:2], *padded.shape[2:])
                logits[place] += tile.mul_(self._weight)
            logits /= self._total
        rows, columns = self.size
        return logits[..., self._top : self._top + rows, self._left : self._left + columns]
