"""The colours of all pictures: of structures and methods, of dark picture pages and of light reports."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from matplotlib.colors import to_rgb

COLOURS = (
    *("#3BFF14", "#8900D8", "#B14E00", "#EBC4EB", "#009DFF", "#278962", "#B19D27", "#FF3BC4", "#FF9D89", "#C4EBC4"),
    *("#896289", "#EB274E", "#B1B1FF", "#76B162", "#EBD889", "#62763B", "#3B76FF", "#00D89D", "#B17600", "#9D2789"),
    *("#009DB1", "#9DC400", "#00629D", "#003BFF"),
)
"""Chosen by ``benchmarks/colours.py``: the first are furthest apart. The smallest CIEDE2000 distance between two of
them, as normal, protan, deutan and tritan eyes see them, is 25.5 among the first 3, 15.3 among 7, 10.1 among 12 and 6.5
among all; in normal vision alone it is 12.7. To any grey of an image it is 8, in normal vision 18."""

SURELY_DISTINCT = 12
"""Of more colours than this, some are less than 10 apart to a colour-blind reader: structures need a second sign."""

MARK, MARK_EDGE = "#FF3B30", "#FFFFFF"
"""Of what marks a place in an image, and of its edge."""

SIMILARITY = "viridis"
"""Colours of similarities; named, for nnU-Net's plots of a training change matplotlib's usual ones (seaborn)."""

INK, SOFT, LINE, JOIN = "#1c2430", "#5b6675", "#d5dae1", "#8a97a8"
"""Of pictures on white: text, lesser text, grid lines, lines that join points."""


@dataclass(frozen=True)
class Theme:
    """The colours around the images of a picture."""

    page: str
    """Background."""
    text: str
    """Titles and axes."""
    faint: str
    """Lesser text."""


DARK, LIGHT = Theme("#101014", "#E8E8E8", "#A8A8B0"), Theme("#FFFFFF", INK, SOFT)
THEMES = {"dark": DARK, "light": LIGHT}
"""By the name that a command line takes: for a screen, and for print."""


def structure_colours(shown: Iterable[int]) -> dict[int, tuple[float, float, float]]:
    """Give each label that a picture shows, but not 0, the background, a colour: red, green and blue from 0 to 1."""
    order = sorted(set(shown) - {0})
    return {value: to_rgb(COLOURS[index % len(COLOURS)]) for index, value in enumerate(order)}
