"""Whole slices as a network sees them: the same ones every time, without augmentation, in the run's intensities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nnunetv2_meddino.errors import DataError
from nnunetv2_meddino.networks.vit import VisionTransformer
from pretraining.corpus.case_ids import short_name
from pretraining.corpus.dataset import SliceDataset
from pretraining.views import IntensityConfig
from pretraining.views.intensity import intensity_scale, to_input, to_unit

_GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class WholeSlice:
    """One slice."""

    name: str
    """For a title."""
    unit: Tensor
    """``(h, w)`` float32, the slice on the unit scale of its intensity rule; h and w are whole patches."""
    input: Tensor
    """``(1, h, w)`` float32, the same as network input."""


def whole_slice(name: str, pixels: Tensor, intensity: IntensityConfig, *, size: int, patch_size: int) -> WholeSlice:
    """Resize and normalise a slice.

    Args:
        name: For a title.
        pixels: ``(H, W)`` int16.
        intensity: Of the run; of several windows the first is taken.
        size: Longer side of the result in pixels. Both sides are rounded to whole patches.
        patch_size: Side of a patch.
    """
    height, width = pixels.shape
    sides = [max(round(side * size / max(height, width) / patch_size), 1) * patch_size for side in (height, width)]
    scale = intensity_scale(pixels[None], torch.tensor([[height, width]]), torch.tensor([0]), intensity)
    unit = to_unit(pixels[None], scale)[:, None]
    # as the training crops: antialiased bicubic, and no value beyond the clipping range
    unit = F.interpolate(unit, sides, mode="bicubic", align_corners=False, antialias=True).clamp_(0, 1)
    return WholeSlice(name, unit[0, 0], to_input(unit, scale)[0])


def watched_slices(
    dataset: SliceDataset, number: int, intensity: IntensityConfig, *, size: int, patch_size: int = 16
) -> list[WholeSlice]:
    """Return slices of a corpus, the same for the same corpus: every source has its share, all heights occur.

    Raises:
        DataError: The corpus has no usable slice, or one cannot be read.
    """
    slices = []
    for row in choose_rows(dataset, number):
        batch = dataset[row]
        height, width = batch.sizes[0].tolist()
        volume = int(dataset.volume[row])
        source, case = dataset.sources[dataset.source_of_volume[volume]], Path(dataset.paths[volume]).stem
        name = f"{short_name(source)} {short_name(case)} {dataset.index[row] + 1}/{dataset.counts[volume]}"
        pixels = batch.pixels[0, :height, :width]
        slices.append(whole_slice(name, pixels, intensity, size=size, patch_size=patch_size))
    return slices


def choose_rows(dataset: SliceDataset, number: int) -> list[int]:
    """Return up to ``number`` usable rows of the manifest, ascending.

    Sources take turns; the volumes of a source are spread over its list, and the heights over the scan by the golden
    ratio.

    Raises:
        DataError: The corpus has no usable slice.
    """
    groups = [rows for rows in dataset.rows_by_source().values() if len(rows)]
    if not groups:
        raise DataError(f"{dataset.corpus} has no slice to look at: all are flagged empty. Curate other volumes.")
    chosen = set()
    for turn in range(number):
        rows = groups[turn % len(groups)]
        volumes = np.unique(dataset.volume[rows])
        share = -(-(number - turn % len(groups)) // len(groups))
        volume = volumes[turn // len(groups) * len(volumes) // share]
        own = rows[dataset.volume[rows] == volume]
        chosen.add(int(own[int((0.5 + turn * _GOLDEN) % 1 * len(own))]))
    return sorted(chosen)


@torch.no_grad()
def patch_features(
    vit: VisionTransformer, slices: Sequence[WholeSlice], device: torch.device | str = "cpu"
) -> list[Tensor]:
    """Return the patch tokens of the last block after the final norm, ``(h, w, D)`` float32 for each slice.

    Slices go through one by one: they differ in shape.

    Raises:
        ValueError: The network is in training mode; what it says would be random.
    """
    if vit.training:
        raise ValueError("features are computed in evaluation mode; call eval() on the network first")
    last = vit.config.depth - 1
    features = []
    for whole in slices:
        image = whole.input[None].to(device).expand(1, vit.in_channels, -1, -1)
        (tokens,) = vit.forward_tokens(image, [last])
        grid = vit.grid_size(*whole.unit.shape)
        features.append(tokens.patches[0].float().unflatten(0, grid))
    return features
