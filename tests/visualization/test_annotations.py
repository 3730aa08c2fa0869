"""What is drawn on top of images: the frame of a patch, wherever it lies, and a scale bar."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar

from nnunetv2_meddino.visualization.annotations import mark_patch, scale_bar
from nnunetv2_meddino.visualization.style import MARK

SIDE, PIXELS = 64, 400
"""Of the image, in its own pixels and in those of the picture, which has a margin of 100 around it."""


def framed(box: tuple[float, float, float, float]) -> np.ndarray:
    """Frame a patch of a green image and return the picture."""
    figure = Figure(figsize=(6, 6), dpi=100, facecolor="black")
    axes = figure.add_axes((1 / 6, 1 / 6, 4 / 6, 4 / 6))
    axes.imshow(np.ones((1, 1, 3)) * (0, 1, 0), extent=(0, SIDE, SIDE, 0))
    axes.set_axis_off()
    mark_patch(axes, box)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3] / 255


@pytest.mark.parametrize("corner", [(16, 32), (0, 0), (48, 48), (56, 0)])
def test_a_patch_is_framed_on_all_sides_and_nothing_of_it_is_hidden(corner: tuple[int, int]) -> None:
    left, top = corner
    picture = framed((left, top, left + 16, top + 16))
    edges = [left, top, min(left + 16, SIDE), min(top + 16, SIDE)]  # what lies beyond the image is cut off
    x0, y0, x1, y1 = (round(100 + edge * PIXELS / SIDE) for edge in edges)
    np.testing.assert_allclose(
        picture[y0 + 1 : y1 - 1, x0 + 1 : x1 - 1], np.broadcast_to((0, 1, 0), (y1 - y0 - 2, x1 - x0 - 2, 3))
    )
    red = np.all(np.abs(picture - to_rgb(MARK)) < 0.25, axis=-1)
    rows, columns = np.flatnonzero(red.any(axis=1)), np.flatnonzero(red.any(axis=0))
    assert rows.min() == pytest.approx(y0 - 2, abs=1)
    assert rows.max() == pytest.approx(y1 + 1, abs=1)
    assert columns.min() == pytest.approx(x0 - 2, abs=1)
    assert columns.max() == pytest.approx(x1 + 1, abs=1)


@pytest.mark.parametrize(
    ("mm_per_unit", "label", "units"),
    [(2.0, "20 mm", 10), (0.7, "10 mm", 10 / 0.7), (4.0, "50 mm", 12.5), (0.002, "0.02 mm", 10)],
)
def test_a_scale_bar_is_as_long_as_it_says(mm_per_unit: float, label: str, units: float) -> None:
    figure = Figure(figsize=(4, 4), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(np.zeros((SIDE, SIDE)), cmap="gray", extent=(0, SIDE, SIDE, 0))
    axes.set_axis_off()
    scale_bar(axes, mm_per_unit, 8)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = np.asarray(canvas.buffer_rgba())[..., 0]
    longest = max(np.flatnonzero(row).size for row in picture[-30:] > 250)
    assert longest * SIDE / picture.shape[1] == pytest.approx(units, rel=0.02)
    (bar,) = (artist for artist in axes.artists if isinstance(artist, AnchoredSizeBar))
    assert bar.txt_label.get_text() == label
