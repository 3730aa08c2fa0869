"""Pictures of segmentations: an image beside its reference and its prediction."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from nnunetv2_meddino.visualization.annotations import scale_bar
from nnunetv2_meddino.visualization.figure_files import write_figure
from nnunetv2_meddino.visualization.style import DARK, SURELY_DISTINCT, Theme, structure_colours

CT_WINDOW_HU = (-160.0, 240.0)
"""The usual soft-tissue window of abdominal CT: level 40, width 400."""

SHOWN_PERCENTILES = (1, 99)
"""Black and white of images that are no CT."""

_PANEL_HEIGHT_INCH, _DPI = 4.2, 130
_LEGEND_POINTS, _LEGEND_ROW_INCH = 11, 0.23
_FILL_OPACITY = 0.35


def save_overlay(
    image: NDArray[Any],
    reference: NDArray[Any] | None,
    prediction: NDArray[Any],
    path: Path,
    *,
    spacing_mm: tuple[float, float],
    label_names: Mapping[int, str],
    window_hu: tuple[float, float] | None,
    title: str,
    in_mm: bool = True,
    theme: Theme = DARK,
) -> Path:
    """Write a picture with the panels image, reference (where there is one) and prediction, and a legend.

    Args:
        image: One slice ``(H, W)``.
        reference: Its reference labels ``(H, W)``, or None.
        prediction: Its predicted labels ``(H, W)``; 0 is background.
        path: The PNG, SVG or PDF to write (``write_figure``); it appears only once it is complete.
        spacing_mm: Pixel spacing ``(y, x)``: the picture keeps the patient's proportions.
        label_names: Name of each label; a label without a name is shown by its number.
        window_hu: Grey window (lower, upper) for CT; None spans the 1st to the 99th percentile.
        title: One line above the panels.
        in_mm: Whether the spacing is known (``Image.in_mm``): there is a scale bar then.
        theme: Colours of page and text.

    Returns:
        ``path``.

    Raises:
        ConfigurationError: The ending of the path is another.
        ValueError: Labels do not lie on the grid of the image.
    """
    if any(labels is not None and labels.shape != image.shape for labels in (reference, prediction)):
        msg = f"an overlay needs labels on the grid of the image {image.shape}; got a prediction {prediction.shape}"
        msg += "" if reference is None else f" and a reference {reference.shape}"
        raise ValueError(msg)
    maps = [("prediction", prediction)] if reference is None else [("reference", reference), ("prediction", prediction)]
    panels: list[tuple[str, NDArray[Any] | None]] = [(image_title(window_hu), None), *maps]
    shown = sorted({int(value) for _, labels in maps for value in np.unique(labels)} - {0})
    colours = structure_colours(shown)
    limits = window_hu or tuple(np.percentile(image, SHOWN_PERCENTILES))

    aspect = spacing_mm[0] / spacing_mm[1]
    panel_width = _PANEL_HEIGHT_INCH * image.shape[1] / (image.shape[0] * aspect)
    width = max(panel_width * len(panels), 6)
    handles = legend_handles(colours, label_names)
    columns = legend_columns(handles, width, _LEGEND_POINTS)
    bottom = 0.2 + _LEGEND_ROW_INCH * math.ceil(len(handles) / columns)
    height = _PANEL_HEIGHT_INCH + bottom + 0.5
    figure = Figure(figsize=(width, height), facecolor=theme.page, dpi=_DPI)
    figure.subplots_adjust(left=0.01, right=0.99, bottom=bottom / height, top=1 - 0.75 / height, wspace=0.02)
    for axes, (name, labels) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        axes.imshow(image, cmap="gray", vmin=limits[0], vmax=limits[1], aspect=aspect, interpolation="bilinear")
        if labels is not None:
            draw_labels(axes, labels, colours)
        axes.set_title(name, color=theme.text, fontsize=11)
        axes.set_axis_off()
        if in_mm and labels is None:
            scale_bar(axes, spacing_mm[1], 9)
    figure.suptitle(title, color=theme.text, fontsize=12, y=0.975)
    if handles:
        style = {"frameon": False, "labelcolor": theme.text, "handlelength": 1.1, "handleheight": 1.1}
        figure.legend(handles=handles, loc="lower center", ncols=columns, fontsize=_LEGEND_POINTS, **style)
    return write_figure(figure, path)


def image_title(window_hu: tuple[float, float] | None) -> str:
    """Say what is black and what is white in an image: a grey window, or ``SHOWN_PERCENTILES``."""
    if window_hu is None:
        return f"image, percentile {SHOWN_PERCENTILES[0]} to {SHOWN_PERCENTILES[1]}"
    return f"image, {hu_range(window_hu)}"


def hu_range(window_hu: tuple[float, float]) -> str:
    """Return a grey window in words, with the sign that axes have for minus."""
    low, high = (f"{hu:g}".replace("-", "\N{MINUS SIGN}") for hu in window_hu)
    return f"{low} to {high} HU"


def draw_labels(axes: Axes, labels: NDArray[Any], colours: Mapping[int, tuple[float, float, float]]) -> None:
    """Tint every structure of a label map ``(y, x)`` and trace its outline; colours are RGB from 0 to 1.

    Where there are more structures than colours that everybody can tell apart, each also bears its number.
    """
    tint = np.zeros((*labels.shape, 4))
    for value, colour in colours.items():
        mask = labels == value
        tint[mask] = (*colour, _FILL_OPACITY)
        if mask.any() and not mask.all():
            axes.contour(mask, levels=[0.5], colors=[colour], linewidths=1.3)
        if mask.any() and len(colours) > SURELY_DISTINCT:
            y, x = _deepest_point(mask)
            outline = [withStroke(linewidth=1.6, foreground="black")]
            axes.text(x, y, str(value), color="white", fontsize=5, ha="center", va="center", path_effects=outline)
    axes.imshow(tint, aspect=axes.get_aspect(), interpolation="nearest")


def legend_handles(colours: Mapping[int, tuple[float, float, float]], label_names: Mapping[int, str]) -> list[Patch]:
    """Return a legend's entries: each structure's colour and name, and its number where ``draw_labels`` writes it."""
    names = {value: label_names.get(value, f"label {value}") for value in colours}
    if len(colours) > SURELY_DISTINCT:
        names = {value: f"{value} {label_names.get(value, '')}".rstrip() for value in colours}
    return [Patch(facecolor=colour, label=names[value]) for value, colour in colours.items()]


def legend_columns(handles: Sequence[Patch], width_inch: float, points: float) -> int:
    """Return how many entries of a legend surely stand side by side in a width, at a font size in points."""
    longest = max((len(str(handle.get_label())) for handle in handles), default=0)
    entry_inch = (0.62 * longest + 4.8) * points / 72  # a letter is 0.62 of the font size wide on average
    return max(1, min(len(handles), int(width_inch / entry_inch)))


def _deepest_point(mask: NDArray[np.bool_]) -> tuple[int, int]:
    """Return the pixel (y, x) of a mask that is furthest from its edge."""
    depth = distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    y, x = np.unravel_index(int(depth.argmax()), mask.shape)
    return int(y), int(x)
