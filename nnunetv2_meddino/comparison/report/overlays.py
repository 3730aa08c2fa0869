"""Pictures of the worst cases: one slice with the reference's and every method's outlines, side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from nnunetv2_meddino.comparison.analysis import common_cases
from nnunetv2_meddino.comparison.folders import Folders, Method
from nnunetv2_meddino.comparison.results import DatasetResults, MethodResults
from nnunetv2_meddino.comparison.scores import case_means
from nnunetv2_meddino.comparison.wording import wrapped
from nnunetv2_meddino.errors import DataError
from nnunetv2_meddino.evaluation.results import DICE
from nnunetv2_meddino.imaging.grid import Grid, to_axial
from nnunetv2_meddino.imaging.io import read_picture
from nnunetv2_meddino.imaging.segmentation import read_segmentation
from nnunetv2_meddino.visualization.annotations import scale_bar
from nnunetv2_meddino.visualization.figure_files import write_figure
from nnunetv2_meddino.visualization.overlays import (
    CT_WINDOW_HU,
    SHOWN_PERCENTILES,
    draw_labels,
    image_title,
    legend_columns,
    legend_handles,
)
from nnunetv2_meddino.visualization.style import INK, structure_colours

WORST_CASES = 3
_DPI, _PANEL_INCH, _COLUMNS = 170, 2.2, 4
_LEGEND_POINTS, _LEGEND_ROW_INCH = 8, 0.19
_PANEL_LETTERS = 30
_TITLE_LETTERS_PER_INCH = 13
_TRUTH = "reference segmentation"


@dataclass(frozen=True)
class WorstCase:
    """A case that is worth a look, and why."""

    case: str
    reason: str


def worst_cases(dataset: DatasetResults, reference: Method, names: Mapping[Method, str]) -> list[WorstCase]:
    """Return the cases in which a method falls furthest behind the reference method, in Dice; worst first.

    With a single row, or without the reference, these are the cases of the lowest Dice.
    """
    dice = DICE.key
    base = next((row for row in dataset.rows if row.method == reference), None)
    found: dict[str, tuple[float, str]] = {}
    for row in dataset.rows:
        if base is None or len(dataset.rows) == 1:
            cases, values = row.scores.cases, case_means(row.scores.values[dice])
            reasons = [f"DSC {value:.3f} with {names[row.method]}" for value in values]
        elif row is base:
            continue
        else:
            cases = tuple(common_cases(row.scores, base.scores))
            values = case_means(row.scores.select(cases).values[dice])
            theirs = case_means(base.scores.select(cases).values[dice])
            reasons = [
                f"DSC {ours:.3f} with {names[row.method]}; {other:.3f} with {names[reference]}"
                for ours, other in zip(values, theirs, strict=True)
            ]
            values = values - theirs
        for case, value, reason in zip(cases, values, reasons, strict=True):
            if not math.isnan(value) and value < found.get(case, (math.inf, ""))[0]:
                found[case] = (float(value), reason)
    ranked = sorted(found.items(), key=lambda item: item[1][0])[:WORST_CASES]
    return [WorstCase(case, reason) for case, (_, reason) in ranked]


def draw_case(
    dataset: DatasetResults, worst: WorstCase, names: Mapping[Method, str], folders: Folders, path: Path
) -> Path:
    """Draw the slice on which most voxels are wrong: the image, the reference, and every method that has the case.

    Raises:
        DataError: A file is missing or cannot be read, or the files do not lie on one grid.
    """
    ending = dataset.dataset_json["file_ending"]
    files = {_TRUTH: folders.preprocessed / dataset.name / "gt_segmentations" / f"{worst.case}{ending}"}
    files |= {
        names[row.method]: _prediction(row, worst.case, ending)
        for row in dataset.rows
        if worst.case in row.scores.cases
    }
    picture = read_picture(folders.raw / dataset.name / "imagesTr" / f"{worst.case}_0000{ending}")
    maps = {name: read_segmentation(file) for name, file in files.items()}
    _check_same_grid(
        {
            **{name: (found.labels.shape, found.grid) for name, found in maps.items()},
            "image": (picture.channels.shape[1:], picture.grid),
        }
    )
    image, spacing_mm = to_axial(picture.channels[0], picture.grid)
    labels = {name: to_axial(found.labels, found.grid)[0] for name, found in maps.items()}
    reference = labels[_TRUTH]
    wrong = sum(np.count_nonzero(volume != reference, axis=(1, 2)) for volume in labels.values())
    z = int(np.argmax(wrong)) if np.any(wrong) else int(np.argmax(np.count_nonzero(reference, axis=(1, 2))))
    channel = next(iter(dataset.dataset_json.get("channel_names", {"0": ""}).values()))
    window = CT_WINDOW_HU if str(channel).casefold() == "ct" else None
    panels: list[tuple[str, NDArray[Any] | None]] = [(image_title(window), None)]
    panels += [(name, volume[z]) for name, volume in labels.items()]
    title = f"{worst.case}, slice {z + 1} of {len(image)}: {worst.reason}"
    limits = window or tuple(np.percentile(image[z], SHOWN_PERCENTILES))
    figure = _figure(image[z], panels, spacing_mm[1:], limits, _label_names(dataset), title, picture.in_mm)
    return write_figure(figure, path)


def _prediction(row: MethodResults, case: str, ending: str) -> Path:
    return row.folds[row.fold_of[case]] / "validation" / f"{case}{ending}"


def _check_same_grid(grids: Mapping[str, tuple[tuple[int, ...], Grid]]) -> None:
    """Refuse files whose size or direction differ: turned by their headers, they would not lie on one another."""
    first_size, first = grids["image"]
    if any(
        size != first_size or not np.allclose(grid.directions, first.directions, atol=1e-2)
        for size, grid in grids.values()
    ):
        shown = "; ".join(f"{name} {size} {_rows(grid)}" for name, (size, grid) in grids.items())
        raise DataError(f"Size or direction (z, y, x) differ between the files of this case: {shown}.")


def _rows(grid: Grid) -> list[list[float]]:
    return (np.round(grid.directions, 4) + 0.0).tolist()  # without the sign of zero


def _label_names(dataset: DatasetResults) -> dict[int, str]:
    """Return the name of each label value; regions overlap, so their maps are shown by number."""
    labels = dataset.dataset_json["labels"]
    return {int(value): name for name, value in labels.items() if not isinstance(value, list) and int(value)}


def _figure(
    image: NDArray[Any],
    panels: Sequence[tuple[str, NDArray[Any] | None]],
    spacing_mm: tuple[float, float],
    limits: tuple[float, ...],
    label_names: Mapping[int, str],
    title: str,
    in_mm: bool,
) -> Figure:
    aspect = spacing_mm[0] / spacing_mm[1]
    rows = math.ceil(len(panels) / _COLUMNS)
    columns = math.ceil(len(panels) / rows)  # five panels are three and two, not four and one
    height = _PANEL_INCH * image.shape[0] * aspect / image.shape[1]
    shown = sorted({int(v) for _, labels in panels if labels is not None for v in np.unique(labels)} - {0})
    colours = structure_colours(shown)
    handles = legend_handles(colours, label_names)
    side_by_side = legend_columns(handles, columns * _PANEL_INCH, _LEGEND_POINTS)
    legend_inch = _LEGEND_ROW_INCH * math.ceil(len(handles) / side_by_side)
    size = (columns * _PANEL_INCH, rows * (height + 0.3) + 0.4 + legend_inch)
    figure = Figure(figsize=size, dpi=_DPI, facecolor="white", layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, (name, labels) in zip(grid, panels, strict=False):
        axes.imshow(image, cmap="gray", vmin=limits[0], vmax=limits[1], aspect=aspect, interpolation="bilinear")
        if labels is not None:
            draw_labels(axes, labels, colours)
        elif in_mm:
            scale_bar(axes, spacing_mm[1], 7)
        axes.set_title(wrapped(name, _PANEL_LETTERS), fontsize=8, color=INK)
    figure.suptitle(wrapped(title, round(size[0] * _TITLE_LETTERS_PER_INCH)), fontsize=8.5, color=INK)
    if handles:
        style = {"frameon": False, "fontsize": _LEGEND_POINTS, "ncols": side_by_side}
        figure.legend(handles=handles, loc="outside lower center", **style)
    return figure
