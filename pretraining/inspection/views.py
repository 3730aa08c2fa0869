"""A picture of what the training makes of a corpus' slices: crops, augmentation, hidden patches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nnunetv2_meddino.errors import DataError
from nnunetv2_meddino.visualization.style import COLOURS, DARK, Theme
from pretraining.corpus.case_ids import short_name
from pretraining.corpus.dataset import SliceDataset, Slices
from pretraining.corpus.format import read_volumes
from pretraining.inspection.montage import Tile, choose_slices, save_tiles
from pretraining.modality import Modality
from pretraining.views import IntensityConfig, ViewConfig, Views, make_views
from pretraining.views.intensity import intensity_scale, to_input

DRAWN = ViewConfig(gram_size=512)
"""The defaults, and the Gram crops of the second stage."""

SEED, SLICES, LOCAL_CROPS = 0, 6, 4


def save_views(corpus: Path, path: Path, theme: Theme = DARK) -> Path:
    """Write a montage of views and return its path: a row a slice, made by the training's own code.

    Raises:
        DataError: There is no finished corpus, it is empty, or a file of it cannot be read.
    """
    title = (
        f"views of the training with default settings, seed {SEED}: crops of {DRAWN.global_size}, {DRAWN.local_size} "
        f"and {DRAWN.gram_size} pixels; shaded patches are hidden from the student; grey: values not clipped"
    )
    return save_tiles([tile for row in view_tiles(corpus, DRAWN) for tile in row], path, title=title, theme=theme)


def view_tiles(corpus: Path, config: ViewConfig) -> list[list[Tile]]:
    """Return the pictures of some slices: slice with the boxes of its crops, global crops, local crops, Gram crop.

    Grey runs from the value that is clipped to at the bottom to that at the top. Slices that are no CT have no
    Hounsfield units and are normalised by the rule ``percentile``.

    Args:
        corpus: Folder of the corpus.
        config: What views look like; with a Gram size.

    Raises:
        DataError: There is no finished corpus, it is empty, or a file of it cannot be read.
    """
    dataset = SliceDataset(corpus)
    volumes = read_volumes(corpus)
    rows = _choose(dataset)
    other = replace(config, intensity=IntensityConfig(rule="percentile"))
    is_ct = np.array([volumes["modality"][dataset.volume[row]] == Modality.CT for row in rows])
    tiles: dict[int, list[Tile]] = {}
    for chosen, views_config in ((rows[is_ct], config), (rows[~is_ct], other)):
        if len(chosen):
            slices = dataset.__getitems__(chosen.tolist())
            titles = [_title(dataset, volumes, row) for row in chosen]
            tiles |= dict(zip(chosen.tolist(), _rows_of(slices, views_config, titles), strict=True))
    return [tiles[row] for row in rows.tolist()]


def _choose(dataset: SliceDataset) -> NDArray[np.int64]:
    """Return rows of the manifest: slices from all sources, at all heights of the body."""
    usable = dataset.usable_rows()
    if not len(usable):
        raise DataError(f"{dataset.corpus} holds no slice to show.")
    volumes, starts, counts = np.unique(dataset.volume[usable], return_index=True, return_counts=True)
    sources = [dataset.sources[code] for code in dataset.source_of_volume[volumes]]
    chosen = choose_slices(sources, counts.tolist(), SLICES)
    return np.array([usable[starts[volume] + place] for volume, place in chosen], np.int64)


def _title(dataset: SliceDataset, volumes: dict[str, list[Any]], row: int) -> str:
    volume = int(dataset.volume[row])
    place = f"{dataset.index[row] + 1}/{dataset.counts[volume]}"
    return f"{volumes['source'][volume]}\n{short_name(volumes['case'][volume])}  {place}"


def _rows_of(slices: Slices, config: ViewConfig, titles: list[str]) -> list[list[Tile]]:
    """Return the pictures of every slice of a batch, whose values one rule normalises."""
    views = make_views(slices, config, seed=SEED, step=0)
    scale = intensity_scale(slices.pixels, slices.sizes, views.parameters.window, config.intensity)
    unit = torch.tensor([0.0, 1.0]).expand(len(slices.pixels), 1, 1, 2)
    limits = [(low, high) for low, high in to_input(unit, scale)[:, 0, 0].tolist()]
    pictures = []
    for sample, title in enumerate(titles):
        height, width = slices.sizes[sample].tolist()
        y, x = slices.spacing[sample].tolist()
        shown = range(2 + min(LOCAL_CROPS, config.num_local))
        boxes = tuple((*views.parameters.boxes[sample, view].tolist(), COLOURS[view]) for view in shown)
        whole = (float(scale.low[sample]), float(scale.high[sample]))
        image = slices.pixels[sample, :height, :width].numpy()
        crops = [_crop(views, config, sample, view, limits[sample]) for view in shown]
        pictures.append(
            [Tile(image, whole, y / x, title, boxes=boxes, pixel_mm=x), *crops, *_gram(views, sample, limits[sample])]
        )
    return pictures


def _crop(views: Views, config: ViewConfig, sample: int, view: int, limits: tuple[float, float]) -> Tile:
    batch = len(views.parameters.boxes)
    if view >= 2:
        image = views.local_crops[(view - 2) * batch + sample, 0].numpy()
        return Tile(image, limits, 1.0, f"local {view - 1}", colour=COLOURS[view])
    place = view * batch + sample
    patch, grid = config.masks.patch_size, config.global_size // config.masks.patch_size
    hidden = views.masks.masks[place].view(grid, grid).repeat_interleave(patch, 0).repeat_interleave(patch, 1)
    share = float(views.masks.masks[place].float().mean())
    title = f"global {view + 1}\n" + (f"{100 * share:.0f} % hidden" if share else "nothing hidden")
    image = views.global_crops[place, 0].numpy()
    return Tile(image, limits, 1.0, title, colour=COLOURS[view], shaded=hidden.numpy())


def _gram(views: Views, sample: int, limits: tuple[float, float]) -> list[Tile]:
    if views.gram_crops is None:
        return []
    return [Tile(views.gram_crops[sample, 0].numpy(), limits, 1.0, "Gram, of global 1", colour=COLOURS[0])]
