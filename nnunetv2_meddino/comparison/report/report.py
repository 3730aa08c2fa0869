"""Writes the report folder: report.html, report.md, tables.tex, summary.csv, cases.csv and figures/."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

from nnunetv2_meddino import __version__
from nnunetv2_meddino.comparison.analysis import Analysis, Comparison, Entry, analyse
from nnunetv2_meddino.comparison.fairness import Notice, notices
from nnunetv2_meddino.comparison.folders import Folders, Method
from nnunetv2_meddino.comparison.report.document import (
    Block,
    Cell,
    Details,
    Heading,
    Notes,
    Paragraph,
    Picture,
    Table,
    to_html,
    to_markdown,
)
from nnunetv2_meddino.comparison.report.figures import draw_metric
from nnunetv2_meddino.comparison.report.forest import draw_forest
from nnunetv2_meddino.comparison.report.latex import to_latex
from nnunetv2_meddino.comparison.report.overlays import draw_case, worst_cases
from nnunetv2_meddino.comparison.report.tables import ALL_CLASSES, write_cases_csv, write_summary_csv
from nnunetv2_meddino.comparison.results import DatasetResults, MethodResults
from nnunetv2_meddino.comparison.scores import case_means
from nnunetv2_meddino.comparison.statistics import Estimate, Interval, Paired
from nnunetv2_meddino.comparison.wording import counted, wrapped
from nnunetv2_meddino.errors import DataError
from nnunetv2_meddino.evaluation.results import METRICS, Metric
from nnunetv2_meddino.files import write_text

logger = logging.getLogger(__name__)

NONE = "–"
HOW_TO_READ = (
    "Every case counts once, with the prediction of the fold that had not seen it. A value over classes is each case's "
    "mean over the classes that its reference holds, then the mean over cases; brackets are 95 % intervals from 10,000 "
    "resamples of the cases (BCa bootstrap). Fewer than 3 cases, or values that are all equal, have no interval.",
    "Differences are method minus reference, on the cases and classes defined in both. p is of the two-sided Wilcoxon "
    "signed-rank test (Pratt); p (Holm) is corrected over the whole family of tests, and below 0.05 it is marked *. "
    "Values of single classes explore; they are a family of their own.",
    "Missed: classes that the reference of a case holds and the prediction lacks. They are 0 in DSC and NSD and are "
    "left out of ASSD and HD95, so read those two beside this count. Classes that only the prediction holds are left "
    "out of everything.",
    "NSD voxel (MONAI, MedDINOv3) and NSD surfel (DeepMind, KiTS, FLARE) are two definitions; their values must not be "
    "compared with one another.",
)


def write_report(datasets: Sequence[DatasetResults], reference: Method, folders: Folders, out: Path) -> Path:
    """Analyse the results and write everything to ``out``.

    Args:
        datasets: What was collected.
        reference: The method that the others are compared with; its row comes first.
        folders: Where images and reference segmentations are, for the pictures.
        out: Folder to write to; files of an earlier report are replaced.

    Returns:
        ``out/report.html``.
    """
    out.mkdir(parents=True, exist_ok=True)
    datasets = [replace(d, rows=sorted(d.rows, key=lambda row: row.method != reference)) for d in datasets]
    analysis = analyse(datasets, reference)
    names = short_names([row.method for dataset in datasets for row in dataset.rows])
    blocks = _header(datasets, analysis, names)
    found = notices(datasets)
    blocks += _notes(found, len(datasets) > 1)
    for dataset in datasets:
        blocks += _dataset(dataset, analysis, names, folders, out)
    blocks += [Heading(2, "How to read this"), *(Paragraph(text) for text in HOW_TO_READ)]
    write_summary_csv(datasets, analysis, out / "summary.csv")
    write_cases_csv(datasets, out / "cases.csv")
    write_text(to_latex(_tables(datasets, analysis, names)), out / "tables.tex")
    write_text(to_markdown(blocks, out), out / "report.md")
    write_text(to_html(blocks), out / "report.html")
    return out / "report.html"


def _tables(
    datasets: Sequence[DatasetResults], analysis: Analysis, names: Mapping[Method, str]
) -> list[tuple[str, Table]]:
    """Return the tables that a paper shows: scores and comparisons of every dataset."""
    tables = []
    for dataset in datasets:
        tables.append((dataset.name, _scores(dataset, analysis, names)))
        comparisons = _comparisons(dataset, analysis, names)
        if comparisons.rows:
            tables.append((f"{dataset.name}, against {names[analysis.reference]}", comparisons))
    return tables


def short_names(methods: Sequence[Method]) -> dict[Method, str]:
    """Return a name for each method that leaves out what all methods share."""
    names = {}
    for method in methods:
        parts = [method.trainer]
        parts += [method.plans] if len({m.plans for m in methods}) > 1 else []
        parts += [method.configuration] if len({m.configuration for m in methods}) > 1 else []
        names[method] = ", ".join(parts)
    return names


def _header(datasets: Sequence[DatasetResults], analysis: Analysis, names: Mapping[Method, str]) -> list[Block]:
    cases = ", ".join(
        f"{d.name} ({counted(len({case for row in d.rows for case in row.scores.cases}), 'case')})" for d in datasets
    )
    ended = [t.ended for d in datasets for row in d.rows for t in row.trainings.values() if t.ended is not None]
    trained = f" Trainings ended {_period(min(ended), max(ended))}." if ended else ""
    made = f"{datetime.now().astimezone():%Y-%m-%d %H:%M}"
    return [
        Heading(1, "Comparison of segmentation methods"),
        Paragraph(f"{cases}. Reference method: {names[analysis.reference]} ({analysis.reference.name})."),
        Paragraph(
            f"Made {made} with nnunetv2_meddino {__version__}, nnunetv2 {version('nnunetv2')}, torch "
            f"{version('torch')}.{trained} {analysis.family} tests of means over classes and "
            f"{analysis.exploratory_family} of single classes, each family corrected by itself."
        ),
    ]


def _period(first: float, last: float) -> str:
    days = [f"{datetime.fromtimestamp(seconds):%Y-%m-%d}" for seconds in (first, last)]
    return f"on {days[0]}" if days[0] == days[1] else f"from {days[0]} to {days[1]}"


def _notes(found: Sequence[Notice], name_dataset: bool) -> list[Block]:
    blocks: list[Block] = []
    for is_warning, title in ((True, "What makes rows unequal"), (False, "Remarks")):
        texts = [f"{n.dataset}: {n.text}" if name_dataset else n.text for n in found if n.is_warning is is_warning]
        if texts:
            blocks += [Heading(3, title), Notes(tuple(dict.fromkeys(texts)), are_warnings=is_warning)]
    return blocks


def _dataset(
    dataset: DatasetResults, analysis: Analysis, names: Mapping[Method, str], folders: Folders, out: Path
) -> list[Block]:
    blocks: list[Block] = [Heading(2, dataset.name), Heading(3, "Scores"), _scores(dataset, analysis, names)]
    if any(e.comparison for e in analysis.entries if e.dataset == dataset.name):
        blocks += [Heading(3, f"Against {names[analysis.reference]}"), _comparisons(dataset, analysis, names)]
    blocks += [Heading(3, "Cases"), *_figures(dataset, analysis, names, out)]
    blocks += _pictures(dataset, analysis.reference, names, folders, out)
    blocks.append(Heading(3, "Classes"))
    classes = dataset.rows[0].scores.classes
    for metric in METRICS:
        table = _classes(dataset, analysis, names, metric, classes)
        blocks.append(Details(f"{metric.title} of every class", table))
    blocks += [Heading(3, "Models and training"), _models(dataset, names)]
    return blocks


def _scores(dataset: DatasetResults, analysis: Analysis, names: Mapping[Method, str]) -> Table:
    rows = []
    for row in dataset.rows:
        entries = [analysis.entry(dataset.name, row.method, metric) for metric in METRICS]
        cells = [_scored_cell(entry) for entry in entries]
        small = "(reference method)" if row.method == analysis.reference else ""
        counts = [Cell(str(len(row.scores.cases))), Cell(str(entries[0].n_missed))]
        rows.append((Cell(names[row.method], small), *cells, *counts))
    head = ("method", *(metric.title for metric in METRICS), "cases", "missed")
    caption = "Means over cases of each case's mean over classes; n: cases in which a distance is defined."
    return Table(head, tuple(rows), caption=caption)


def _scored_cell(entry: Entry) -> Cell:
    """Return a mean, its interval and, of a distance, the number of cases, for missed classes have none."""
    cell = estimate_cell(entry)
    if entry.metric.higher_is_better:
        return cell
    return Cell(cell.text, "\n".join(part for part in (cell.small, f"n {entry.estimate.n}") if part))


def estimate_cell(entry: Entry) -> Cell:
    """Return a mean and its interval."""
    return mean_cell(entry.estimate, entry.metric)


def mean_cell(estimate: Estimate, metric: Metric) -> Cell:
    """Return a mean of a metric and its interval."""
    return Cell(_number(estimate.mean, metric.decimals), _interval(estimate.interval, metric.decimals))


def _comparisons(dataset: DatasetResults, analysis: Analysis, names: Mapping[Method, str]) -> Table:
    rows = []
    for metric in METRICS:
        title = metric.title  # stands on the first of its rows
        for row in dataset.rows:
            comparison = analysis.entry(dataset.name, row.method, metric).comparison
            if comparison is not None:
                rows.append((Cell(title), Cell(names[row.method]), *comparison_cells(comparison, metric.decimals)))
                title = ""
    head = ("metric", "method", "mean difference", "median difference", "wins / ties / losses", "n", "p", "p (Holm)")
    return Table(head, tuple(rows), left=2)


def comparison_cells(comparison: Comparison, decimals: int) -> tuple[Cell, ...]:
    """Return mean and median difference, counts of cases, pairs, p, and p within its family."""
    paired = comparison.paired
    return (
        Cell(_signed(paired.mean, decimals), _interval(paired.mean_interval, decimals, signed=True)),
        Cell(_signed(paired.median, decimals), _interval(paired.median_interval, decimals, signed=True)),
        Cell(f"{paired.wins} / {paired.ties} / {paired.losses}".replace(" ", "\N{NO-BREAK SPACE}")),
        Cell(str(paired.n)),
        Cell(_p(paired.p)),
        Cell(_p(comparison.p_holm, mark=True)),
    )


def _classes(
    dataset: DatasetResults,
    analysis: Analysis,
    names: Mapping[Method, str],
    metric: Metric,
    classes: Mapping[str, str],
) -> Table:
    rows = []
    for label, name in classes.items():
        entries = [analysis.entry(dataset.name, row.method, metric, label) for row in dataset.rows]
        cells = []
        for entry in entries:
            cell = estimate_cell(entry)
            parts = [cell.small, f"n {entry.estimate.n}"]
            parts += [f"missed {entry.n_missed}"] if entry.n_missed else []
            parts += [f"only predicted {entry.n_only_predicted}"] if entry.n_only_predicted else []
            parts += [f"p (Holm) {_p(entry.comparison.p_holm, mark=True)}"] if entry.comparison else []
            cells.append(Cell(cell.text, "\n".join(part for part in parts if part)))
        rows.append((Cell(name), *cells))
    entries = [analysis.entry(dataset.name, row.method, metric) for row in dataset.rows]
    rows.append((Cell("mean of these"), *(Cell(_number(entry.class_mean, metric.decimals)) for entry in entries)))
    caption = f"{metric.title}: means over the n cases whose reference holds the class. p against the reference method."
    return Table(("class", *(names[row.method] for row in dataset.rows)), tuple(rows), caption=caption)


def _figures(dataset: DatasetResults, analysis: Analysis, names: Mapping[Method, str], out: Path) -> list[Block]:
    blocks: list[Block] = []
    for metric in METRICS:
        values = {names[r.method]: (r.scores.cases, case_means(r.scores.values[metric.key])) for r in dataset.rows}
        path = out / "figures" / f"{_file_name(dataset.name)}_{metric.key}.png"
        draw_metric(metric, values, path, title=f"{metric.title}, {ALL_CLASSES}")
        blocks.append(Picture(path, f"{dataset.name}: {metric.title} of every case and method"))
        if differences := _differences(dataset, analysis, names, metric):
            forest = path.with_name(f"{path.stem}_differences.png")
            draw_forest(metric, differences, names[analysis.reference], forest)
            blocks.append(Picture(forest, f"{dataset.name}: {metric.title}, paired differences from the reference"))
    text = (
        "Dots are cases (means over classes), grey lines join a case's dots, boxes are quartiles, diamonds are means; "
        "squares are mean differences of pairs, method minus reference, with 95 % intervals. Beside each of these "
        "pictures lies a PDF."
    )
    return [*blocks, Paragraph(text)]


def _differences(
    dataset: DatasetResults, analysis: Analysis, names: Mapping[Method, str], metric: Metric
) -> dict[str, Paired]:
    """Return what a forest plot shows: every method that was compared with the reference."""
    entries = [(row.method, analysis.entry(dataset.name, row.method, metric)) for row in dataset.rows]
    return {names[method]: entry.comparison.paired for method, entry in entries if entry.comparison is not None}


def _pictures(
    dataset: DatasetResults, reference: Method, names: Mapping[Method, str], folders: Folders, out: Path
) -> list[Block]:
    worst = worst_cases(dataset, reference, names)
    if not worst:
        return []
    behind = any(row.method == reference for row in dataset.rows) and len(dataset.rows) > 1
    text = f"Furthest behind {names[reference]}, by DSC" if behind else "Lowest DSC"
    blocks: list[Block] = [
        Heading(3, "Worst cases"),
        Paragraph(f"{text}; the slice with the most voxels that a method has wrong."),
    ]
    for rank, case in enumerate(worst, start=1):
        path = out / "figures" / f"{_file_name(dataset.name)}_worst_{rank}.png"
        try:
            draw_case(dataset, case, names, folders, path)
        except DataError as error:
            logger.warning("No picture of case %s: %s", case.case, error)
            blocks.append(Paragraph(f"{case.case}: {case.reason}. No picture: {error}"))
        else:
            blocks.append(Picture(path, f"{dataset.name}, {case.case}: {case.reason}", wide=True))
    return blocks


def _models(dataset: DatasetResults, names: Mapping[Method, str]) -> Table:
    head = (
        *("method", "parameters, M", "GFLOPs per patch", "patch, px", "batch", "folds", "epochs", "training, h"),
        "pretrained weights",
    )
    return Table(
        head,
        tuple(_model(row, names[row.method]) for row in dataset.rows),
        caption="FLOPs of one forward pass of one patch, a multiplication and an addition counted as two. Training "
        "time is the sum over epochs and folds, without pauses; below it the device. Parameters: all, and those that "
        "are trained.",
    )


def _model(row: MethodResults, name: str) -> tuple[Cell, ...]:
    model, trainings = row.model, list(row.trainings.values())
    network = model.network
    parameters = Cell(NONE, wrapped(model.fault[:60], 22))
    if network is not None:
        parameters = Cell(f"{network.parameters / 1e6:.2f}", f"{network.trainable / 1e6:.2f} trained")
    done = sorted({NONE if t.epochs_done is None else str(t.epochs_done) for t in trainings})
    planned = sorted({"?" if t.epochs_planned is None else str(t.epochs_planned) for t in trainings})
    seconds = [t.seconds for t in trainings if t.seconds is not None]
    weights = sorted({str(t.weights.get("name")) for t in trainings if t.weights})
    return (
        Cell(name),
        parameters,
        Cell(NONE if network is None else f"{network.gflops:.3g}" if network.gflops < 100 else f"{network.gflops:.0f}"),
        Cell(" x ".join(map(str, model.patch_size)), f"{' x '.join(f'{mm:.3g}' for mm in model.spacing_mm)} mm"),
        Cell(str(model.batch_size)),
        Cell(", ".join(row.folds)),
        Cell(", ".join(done), f"of {', '.join(planned)}"),
        Cell(
            f"{math.fsum(seconds) / 3600:.3g}" if seconds else NONE,
            "\n".join(sorted({t.device for t in trainings if t.device})),
        ),
        Cell(", ".join(weights) or NONE),
    )


def _number(value: float, decimals: int) -> str:
    return NONE if math.isnan(value) else f"{value:.{decimals}f}"


def _signed(value: float, decimals: int) -> str:
    rounded = round(value, decimals)
    return NONE if math.isnan(value) else f"{rounded:{'+' if rounded else ''}.{decimals}f}".replace("-", "−")


def _interval(interval: Interval | None, decimals: int, *, signed: bool = False) -> str:
    show = _signed if signed else _number
    return "" if interval is None else f"[{show(interval.low, decimals)}, {show(interval.high, decimals)}]"


def _p(p: float | None, *, mark: bool = False) -> str:
    if p is None:
        return NONE
    text = ("< 0.001" if p < 0.001 else f"{p:.3f}") + (" *" if mark and p < 0.05 else "")
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def _file_name(dataset: str) -> str:
    return re.sub(r"\W", "_", dataset)
