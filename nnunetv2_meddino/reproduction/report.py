"""The tables of a reproduction: every row with each number of labelled cases, and what the pretraining did."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from nnunetv2_meddino.comparison.analysis import Analysis, analyse
from nnunetv2_meddino.comparison.folders import Folders, Method
from nnunetv2_meddino.comparison.report.document import (
    Block,
    Cell,
    Heading,
    Paragraph,
    Picture,
    Table,
    to_html,
    to_markdown,
)
from nnunetv2_meddino.comparison.report.report import comparison_cells, estimate_cell, write_report
from nnunetv2_meddino.comparison.results import Selection, collect
from nnunetv2_meddino.evaluation.results import DICE, METRICS, Metric
from nnunetv2_meddino.files import write_text
from nnunetv2_meddino.reproduction.study import ALL, STAGES, Row, Study
from nnunetv2_meddino.visualization.figure_files import write_figure
from nnunetv2_meddino.visualization.style import COLOURS, INK, LINE, SOFT

NSD = METRICS[1]
MEASURES = {
    "probe/dice": ("linear probe, Dice", 3),
    "collapse/target_information": ("information of the targets", 3),
    "collapse/class_rank": ("rank of the class tokens", 3),
    "collapse/patch_similarity": ("similarity of patches", 3),
}
"""Of the pretraining: title and decimals."""

REPORT = "report.html"

_WIDTH_INCH, _HEIGHT_INCH, _DPI = 6.4, 3.8, 200

Analyses = Mapping[str, Analysis]
"""By the name of a number of labelled cases, or of the row that others are compared with."""


def write_reports(
    study: Study, rows: int, seeds: int, datasets: Sequence[str], cases: Mapping[str, int], out: Path
) -> None:
    """Write the whole comparison for every number of labelled cases, and the tables over all of them to ``REPORT``.

    Args:
        study: What was trained.
        rows: How many of its rows are complete; the others are left out.
        seeds: How many of its seeds are, likewise.
        datasets: Names.
        cases: Labelled training cases of each.
        out: Folder of the reproduction; nnU-Net's folders are in the environment.
    """
    folders = Folders.from_environment()
    times = f"{study.seeds} times" if seeds == study.seeds else f"{seeds} of {study.seeds} times so far"
    missing = [row.title for row in study.rows[rows:]]
    study = replace(study, rows=study.rows[:rows])
    blocks: list[Block] = [
        Heading(1, f"Reproduction: {study.recipe}"),
        Paragraph(
            f"Every row was trained {times}, each on another fold; a case counts once, with the "
            "prediction of the network that had not seen it. All rows have the same steps, batches and patches, but "
            "for what their name says. Intervals: 95 %, bootstrap over cases. Differences: to random weights with the "
            "same number of labelled cases, where no other row is named; p of Wilcoxon's test, corrected (Holm) over "
            "the rows and metrics that are compared with the same row at that number."
        ),
    ]
    if missing:
        blocks.append(Paragraph(f"Not complete yet, and left out: {'; '.join(missing)}."))
    for dataset in datasets:
        analyses = {}
        for label, folds in study.folds(cases[dataset]).items():
            shown = [row for row in study.rows if row.few_labels or label == ALL]
            methods = [method_of(study, row) for row in shown]
            (found,) = collect(Selection((dataset,), folds=tuple(map(str, folds[:seeds]))), folders)
            asked = [row for row in found.rows if row.method in methods]
            absent = [text for text in found.absent if any(method.name in text for method in methods)]
            results = replace(found, rows=sorted(asked, key=lambda row: methods.index(row.method)), absent=absent)
            write_report([results], methods[0], folders, out / f"{dataset}, {label}")
            analyses[label] = analyse([results], methods[0])
            if label == ALL:
                ablations = {study.rows[0].title: analyses[label]}
                if len(methods) > 2:  # of two rows one comparison says all
                    ablations[study.rows[1].title] = analyse([results], methods[1])
        blocks += _dataset(study, dataset, analyses, ablations, out)
    blocks += [Heading(2, "Pretraining"), _pretraining(out / "pretraining")]
    write_text(to_markdown(blocks, out), out / "report.md")
    write_text(to_html(blocks), out / REPORT)


def _dataset(study: Study, dataset: str, analyses: Analyses, ablations: Analyses, out: Path) -> list[Block]:
    few = [row for row in study.rows if row.few_labels]
    picture = draw_few_labels(study, dataset, few, analyses, out / f"{dataset}.png")
    blocks: list[Block] = [Heading(2, dataset), Picture(picture, f"Dice of {dataset} over labelled cases", wide=True)]
    for metric in (DICE, NSD):
        blocks += [
            Heading(3, f"{metric.title} with few labelled cases"),
            _few_labels(study, dataset, few, analyses, metric),
        ]
        for to, analysis in ablations.items():
            title = f"{metric.title} with all labelled cases, differences to {to}"
            blocks += [Heading(3, title), _ablation(study, dataset, analysis, metric)]
    return blocks


def _few_labels(study: Study, dataset: str, rows: Sequence[Row], analyses: Analyses, metric: Metric) -> Table:
    lines = []
    for row in rows:
        cells = [Cell(row.title)]
        for analysis in analyses.values():
            entry = analysis.entry(dataset, method_of(study, row), metric)
            cells.append(estimate_cell(entry))
            if entry.comparison is None:
                cells.append(Cell(""))
            else:
                difference, *_, p = comparison_cells(entry.comparison, metric.decimals)
                cells.append(replace(difference, small=f"{difference.small} p {p.text}"))
        lines.append(tuple(cells))
    head = [text for label in analyses for text in (label, "difference")]
    return Table(("row", *head), tuple(lines))


def _ablation(study: Study, dataset: str, analysis: Analysis, metric: Metric) -> Table:
    lines = []
    for row in study.rows:
        entry = analysis.entry(dataset, method_of(study, row), metric)
        compared = entry.comparison
        cells = comparison_cells(compared, metric.decimals) if compared is not None else (Cell(""),) * 6
        lines.append((Cell(row.title), estimate_cell(entry), *cells))
    head = ("row", metric.title, "mean difference", "median", "wins / ties / losses", "n", "p", "p (Holm)")
    return Table(head, tuple(lines))


def method_of(study: Study, row: Row) -> Method:
    """Return what nnU-Net's folders know a row by."""
    return Method(row.trainer, row.plans, study.configuration(row))


def draw_few_labels(study: Study, dataset: str, rows: Sequence[Row], analyses: Analyses, path: Path) -> Path:
    """Draw the mean Dice of each row over the numbers of labelled cases, with its interval."""
    figure = Figure(figsize=(_WIDTH_INCH, _HEIGHT_INCH), dpi=_DPI, facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    for number, row in enumerate(rows):
        entries = [analysis.entry(dataset, method_of(study, row), DICE) for analysis in analyses.values()]
        places = [place + (number - (len(rows) - 1) / 2) * 0.08 for place in range(len(entries))]
        means = [entry.estimate.mean for entry in entries]
        colour = COLOURS[number]
        axes.plot(places, means, color=colour, marker="o", markersize=5, markeredgecolor=INK, label=row.title)
        for place, entry in zip(places, entries, strict=True):
            if (interval := entry.estimate.interval) is not None:
                axes.plot([place, place], [interval.low, interval.high], color=colour, linewidth=1)
    axes.set_xticks(range(len(analyses)), list(analyses))
    axes.set_xlabel("labelled cases", color=SOFT, fontsize=9)
    axes.set_ylabel("mean Dice, 95 % interval", color=SOFT, fontsize=9)
    axes.set_title(dataset, color=INK, fontsize=10.5, loc="left", fontweight="bold")
    axes.grid(axis="y", color=LINE, linewidth=0.6)
    axes.tick_params(colors=INK, labelsize=9, length=0)
    axes.legend(fontsize=8, frameon=False)
    for side in axes.spines.values():
        side.set_visible(False)
    return write_figure(figure, path)


def _pretraining(run: Path) -> Table:
    """Return what was measured before the first stage and at the end of each."""
    lines = []
    for stage in STAGES:
        records = [json.loads(line) for line in (run / stage / "metrics.jsonl").read_text().splitlines()]
        if stage == STAGES[0]:
            begun: dict[str, Any] = next((r["values"] for r in records if r.get("event") == "baseline"), {})
            lines.append((Cell("random weights"), *_measures(begun)))
        last: dict[str, Any] = {}
        for record in records:
            last |= record
        lines.append((Cell(f"after {stage}"), *_measures(last)))
    return Table(("", *(title for title, _ in MEASURES.values())), tuple(lines))


def _measures(values: Mapping[str, Any]) -> list[Cell]:
    return [
        Cell("" if values.get(name) is None else f"{values[name]:.{decimals}f}")
        for name, (_, decimals) in MEASURES.items()
    ]
