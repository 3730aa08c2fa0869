"""Pictures of the teacher's dense features during training: always the same slices, one PNG a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import NDArray
from torch import Tensor

from nnunetv2_meddino.features.dense import cosine_similarity, pooled_colours
from nnunetv2_meddino.imaging.slices import centre_of
from nnunetv2_meddino.visualization.annotations import mark_patch
from nnunetv2_meddino.visualization.figure_files import write_figure
from nnunetv2_meddino.visualization.overlays import CT_WINDOW_HU, hu_range
from nnunetv2_meddino.visualization.style import DARK, SIMILARITY
from pretraining.engine.monitoring.fixed_slices import WholeSlice
from pretraining.views import IntensityConfig

BODY_ABOVE = 0.05
"""Mean of a patch on the unit scale that counts as body: air is 0, aerated lung 0.05 to 0.1 under the CT rule."""

_COLUMNS = 2
_PANEL_INCH, _GAP_INCH, _TOP_INCH, _BAR_INCH, _DPI = 2.6, 0.08, 0.45, 0.9, 100
_TITLE_INCH = 0.35
_TRIPLE_INCH = 3 * (_PANEL_INCH + _GAP_INCH) + 0.25
_WIDTH_INCH = _COLUMNS * _TRIPLE_INCH + _BAR_INCH


def save_pictures(
    slices: Sequence[WholeSlice], features: Sequence[Tensor], folder: Path, step: int, intensity: IntensityConfig
) -> Path:
    """Draw every slice, the principal components of its patches, and their similarity to the body's centre.

    The components are those of the body's patches of all slices together, so that a colour means the same in the whole
    picture; each has the sign with which it grows with the intensity. The similarity is shown from 0 to 1 in all
    pictures.

    Args:
        slices: From ``watched_slices``.
        features: Of each, ``(h, w, D)``, from ``patch_features``.
        folder: Where ``step_00012000.png`` is written; it appears only once it is complete.
        step: Training step.
        intensity: Of the run; CT is shown in the soft-tissue window.

    Returns:
        The path.
    """
    grids = [tokens.cpu().double().numpy() for tokens in features]
    means = [patch_means(whole, (grid.shape[0], grid.shape[1])) for whole, grid in zip(slices, grids, strict=True)]
    colours, explained = pooled_colours(grids, means, [mean > BODY_ABOVE for mean in means])
    rows = [slices[first : first + _COLUMNS] for first in range(0, len(slices), _COLUMNS)]
    ratios = [max(whole.unit.shape[0] / whole.unit.shape[1] for whole in row) for row in rows]
    heights = [_PANEL_INCH * min(1.0, ratio) for ratio in ratios]
    height = sum(heights) + len(rows) * _TITLE_INCH + _TOP_INCH
    figure = Figure(figsize=(_WIDTH_INCH, height), facecolor=DARK.page, dpi=_DPI)
    shares = " + ".join(f"{100 * share:.0f}" for share in explained)
    title = f"step {step:,}   |   PCA explains {shares} % of the variance of the body's patches"
    title += f"   |   CT from {hu_range(CT_WINDOW_HU)}" if intensity.rule == "ct" else ""
    figure.text(_GAP_INCH / _WIDTH_INCH, 1 - 0.22 / height, title, color=DARK.text, fontsize=13, va="center")

    def axes(x: float, y: float, width: float, high: float) -> Axes:
        return figure.add_axes((x / _WIDTH_INCH, y / height, width / _WIDTH_INCH, high / height))

    window = _shown_range(intensity)
    y = height - _TOP_INCH
    for number, whole in enumerate(slices):
        row, column = divmod(number, _COLUMNS)
        if column == 0:
            y -= _TITLE_INCH + heights[row]
        lefts = [_GAP_INCH + column * _TRIPLE_INCH + i * (_PANEL_INCH + _GAP_INCH) for i in range(3)]
        panels = [axes(left, y + _GAP_INCH, _PANEL_INCH, heights[row]) for left in lefts]
        point = centre_of(means[number] > BODY_ABOVE)
        shown = _draw(panels, whole, colours[number], cosine_similarity(grids[number], point), point, window)
    bar = axes(_WIDTH_INCH - _BAR_INCH + 0.1, _GAP_INCH, 0.14, heights[-1])
    colour_bar = figure.colorbar(shown, cax=bar, extend="min")
    colour_bar.set_label("cosine similarity", color=DARK.text, fontsize=9)
    colour_bar.ax.tick_params(colors=DARK.text, labelsize=9)
    return write_figure(figure, folder / f"step_{step:08d}.png")


def patch_means(whole: WholeSlice, grid: tuple[int, int]) -> NDArray[np.float64]:
    """Return the mean of each patch of a slice on the unit scale, of the shape of the grid of patches."""
    return F.adaptive_avg_pool2d(whole.unit[None], grid)[0].double().numpy()


def _shown_range(intensity: IntensityConfig) -> tuple[float, float]:
    """Return the values of the unit scale that are shown black and white."""
    if intensity.rule != "ct":
        return 0.0, 1.0
    low, high = intensity.clip_hu
    return (CT_WINDOW_HU[0] - low) / (high - low), (CT_WINDOW_HU[1] - low) / (high - low)


def _draw(
    panels: Sequence[Axes],
    whole: WholeSlice,
    colours: NDArray[np.float64],
    similarity: NDArray[np.float64],
    point: tuple[int, int],
    window: tuple[float, float],
) -> AxesImage:
    """Draw the three panels of a slice and return the last image, for its colour bar."""
    height, width = whole.unit.shape
    side = height // similarity.shape[0]
    extent = (0, width, height, 0)
    low, high = window
    panels[0].imshow(whole.unit.numpy(), cmap="gray", vmin=low, vmax=high, extent=extent)
    panels[1].imshow(colours, extent=extent, interpolation="nearest")
    shown = panels[2].imshow(similarity, cmap=SIMILARITY, extent=extent, interpolation="nearest", vmin=0, vmax=1)
    row, column = point
    for axes, title in zip(
        panels, (whole.name, "PCA as red, green, blue", "similarity to the framed patch"), strict=True
    ):
        axes.set_anchor("N")
        axes.apply_aspect()
        mark_patch(axes, (column * side, row * side, (column + 1) * side, (row + 1) * side))
        axes.set_title(title, color=DARK.text, fontsize=8.5, pad=3)
        axes.set_axis_off()
    return shown
