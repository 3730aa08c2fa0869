"""The table of a reproduction for ``results/``: each row with each number of labelled cases, by class; and of probes.

What every case scored is written beside it, as ``NAME_cases.csv``.

    python benchmarks/reproduction.py REPRODUCTION [--out FOLDER]

REPRODUCTION is a folder of ``meddino reproduce`` that ran on the CPU of this machine; read is what its last report was
made of.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections import defaultdict
from collections.abc import Collection, Mapping
from pathlib import Path
from statistics import mean
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from measure import RESULTS, write_results
from patient_probe import backbone_of, dice_of_patients, labelled_slices, mean_dice

from nnunetv2_meddino.comparison.report.tables import ALL_CLASSES
from nnunetv2_meddino.comparison.statistics import Paired, paired
from nnunetv2_meddino.evaluation.results import DICE
from nnunetv2_meddino.reproduction.report import NSD
from nnunetv2_meddino.reproduction.run import RECORD
from nnunetv2_meddino.reproduction.study import ALL, STAGES, Row, Study
from pretraining.config.parse import stage_configurations
from pretraining.engine.teachers import teacher_path, teacher_steps

SAME = "the same of random weights"
FOUND_DICE = 0.01
"""What is below was not found."""
NOTES = (
    "Means over cases, each predicted by a network that had not seen it, and differences to random weights, to the "
    "study's second row, and to the same network of random weights, with the same labelled cases, paired by case, with "
    "95 % intervals (bootstrap over cases). Wilcoxon's p for the Dice over all classes against random weights, as it "
    "is and corrected (Holm) over the rows and metrics of that number of labelled cases; and against the same network "
    "of random weights, as it is. Missed: structures of which nothing was found. Trainings that missed: those by which "
    f"the Dice of a class is below {FOUND_DICE} in every case held out from them; without them: the difference over "
    "the cases of the other trainings, of both rows. Probe: mean Dice of a linear classifier on the frozen features "
    "that the row starts from, fitted on the other patients and judged on each in turn; in one row of those that start "
    "from the same."
)


def lines_of(summary: Path, titles: dict[str, str], dataset: str, labels: str) -> list[dict[str, Any]]:
    """Return a line for each row of a comparison.

    Args:
        summary: ``summary.csv`` of ``meddino compare``.
        titles: Of rows by the name of their plans.
        dataset: Name.
        labels: Number of labelled cases.
    """
    with summary.open(newline="") as file:
        records = list(csv.DictReader(file))
    found: dict[str, dict[str, Any]] = {}
    for record in records:
        dice, whole = record["metric"] == DICE.key, record["class"] == ALL_CLASSES
        if not (dice or (record["metric"] == NSD.key and whole)):
            continue
        begun = {"dataset": dataset, "labelled cases": labels, "row": titles[record["plans"]], "cases": record["n"]}
        line = found.setdefault(record["plans"], begun)
        name = f"{record['metric'].split('_')[0]}, {record['class']}"
        line[name] = f"{float(record['mean']):.3f}"
        line[f"{name}: difference"] = ""
        if record["mean_difference"]:
            ends = (float(record[f"mean_difference{end}"]) for end in ("", "_low", "_high"))
            line[f"{name}: difference"] = _difference(*ends)
        if dice and whole:
            for column, key in (("p", "p"), ("p (Holm)", "p_holm")):
                line[column] = f"{float(record[key]):.3f}" if record[key] else ""
            line["missed"] = record["n_missed"]
    return list(found.values())


def cases_of(cases: Path, titles: dict[str, str], labels: str, held_out: Mapping[str, int]) -> list[dict[str, str]]:
    """Return what every case and class scored, and which of a row's trainings it was held out from.

    Args:
        cases: ``cases.csv`` of ``meddino compare``.
        titles: Of rows by the name of their plans.
        labels: Number of labelled cases.
        held_out: The training, by case.
    """
    with cases.open(newline="") as file:
        return [
            {"labelled cases": labels, "row": titles[record["plans"]], "training": str(held_out[record["case"]])}
            | {name: record[name] for name in ("case", "class", DICE.key, NSD.key, "missed")}
            for record in csv.DictReader(file)
        ]


def add_differences(lines: list[dict[str, Any]], scores: list[dict[str, str]], rows: list[Row]) -> None:
    """Add the differences of rows to the study's second row, and to the same network of random weights.

    Args:
        lines: Of ``lines_of``; changed.
        scores: Of ``cases_of``, of the same comparison.
        rows: Of the study.
    """
    missing = {row.title: trainings_that_missed(scores, row.title) for row in rows}
    for line in lines:
        row = next(row for row in rows if row.title == line["row"])
        line["trainings that missed"] = len(missing[row.title])
        alike = [other for other in rows if other.stage is None and _network(other) == _network(row) and row.stage]
        for to, others in ((rows[1].title, [rows[1]]), (SAME, alike)):
            for metric in (DICE.key, NSD.key):
                column = f"{metric.split('_')[0]}, {ALL_CLASSES}: difference to {to}"
                line[column] = ""
                for other in others:
                    if other != row and (found := compared(scores, metric, row.title, other.title)):
                        line[column] = with_interval(found)
                        if to == SAME and metric == DICE.key:
                            line[f"p to {to}"] = f"{found.p:.3f}"
                            left = missing[row.title] | missing[other.title]
                            if left and (rest := compared(scores, metric, row.title, other.title, without=left)):
                                line[f"{column}, without trainings that missed"] = (
                                    f"{with_interval(rest)}, {rest.n} cases"
                                )


def trainings_that_missed(scores: list[dict[str, str]], row: str) -> set[str]:
    """Return the trainings of a row that did not find a class in any of the cases held out from them."""
    found: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for score in scores:
        if score["row"] == row and score[DICE.key]:
            found[score["training"], score["class"]].append(float(score[DICE.key]) >= FOUND_DICE)
    return {training for (training, _), any_of in found.items() if not any(any_of)}


def compared(
    scores: list[dict[str, str]], metric: str, row: str, other: str, without: Collection[str] = ()
) -> Paired | None:
    """Compare two rows by their cases' means over classes; None where there is no case of both."""
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for score in scores:
        if score[metric] and score["training"] not in without:
            values[score["row"]][score["case"]].append(float(score[metric]))
    if not (both := sorted(values[row].keys() & values[other].keys())):
        return None
    own, theirs = (np.array([mean(values[name][case]) for case in both]) for name in (row, other))
    return paired(own, theirs, higher_is_better=True)


def with_interval(found: Paired) -> str:
    """Return a mean difference in words, with its interval where there is one."""
    if found.mean_interval is None:
        return f"{found.mean:+.3f}"
    return _difference(found.mean, found.mean_interval.low, found.mean_interval.high)


def _network(row: Row) -> tuple[str, bool, str]:
    """Return what is trained, whatever it starts from."""
    return row.trainer, row.high_resolution, row.fine_tuning


def _difference(value: float, low: float, high: float) -> str:
    return f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"


def add_probes(
    lines: list[dict[str, Any]], reproduction: Path, study: dict[str, Any], rows: list[Row], dataset: Path
) -> None:
    """Add a linear probe of the network that a row starts from, to the first row that starts from it."""
    (config,) = stage_configurations(STAGES[:1], study["recipe"], None, list(study["pretraining"]))
    names, slices = labelled_slices(dataset, config)
    starts: dict[str | None, str] = {}
    for row in rows:
        starts.setdefault(row.stage, row.title)
    for stage, title in starts.items():
        folder = reproduction / "pretraining" / str(stage)
        teacher = None if stage is None else teacher_path(folder, teacher_steps(folder)[-1])
        found = mean_dice(dice_of_patients(backbone_of(config, teacher), names, slices))
        for line in lines:
            if line["row"] == title:
                line["probe"] = f"{found:.3f}"


def write_cases(scores: list[dict[str, str]], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(scores[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(scores)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reproduction", type=Path)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    record = json.loads((options.reproduction / RECORD).read_text())
    study = [Row(**fields) for fields in record["study"]["rows"]]
    titles = {row.plans: row.title for row in study}
    splits = Study(**record["study"] | {"rows": tuple(study)})
    rows: list[dict[str, Any]] = []
    scores: list[dict[str, str]] = []
    for dataset, cases in ((Path(name), cases) for name, cases in record["datasets"].items()):
        folds = enumerate(splits.splits(cases)[: splits.seeds])
        held_out = {case: fold for fold, split in folds for case in split["val"]}
        for folder in sorted(options.reproduction.glob(f"{dataset.name}, *")):
            labels = folder.name.removeprefix(f"{dataset.name}, ")
            lines = lines_of(folder / "summary.csv", titles, dataset.name, labels)
            own = cases_of(folder / "cases.csv", titles, labels, held_out)
            add_differences(lines, own, study)
            scores += [{"dataset": dataset.name} | score for score in own]
            if labels == ALL:
                add_probes(lines, options.reproduction, record["study"], study, dataset)
            rows += lines
    path = write_results(f"reproduction_{record['study']['recipe']}", "cpu", rows, options.out, NOTES)
    write_cases(scores, path.with_name(f"{path.stem}_cases.csv"))


if __name__ == "__main__":
    main()
