"""Pictures of dense features: an image, the PCA of its patches and their similarity to one, a row per weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from nnunetv2_meddino.errors import ConfigurationError
from nnunetv2_meddino.features.dense import (
    DEFAULT_SIZE_PX,
    PATCH_PX,
    Encoder,
    cosine_similarity,
    network_size,
    patch_features,
    patch_means,
    patch_of_point,
    pooled_colours,
    read_encoder,
)
from nnunetv2_meddino.features.image import ImageSlice, body_centre, body_of, read_slice
from nnunetv2_meddino.visualization.annotations import mark_patch, scale_bar
from nnunetv2_meddino.visualization.figure_files import check_figure_name, write_figure
from nnunetv2_meddino.visualization.overlays import CT_WINDOW_HU, SHOWN_PERCENTILES, image_title
from nnunetv2_meddino.visualization.style import DARK, SIMILARITY, Theme
from nnunetv2_meddino.weights.backbones import NO_WEIGHTS

MAX_WEIGHTS = 2
BODY_SHARE = 0.5
"""Of a patch that counts as body."""

PANELS = ("PCA: components 1, 2, 3 as red, green, blue", "cosine similarity to the framed patch")
_PANEL_INCH, _GAP_INCH, _BAR_INCH, _MARGIN_INCH, _MIN_WIDTH_INCH = 4.6, 0.12, 0.14, 0.95, 8.0
_TOP_INCH, _HEADER_INCH, _DPI = 0.3, 0.98, 140


@dataclass(frozen=True)
class FeatureRow:
    """What one row of the picture shows."""

    name: str
    """Of the weights."""
    treatment: str
    """What became of the intensities."""
    colours: NDArray[np.float64]
    """PCA as red, green, blue, ``(h, w, 3)`` in 0..1; black where there is no body."""
    explained: NDArray[np.float64]
    """Fractions of the variance that the three components explain."""
    similarity: NDArray[np.float64]
    """Cosine similarity to the chosen patch, ``(h, w)``."""
    masked: bool = True
    """The components are those of the body's patches; False: of all."""

    @property
    def title(self) -> str:
        """Say what the row shows: weights, patch grid, explained variance."""
        height, width = self.similarity.shape
        parts = " + ".join(f"{100 * part:.0f}" for part in self.explained)
        variance = "variance of the body's patches" if self.masked else "variance"
        return f"{self.name}   |   {height} x {width} patches   |   PCA explains {parts} % of the {variance}"


def feature_picture(
    path: Path,
    specs: Sequence[str],
    out: Path,
    *,
    size: int = DEFAULT_SIZE_PX,
    index: int | None = None,
    point: tuple[int, int] | None = None,
    channel: int | None = None,
    theme: Theme = DARK,
    on_step: Callable[[str], None] = lambda step: None,
) -> Path:
    """Write a picture of the dense features of one image with one or two sets of weights.

    Args:
        path: Picture or volume (``read_slice``).
        specs: One or two weights (``read_encoder``).
        out: The PNG, SVG or PDF to write; it appears only once it is complete.
        size: Longer side of the network's input in pixels, a multiple of 16.
        index: Axial slice, from 0; None: the one with the largest body area.
        point: Pixel (y, x) of the slice to whose patch all others are compared; None: the centre of the body.
        channel: Channel of the image, from 0; None: all of a colour picture, the first of anything else.
        theme: Colours of page and text.
        on_step: Called with what is being done.

    Returns:
        ``out``.

    Raises:
        ConfigurationError: There are not one or two weights, ``size`` or the name of the picture cannot be used.
        DataError: The image cannot be read, or has no such slice, channel or point.
        WeightsError: Weights cannot be read.
    """
    if not 1 <= len(specs) <= MAX_WEIGHTS:
        raise ConfigurationError(f"{len(specs)} weights are given; a picture compares one or two.")
    check_figure_name(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"-o {out}: its folder cannot be made ({error}).") from error
    image = read_slice(path, index, channel)
    network_size(image, size)
    point = point or body_centre(image)
    patch = patch_of_point(image, point, size)
    brightness, body = patch_means(image.pixels.mean(axis=0), image, size), body_of(image)
    inside = np.ones(brightness.shape, bool) if body is None else patch_means(body, image, size) >= BODY_SHARE
    rows = []
    for encoder in _encoders(specs, on_step):
        on_step(f"computing features of {encoder.name}")
        features, treatment = patch_features(image, encoder, size)
        (colours,), explained = pooled_colours([features], [brightness], [inside])
        similarity = cosine_similarity(features, patch)
        rows.append(FeatureRow(encoder.name, treatment, colours, explained, similarity, masked=body is not None))
    return draw_rows(image, rows, out, size=size, point=point, theme=theme)


def draw_rows(
    image: ImageSlice,
    rows: Sequence[FeatureRow],
    out: Path,
    *,
    size: int,
    point: tuple[int, int],
    theme: Theme = DARK,
) -> Path:
    """Draw one row of panels per ``FeatureRow`` and write the picture; patches are shown as the squares they are."""
    size_px = network_size(image, size)
    low = 0.0 if min(row.similarity.min() for row in rows) >= 0 else -1.0
    height, width = (_PANEL_INCH * side / max(size_px) for side in size_px)
    total_width = max(3 * (width + _GAP_INCH) + _BAR_INCH + _MARGIN_INCH, _MIN_WIDTH_INCH)
    total_height = _TOP_INCH + len(rows) * (_HEADER_INCH + height) + _GAP_INCH
    figure = Figure(figsize=(total_width, total_height), facecolor=theme.page, dpi=_DPI)

    def text(y: float, words: str, colour: str, points: float) -> None:
        figure.text(_GAP_INCH / total_width, y / total_height, words, color=colour, fontsize=points, va="center")

    def axes(x: float, y: float, wide: float) -> Axes:
        return figure.add_axes((x / total_width, y / total_height, wide / total_width, height / total_height))

    patch = patch_of_point(image, point, size)
    title = f"{image.name}   |   framed: the patch of pixel (y {point[0]}, x {point[1]})"
    text(total_height - 0.22, title, theme.text, 12)
    for number, row in enumerate(rows):
        bottom = total_height - _TOP_INCH - (number + 1) * (_HEADER_INCH + height)
        text(bottom + height + 0.64, row.title, theme.text, 11)
        text(bottom + height + 0.42, f"input: {row.treatment}", theme.faint, 9)
        panels = [axes(_GAP_INCH + i * (width + _GAP_INCH), bottom, width) for i in range(3)]
        shown_as = _show_image(panels[0], image, size_px)
        extent = (0, row.similarity.shape[1] * PATCH_PX, row.similarity.shape[0] * PATCH_PX, 0)
        panels[1].imshow(row.colours, extent=extent, interpolation="nearest")
        shown = panels[2].imshow(
            row.similarity, cmap=SIMILARITY, extent=extent, interpolation="nearest", vmin=low, vmax=1
        )
        for panel, name in zip(panels, (shown_as, *PANELS), strict=True):
            _finish(panel, name, patch, size_px, theme)
        if image.in_mm:
            scale_bar(panels[0], image.pixels.shape[2] * image.spacing_mm[1] / size_px[1], 9)
        bar = figure.colorbar(shown, cax=axes(3 * (width + _GAP_INCH) + _GAP_INCH, bottom, _BAR_INCH))
        bar.set_label("cosine similarity", color=theme.text, fontsize=9)
        bar.ax.tick_params(colors=theme.text, labelsize=9)
    return write_figure(figure, out)


def _encoders(specs: Sequence[str], on_step: Callable[[str], None]) -> list[Encoder]:
    """Read pretrained weights first: random ones are made like them."""
    encoders: dict[int, Encoder] = {}
    beside = None
    for index in sorted(range(len(specs)), key=lambda i: specs[i].lower() == NO_WEIGHTS):
        on_step(f"reading {specs[index]}")
        beside = encoders[index] = read_encoder(specs[index], beside)
    return [encoders[index] for index in range(len(specs))]


def _show_image(axes: Axes, image: ImageSlice, size_px: tuple[int, int]) -> str:
    """Show CT in the soft-tissue window, colour as it is, anything else between percentiles; return what was shown."""
    extent = (0, size_px[1], size_px[0], 0)
    if len(image.pixels) == 3:
        axes.imshow(np.moveaxis(image.pixels, 0, -1) / 255, extent=extent, interpolation="bilinear")
        return "image"
    low, high = CT_WINDOW_HU if image.in_hu else np.percentile(image.pixels, SHOWN_PERCENTILES)
    axes.imshow(image.pixels[0], cmap="gray", vmin=low, vmax=high, extent=extent, interpolation="bilinear")
    return image_title(CT_WINDOW_HU if image.in_hu else None)


def _finish(axes: Axes, title: str, patch: tuple[int, int], size_px: tuple[int, int], theme: Theme) -> None:
    """Cut off what lies beyond the image, and frame the patch (row, column)."""
    height, width = size_px
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    top, left = (PATCH_PX * place for place in patch)
    mark_patch(axes, (left, top, left + PATCH_PX, top + PATCH_PX))
    axes.set_title(title, color=theme.text, fontsize=10, pad=5)
    axes.set_axis_off()
