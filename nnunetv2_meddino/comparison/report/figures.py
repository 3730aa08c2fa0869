"""Pictures of scores: for every metric the cases of every method, the same case joined by a line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from nnunetv2_meddino.evaluation.results import Metric
from nnunetv2_meddino.visualization.figure_files import write_figure
from nnunetv2_meddino.visualization.style import COLOURS, INK, JOIN, LINE, SOFT

WIDTH_INCH, ROW_INCH = 4.9, 0.62
_DPI = 200
_LABEL_ABOVE = 0.34  # rows
_JITTER = 0.1


def draw_metric(
    metric: Metric, values: Mapping[str, tuple[Sequence[str], NDArray[np.float64]]], path: Path, *, title: str
) -> Path:
    """Draw one row of dots, a box and the mean for each method; grey lines join a case's dots of neighbouring rows.

    Args:
        metric: What is drawn.
        values: For each method's label its cases and their means over classes ``(C,)``; NaN is left out.
        path: The PNG to write; a PDF is written beside it.
        title: One line above.

    Returns:
        ``path``.
    """
    figure = Figure(figsize=(WIDTH_INCH, 0.95 + ROW_INCH * len(values)), facecolor="white", layout="constrained")
    axes = new_axes(figure, title, len(values))
    _draw_lines(axes, list(values.values()))
    for row, (label, (_, scores)) in enumerate(values.items()):
        defined = scores[~np.isnan(scores)]
        colour = COLOURS[row % len(COLOURS)]
        label_row(axes, row, f"{label}, n {len(defined)}")
        if len(defined) == 0:
            continue
        axes.boxplot(
            [defined],
            positions=[row],
            orientation="horizontal",
            widths=0.36,
            showfliers=False,
            manage_ticks=False,
            patch_artist=True,
            zorder=2,
            boxprops={"facecolor": colour, "alpha": 0.22, "edgecolor": SOFT, "linewidth": 0.8},
            medianprops={"color": INK, "linewidth": 1.3},
            whiskerprops={"color": SOFT, "linewidth": 0.8},
            capprops={"color": SOFT, "linewidth": 0.8},
        )
        shift = _offsets(len(scores))
        axes.scatter(scores, row + shift, s=13, color=colour, edgecolors=INK, linewidths=0.3, zorder=3)
        axes.scatter([defined.mean()], [row], s=34, marker="D", color="white", edgecolors=INK, linewidths=1.1, zorder=4)
    direction = "higher is better" if metric.higher_is_better else "lower is better"
    axes.set_xlabel(f"{metric.title} ({direction})", color=SOFT, fontsize=9)
    return write_chart(figure, path)


def new_axes(figure: Figure, title: str, rows: int) -> Axes:
    """Add axes with a grid and room for so many rows, the first on top, and a title above."""
    axes = figure.add_subplot()
    axes.set_title(title, color=INK, fontsize=10.5, loc="left", fontweight="bold", pad=14)
    axes.set_yticks([])
    axes.set_ylim(rows - 0.7, -0.55)
    axes.tick_params(colors=INK, labelsize=9, length=0)
    axes.grid(axis="x", color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in axes.spines.values():
        side.set_visible(False)
    return axes


def label_row(axes: Axes, row: int, label: str) -> None:
    """Name a row above it, not beside the axes: names are long, and on a phone the picture is narrow."""
    axes.text(
        0,
        row - _LABEL_ABOVE,
        label,
        transform=axes.get_yaxis_transform(),
        fontsize=8.5,
        color=INK,
        va="center",
        zorder=5,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 0.6},
    )


def write_chart(figure: Figure, path: Path) -> Path:
    """Write a PNG for the report and a PDF beside it, for print; return the path of the PNG."""
    figure.dpi = _DPI
    write_figure(figure, path.with_suffix(".pdf"))
    return write_figure(figure, path)


def _draw_lines(axes: Axes, rows: Sequence[tuple[Sequence[str], NDArray[np.float64]]]) -> None:
    """Join the dots of a case in neighbouring rows."""
    for row, ((cases_a, a), (cases_b, b)) in enumerate(zip(rows, rows[1:], strict=False)):
        shift_a, shift_b = _offsets(len(cases_a)), _offsets(len(cases_b))
        where = {case: index for index, case in enumerate(cases_b)}
        opacity = float(np.clip(12 / max(len(cases_a), 1), 0.12, 0.6))
        for index, case in enumerate(cases_a):
            if (other := where.get(case)) is not None:
                ends = [row + shift_a[index], row + 1 + shift_b[other]]
                axes.plot([a[index], b[other]], ends, color=JOIN, linewidth=0.7, alpha=opacity, zorder=1)


def _offsets(count: int) -> NDArray[np.float64]:
    """Return small shifts that keep equal dots apart, the same for every method."""
    golden = np.arange(count, dtype=np.float64) * 0.618034 % 1  # spreads neighbours evenly
    return np.asarray((golden - 0.5) * 2 * _JITTER, np.float64)
