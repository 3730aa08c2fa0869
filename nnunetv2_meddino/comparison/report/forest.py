"""Forest plots: for every method its mean difference from the reference method, with the interval."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from nnunetv2_meddino.comparison.report.figures import ROW_INCH, WIDTH_INCH, label_row, new_axes, write_chart
from nnunetv2_meddino.comparison.statistics import Paired
from nnunetv2_meddino.evaluation.results import Metric
from nnunetv2_meddino.visualization.style import COLOURS, INK, SOFT


def draw_forest(metric: Metric, differences: Mapping[str, Paired], reference: str, path: Path) -> Path:
    """Draw a row for each method: the mean paired difference, its 95 % interval, and the number of pairs.

    Args:
        metric: What is compared.
        differences: For each method's label its cases against those of the reference; method minus reference.
        reference: The reference method's label.
        path: The PNG to write; a PDF is written beside it.

    Returns:
        ``path``.
    """
    figure = Figure(figsize=(WIDTH_INCH, 1.25 + ROW_INCH * len(differences)), facecolor="white", layout="constrained")
    axes = new_axes(figure, f"{metric.title}, paired differences", len(differences))
    axes.axvline(0, color=SOFT, linewidth=1.0, zorder=1)
    for row, (label, paired) in enumerate(differences.items()):
        label_row(axes, row, f"{label}, n {paired.n}")
        if math.isnan(paired.mean):
            continue
        colour = COLOURS[(row + 1) % len(COLOURS)]  # the first is the reference method's
        if (interval := paired.mean_interval) is not None:
            axes.plot([interval.low, interval.high], [row, row], color=INK, linewidth=1.6, zorder=2)
        axes.scatter([paired.mean], [row], s=42, marker="s", color=colour, edgecolors=INK, linewidths=0.9, zorder=3)
    ends = [abs(end) for end in axes.get_xlim()]
    axes.set_xlim(-max(ends), max(ends))  # zero in the middle: both sides are seen alike
    better, worse = ("right", "left") if metric.higher_is_better else ("left", "right")
    for side, words in ((better, "method better"), (worse, f"{reference} better")):
        x, aligned = (1.0, "right") if side == "right" else (0.0, "left")
        axes.text(x, 1.0, words, transform=axes.transAxes, ha=aligned, va="bottom", color=SOFT, fontsize=7.5)
    axes.set_xlabel(f"mean difference of {metric.title}, 95 % interval", color=SOFT, fontsize=9)
    return write_chart(figure, path)
