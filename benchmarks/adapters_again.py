"""Whether adapters gain again: other pretrainings, and everything else that chance decides drawn anew.

    python benchmarks/adapters_again.py --data DATASET --corpus FOLDER --runs FOLDER [FOLDER ...] --work FOLDER
        [--labels 2] [--out FOLDER]

A reproduction (``meddino reproduce``) has one pretraining, and trains each row once on each fold. Here every run,
a folder of ``meddino-pretrain train stage1`` on the corpus such as ``learning.py`` makes with several seeds, is
fine-tuned by adapters on the same folds, and as often adapters are trained on random weights. Two trainings at a time,
on one core each; the same command continues where it was stopped.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from measure import RESULTS, write_results
from reproduction import FOUND_DICE, with_interval

from nnunetv2_meddino.commands import run_command
from nnunetv2_meddino.comparison.folders import Folders
from nnunetv2_meddino.comparison.results import MethodResults, Selection, collect
from nnunetv2_meddino.comparison.scores import case_means
from nnunetv2_meddino.comparison.statistics import paired
from nnunetv2_meddino.environment import NNUNET_PATHS, changed_environment, one_thread_each, run_environment
from nnunetv2_meddino.evaluation.results import DICE
from nnunetv2_meddino.reproduction.report import NSD, method_of
from nnunetv2_meddino.reproduction.run import Reproduction
from nnunetv2_meddino.reproduction.study import STUDIES, Row, Study
from nnunetv2_meddino.trainers.fine_tuning import LORA

NOTES = (
    "Adapters trained on so many labelled patients: from pretrainings, which differ in their seed, and from random "
    "weights, drawn anew for each. Dice and surface Dice: means over patients and classes, each patient predicted by "
    "the training that had not seen it; difference with the 95 % interval over patients (BCa bootstrap) and Wilcoxon's "
    "p. Trainings that missed a class: those by which its Dice is below "
    f"{FOUND_DICE} in every patient held out from them. The last row: each patient's mean over the rows above."
)


def study_of(runs: int, labels: int) -> Study:
    """Return a study of pairs of rows, adapters on a pretraining and on random weights."""
    rows = []
    for number in range(1, runs + 1):
        rows.append(Row(f"Lora{number}", f"pretraining {number}", f"run{number}", fine_tuning=LORA, few_labels=True))
        rows.append(Row(f"ScratchLora{number}", f"random {number}", None, fine_tuning=LORA, few_labels=True))
    return replace(STUDIES["small"], rows=tuple(rows), few=(labels,))


def train_all(work: Reproduction, runs: Sequence[Path]) -> None:
    """Export the runs, preprocess the dataset, and train what is not trained yet."""
    work.open()
    environment = run_environment()
    for number, run in enumerate(runs, 1):
        if not (weights := work.weights(f"run{number}")).exists():
            command = ["meddino-pretrain", "export", str(run / "stage1"), "--out", str(weights)]
            run_command(command, environment, work.out / "logs" / f"export_{number}.log", lambda line: None)
    if not (pretraining := work.out / "pretraining").exists():
        pretraining.symlink_to(runs[0].resolve(), target_is_directory=True)
    for step in work.preparation():
        if step.name.startswith(("seen", "plan_", "preprocess_")):
            step.run(_silent)
    work.write_plans()
    folds = range(work.study.seeds)
    wanted = [f"{work.names[0]}_{row.name}_{fold}" for fold in folds for row in work.study.rows]
    steps = {step.name: step for step in work.trainings()}

    def one(name: str) -> None:
        steps[name].run(_silent)
        print(name, "finished", flush=True)

    with ThreadPoolExecutor(2) as pool:
        for _ in pool.map(one, wanted):
            pass


def _silent(fraction: float | None, text: str) -> None:
    """Show no progress of a step."""


def lines(work: Reproduction) -> list[dict[str, Any]]:
    """Return a line for each pretraining, and one of all."""
    chosen = Selection((work.names[0],), folds=tuple(map(str, range(work.study.seeds))))
    (found,) = collect(chosen, Folders.from_environment())
    by_method = {row.method: row for row in found.rows}
    results = [by_method[method_of(work.study, row)] for row in work.study.rows]
    pairs = list(zip(results[::2], results[1::2], strict=True))
    table = [_line(f"{number}", [pair]) for number, pair in enumerate(pairs, 1)]
    return [*table, _line("all", pairs)] if len(pairs) > 1 else table


def _line(name: str, pairs: Sequence[tuple[MethodResults, MethodResults]]) -> dict[str, Any]:
    cases = pairs[0][0].scores.cases
    classes = pairs[0][0].scores.classes.values()
    line: dict[str, Any] = {"pretraining": name, "patients": len(cases)}
    measures = [(f"{DICE.title}, {title}", DICE, [place]) for place, title in enumerate(classes)]
    everything = list(range(len(classes)))
    for title, metric, columns in [(DICE.title, DICE, everything), (NSD.title, NSD, everything), *measures]:
        own, theirs = (
            np.mean([case_means(pair[side].scores.select(cases).values[metric.key][:, columns]) for pair in pairs], 0)
            for side in (0, 1)
        )
        line[f"{title}: random, pretrained"] = f"{np.nanmean(theirs):.3f}, {np.nanmean(own):.3f}"
        difference = paired(own, theirs, higher_is_better=True)
        line[f"{title}: difference"] = with_interval(difference)
        line[f"{title}: p"] = "" if difference.p is None else f"{difference.p:.3f}"
    missed = [sum(map(_missed, (pair[side] for pair in pairs))) for side in (1, 0)]
    line["trainings that missed a class: random, pretrained"] = f"{missed[0]}, {missed[1]}"
    return line


def _missed(result: MethodResults) -> int:
    """Return how many of the trainings of a row did not find a class in any of their patients."""
    count = 0
    for fold in result.folds:
        own = [place for place, case in enumerate(result.scores.cases) if result.fold_of[case] == fold]
        count += bool((result.scores.values[DICE.key][own] < FOUND_DICE).all(axis=0).any())
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="labelled dataset in nnU-Net's raw format")
    parser.add_argument("--corpus", type=Path, required=True, help="of the runs; without the cases of the dataset")
    parser.add_argument("--runs", type=Path, nargs="+", required=True, help="of meddino-pretrain train stage1")
    parser.add_argument("--work", type=Path, required=True, help="for everything that is written; continued")
    parser.add_argument("--labels", type=int, default=2, help="labelled patients (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    study = study_of(len(options.runs), options.labels)
    work = Reproduction(study, (options.data.resolve(),), options.corpus.resolve(), options.work.absolute(), "cpu")
    with changed_environment({v.name: str(work.out / v.name) for v in NNUNET_PATHS}), one_thread_each():
        train_all(work, options.runs)
        rows = lines(work)
    write_results("adapters_again", "cpu", rows, options.out, NOTES)


if __name__ == "__main__":
    main()
