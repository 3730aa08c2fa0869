"""What is drawn on top of an image: the frame of a patch, a scale bar."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar

from nnunetv2_meddino.visualization.style import MARK, MARK_EDGE

_FRAME_POINTS, _EDGE_POINTS = 1.4, 0.9
_LENGTHS_MM = tuple(step * 10.0**power for power in range(-3, 4) for step in (1, 2, 5))
_LARGEST_SHARE = 0.3
_PLATE = {"facecolor": "black", "edgecolor": "none", "alpha": 0.55}


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


def scale_bar(axes: Axes, mm_per_unit: float, points: float) -> None:
    """Draw a scale bar at the lower right: the longest of 1, 2, 5, 10 mm and so on within three tenths of the width.

    Args:
        axes: Axes with an image, whose limits are those they will have.
        mm_per_unit: Millimetres of one unit of the data along x.
        points: Font size of its label.
    """
    width = abs(axes.get_xlim()[1] - axes.get_xlim()[0])
    longest = _LARGEST_SHARE * width * mm_per_unit
    length_mm = max((length for length in _LENGTHS_MM if length <= longest), default=_LENGTHS_MM[0])
    bar = AnchoredSizeBar(
        axes.transData,
        length_mm / mm_per_unit,
        f"{length_mm:g} mm",
        "lower right",
        pad=0.3,
        borderpad=0.4,
        sep=2.5,
        size_vertical=0.006 * width,
        color="white",
        label_top=True,
        fontproperties=FontProperties(size=points),
    )
    bar.patch.set(**_PLATE)
    axes.add_artist(bar)
