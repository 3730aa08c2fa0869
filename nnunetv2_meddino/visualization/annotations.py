"""What is drawn on top of an image: the frame of a patch."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from nnunetv2_meddino.visualization.style import MARK, MARK_EDGE

_FRAME_POINTS, _EDGE_POINTS = 1.4, 0.9


def mark_patch(axes: Axes, box: tuple[float, float, float, float]) -> None:
    """Frame a patch: red with a white edge, seen on every colour; all of the patch stays visible inside.

    Args:
        axes: Axes whose limits are those they will have.
        box: Left, top, right and bottom of the patch in the data's coordinates. What lies beyond the limits is cut off,
            but not the frame, so that a patch at the border has all four sides.
    """
    xs, ys = sorted(axes.get_xlim()), sorted(axes.get_ylim())
    left, right = (min(max(x, xs[0]), xs[1]) for x in (box[0], box[2]))
    top, bottom = (min(max(y, ys[0]), ys[1]) for y in (box[1], box[3]))
    figure = axes.get_figure(root=True)
    if figure is None:
        raise ValueError("a patch is marked on axes of a figure")
    point = figure.dpi / 72 / axes.bbox.width * (xs[1] - xs[0])  # one typographic point; pixels are square
    for inner, width, colour in ((0.0, _FRAME_POINTS, MARK), (_FRAME_POINTS, _EDGE_POINTS, MARK_EDGE)):
        out = (inner + width / 2) * point
        corner, size = (left - out, top - out), (right - left + 2 * out, bottom - top + 2 * out)
        frame = Rectangle(corner, *size, fill=False, edgecolor=colour, linewidth=width, joinstyle="miter")
        frame.set(clip_on=False, zorder=5)
        axes.add_patch(frame)
