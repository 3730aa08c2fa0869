"""Pictures of a corpus: a montage of its slices, and histograms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from nnunetv2_meddino.errors import DataError
from nnunetv2_meddino.visualization.annotations import scale_bar
from nnunetv2_meddino.visualization.figure_files import write_figure
from nnunetv2_meddino.visualization.overlays import CT_WINDOW_HU, hu_range
from nnunetv2_meddino.visualization.style import DARK, Theme
from pretraining.corpus.case_ids import short_name
from pretraining.corpus.format import read_corpus, read_volumes
from pretraining.corpus.storage import open_volume
from pretraining.modality import Modality
from pretraining.progress import Progress

_TILES, _COLUMNS = 40, 8
_PERCENTILES = (0.5, 99.5)
_BAR, _BEYOND = "#56B4E9", "#B86E00"
_SHADE = (0.34, 0.71, 0.91, 0.45)
"""Red, green, blue and opacity."""
_TILE_INCH, _TITLE_INCH, _GAP_INCH, _TOP_INCH, _DPI = 1.8, 0.3, 0.08, 0.5, 110
_GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class Tile:
    """One picture of a montage."""

    image: NDArray[Any]
    """``(H, W)``."""
    limits: tuple[float, float]
    """Values shown as black and as white."""
    aspect: float
    """Height of a pixel over its width."""
    title: str
    """A line or two above it."""
    colour: str | None = None
    """Of a frame around it; None for none."""
    boxes: tuple[tuple[int, int, int, int, str], ...] = ()
    """Drawn on it: top, left, height, width in pixels, and colour."""
    shaded: NDArray[np.bool_] | None = None
    """``(H, W)`` bool, pixels under a shade; None for none."""
    pixel_mm: float | None = None
    """Width of a pixel, for a scale bar; None for none."""

    @property
    def height(self) -> float:
        """Of the picture over its width."""
        return self.image.shape[0] * self.aspect / self.image.shape[1]


def save_slices(corpus: Path, path: Path, progress: Progress = lambda *_: None, theme: Theme = DARK) -> Path:
    """Write a montage of slices from all sources, at all heights of their scans, and return its path.

    CT is shown in the soft-tissue window, other images from their 0.5th to their 99.5th percentile. The patient's
    right is on the left, front is up.

    Raises:
        DataError: There is no finished corpus, it is empty, or a file of it cannot be read.
    """
    content = read_corpus(corpus)
    volumes = read_volumes(corpus)
    if not volumes["path"]:
        raise DataError(f"{corpus} holds no volume to show.")
    chosen = choose_slices(volumes["source"], volumes["slices"], _TILES)
    tiles = []
    for number, (row, index) in enumerate(chosen):
        image = open_volume(corpus / volumes["path"][row])[index]
        ct = volumes["modality"][row] == Modality.CT
        low, high = CT_WINDOW_HU if ct else np.percentile(image, _PERCENTILES).tolist()
        aspect = volumes["spacing_y_mm"][row] / volumes["spacing_x_mm"][row]
        name = f"{volumes['source'][row]}\n{short_name(volumes['case'][row])}  {index + 1}/{volumes['slices'][row]}"
        tiles.append(Tile(image, (low, max(high, low + 1)), aspect, name, pixel_mm=volumes["spacing_x_mm"][row]))
        progress("drawing", number + 1, len(chosen))
    title = f"{content['volumes']} volumes, {content['slices']} slices   |   CT from {hu_range(CT_WINDOW_HU)}, "
    title += f"other images from percentile {_PERCENTILES[0]:g} to {_PERCENTILES[1]:g}"
    return save_tiles(tiles, path, title=title, theme=theme)


def choose_slices(sources: Sequence[str], slices: Sequence[int], number: int) -> list[tuple[int, int]]:
    """Return up to ``number`` slices as row of the volume and index: every source has its share, all heights occur.

    Args:
        sources: Collection of each volume.
        slices: Its number of slices.
        number: How many to choose.
    """
    rows_of: dict[str, list[int]] = {}
    for row, source in enumerate(sources):
        rows_of.setdefault(source, []).append(row)
    if len(rows_of) > number:
        names = list(rows_of)
        rows_of = {name: rows_of[name] for name in (names[k * len(names) // number] for k in range(number))}
    share = max(1, number // len(rows_of))
    chosen: set[tuple[int, int]] = set()
    for place, rows in enumerate(rows_of.values()):
        for k in range(share):
            row = rows[k * len(rows) // share]
            height = (0.5 + (place * share + k) * _GOLDEN) % 1
            chosen.add((row, int(height * slices[row])))
    return sorted(chosen)


def save_tiles(tiles: Sequence[Tile], path: Path, *, title: str, theme: Theme = DARK) -> Path:
    """Write pictures side by side, eight in a row as high as its highest, at most square, and return the path."""
    rows = [tiles[first : first + _COLUMNS] for first in range(0, len(tiles), _COLUMNS)]
    heights = [_TILE_INCH * min(1.0, max(tile.height for tile in row)) for row in rows]
    height = _TOP_INCH + sum(heights) + len(rows) * (_TITLE_INCH + _GAP_INCH)
    width = max(len(rows[0]) * (_TILE_INCH + _GAP_INCH) + _GAP_INCH, 5)
    figure = Figure(figsize=(width, height), facecolor=theme.page, dpi=_DPI)
    y = height - _TOP_INCH
    for row, high in zip(rows, heights, strict=True):
        y -= _TITLE_INCH + high
        for column, tile in enumerate(row):
            x = _GAP_INCH + column * (_TILE_INCH + _GAP_INCH)
            axes = figure.add_axes((x / width, y / height, _TILE_INCH / width, high / height), anchor="N")
            axes.set_axis_off()
            _draw_tile(axes, tile, theme)
        y -= _GAP_INCH
    figure.suptitle(title, color=theme.text, fontsize=11, y=1 - 0.15 / height, va="top")
    return write_figure(figure, path)


def _draw_tile(axes: Axes, tile: Tile, theme: Theme) -> None:
    low, high = tile.limits
    axes.imshow(tile.image, cmap="gray", vmin=low, vmax=high, aspect=tile.aspect, interpolation="bilinear")
    if tile.shaded is not None:
        shade = np.zeros((*tile.shaded.shape, 4))
        shade[tile.shaded] = _SHADE
        axes.imshow(shade, aspect=tile.aspect, interpolation="nearest")
    for top, left, height, width, colour in tile.boxes:
        corner = (left - 0.5, top - 0.5)  # pixel centres are whole numbers
        axes.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=colour, linewidth=1.2))
    if tile.pixel_mm is not None:
        scale_bar(axes, tile.pixel_mm, 5.5)
    if tile.colour is not None:
        frame = Rectangle((0, 0), 1, 1, transform=axes.transAxes, fill=False, edgecolor=tile.colour, linewidth=2.4)
        axes.add_patch(frame)
    axes.set_title(tile.title, color=theme.text, fontsize=6.5, pad=2)


def save_histograms(inspection: Mapping[str, Any], path: Path, theme: Theme = DARK) -> Path:
    """Write the histograms of an inspection and return the path."""
    figure = Figure(figsize=(14, 8), facecolor=theme.page, dpi=_DPI)
    figure.subplots_adjust(left=0.06, right=0.985, bottom=0.08, top=0.9, wspace=0.24, hspace=0.5)
    panels = figure.subplots(2, 3).ravel()
    for axes in panels:
        _style(axes, theme)
    spacing, body, intensity = inspection["spacing"], inspection["body"], inspection["intensity"]
    _draw(panels[0], spacing["in_plane_mm"], "pixel spacing [mm]", "slices")
    _draw(panels[1], spacing["between_slices_mm"], "distance between slices [mm]", "slices")
    _draw(panels[2], spacing["scan_length_mm"], "scan length [mm]", "volumes")
    _draw(panels[3], intensity["hu"], f"intensity [HU], {intensity['slices_sampled']} slices", "voxels")
    panels[3].set_yscale("log")  # air outweighs everything
    _draw(panels[4], body["fraction"], "share of the slice that is body", "slices")
    _draw_heights(panels[5], body)
    title = f"{inspection['volumes']} volumes, {inspection['slices']} slices"
    figure.suptitle(title, color=theme.text, fontsize=12)
    return write_figure(figure, path)


def _draw(axes: Axes, histogram: Mapping[str, Any], label: str, of: str) -> None:
    """Draw the bins from the first to the last that hold something; what lies beyond them all stands apart, labelled.

    The axis is linear. A bar beyond it is as wide as a bin, at least a tenth of the axis, and says its limit and
    its number.
    """
    counts, edges = np.asarray(histogram["counts"]), np.asarray(histogram["edges"], np.float64)
    below, above = histogram["below"], histogram["above"]
    held = np.flatnonzero(counts)
    first = 0 if below or not len(held) else held[0]
    last = len(counts) if above or not len(held) else held[-1] + 1
    shown = edges[first : last + 1]
    axes.bar(
        shown[:-1],
        counts[first:last],
        np.diff(shown),
        align="edge",
        color=_BAR,
        edgecolor=axes.get_facecolor(),
        linewidth=0.5,
    )
    low, high = float(shown[0]), float(shown[-1])
    axes.set_xticks(
        [tick for tick in MaxNLocator(7, steps=(1, 2, 2.5, 5, 10)).tick_values(low, high) if low <= tick <= high]
    )
    wide = max(edges[1] - edges[0], (high - low) / 10)
    if below:
        low = _draw_beyond(axes, low - 1.4 * wide, wide, below, f"< {low:g}") - 1.1 * wide
    if above:
        high = _draw_beyond(axes, high + 1.4 * wide, wide, above, f"> {high:g}") + 1.1 * wide
    axes.set_xlim(low - 0.02 * (high - low), high + 0.02 * (high - low))
    axes.set_xlabel(label)
    axes.set_ylabel(of)


def _draw_beyond(axes: Axes, centre: float, width: float, count: int, limit: str) -> float:
    """Draw the bar of the values beyond the axis, another colour, its limit and number above; return ``centre``."""
    axes.bar(centre, count, 0.8 * width, color=_BEYOND)
    text = f"{limit}:\n{count}".replace("-", "\N{MINUS SIGN}")
    axes.annotate(
        text,
        (centre, count),
        xytext=(0, 2),
        textcoords="offset points",
        ha="center",
        va="bottom",
        color=_BEYOND,
        fontsize=8,
    )
    return centre


def _draw_heights(axes: Axes, body: Mapping[str, Any]) -> None:
    """Draw the mean share of body along the scans, where there are slices."""
    slices, means = np.asarray(body["slices_by_relative_z"]), np.asarray(body["mean_fraction_by_relative_z"])
    edges = np.linspace(0, 1, len(means) + 1)[:-1]
    held = slices > 0
    axes.bar(
        edges[held],
        means[held],
        1 / len(means),
        align="edge",
        color=_BAR,
        edgecolor=axes.get_facecolor(),
        linewidth=0.5,
    )
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(0, 1)
    axes.set_xlabel("height in the scan (0 feet, 1 head)")
    axes.set_ylabel("mean share of body")


def _style(axes: Axes, theme: Theme) -> None:
    axes.set_facecolor(theme.page)
    axes.tick_params(which="both", colors=theme.text, labelsize=8)  # a logarithmic axis has lesser ticks as well
    for text in (axes.xaxis.label, axes.yaxis.label):
        text.set_color(theme.text)
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(theme.text)
