"""Runs a reproduction: pretraining, data, trainings, report; what is done is not done again.

    OUT/reproduction.json      what it is made of
    OUT/pretraining/           the run of ``meddino-pretrain train all``
    OUT/weights/               its three last teachers, as the trainers take them
    OUT/nnUNet_raw, nnUNet_preprocessed, nnUNet_results
    OUT/logs/                  of every command
    OUT/report.md, report.html the tables, of the seeds and rows that are complete
    OUT/DATASET, 1 case/       the whole comparison for a number of labelled cases

Trainings are guarded fold by fold: the same command in another terminal, or on another machine with the same folder,
takes those that nobody works on.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from nnunetv2_meddino.commands import BarWatch, Report, check_installed, run_command
from nnunetv2_meddino.comparison.folders import Folders
from nnunetv2_meddino.comparison.jobs.run import run_step
from nnunetv2_meddino.comparison.jobs.steps import continuation, plan_steps
from nnunetv2_meddino.comparison.results import Selection
from nnunetv2_meddino.console import say
from nnunetv2_meddino.environment import (
    MEDDINO_AUGMENT,
    MEDDINO_BACKBONE,
    MEDDINO_FINETUNE,
    MEDDINO_LOADER,
    MEDDINO_WEIGHTS,
    NNUNET_PATHS,
    changed_environment,
    run_environment,
)
from nnunetv2_meddino.errors import BusyError, ConfigurationError, DataError, PlanError
from nnunetv2_meddino.files import read_json, write_json
from nnunetv2_meddino.locks import locked
from nnunetv2_meddino.reproduction.report import REPORT, method_of, write_reports
from nnunetv2_meddino.reproduction.study import ALL, STAGES, Row, Study
from nnunetv2_meddino.steps import run_steps
from nnunetv2_meddino.trainers.training_input import WHOLE_SLICE, WORKER
from nnunetv2_meddino.weights.backbones import NO_WEIGHTS

RECORD = "reproduction.json"
BASE_PLANS = "nnUNetPlans"


@dataclass(frozen=True)
class Step:
    """A part of the work; ``run`` does nothing where it is done."""

    name: str
    title: str
    run: Callable[[Report], None]
    needs: tuple[str, ...] = ()


def reproduce(study: Study, datasets: Sequence[Path], corpus: Path, out: Path, *, device: str) -> int:
    """Run everything that is missing; write the reports on each part of the study that is complete.

    Args:
        study: What to train.
        datasets: Labelled, in nnU-Net's raw format; not changed.
        corpus: Of slices, which holds none of their cases.
        out: Folder of the reproduction; one of an earlier call is continued.
        device: ``-device`` of all trainings.

    Returns:
        Steps that did not succeed.

    Raises:
        ConfigurationError: The folder is another reproduction's, or a command is missing.
        DataError: A dataset is none, or has too few cases.
    """
    check_installed(("meddino", "meddino-pretrain", "nnUNetv2_train", "nnUNetv2_preprocess"))
    datasets = tuple(folder.parent.resolve() / folder.name for folder in datasets)  # a link keeps its name
    work = Reproduction(study, datasets, corpus.resolve(), out.absolute(), device)
    with changed_environment({v.name: str(out.absolute() / v.name) for v in NNUNET_PATHS}):
        with locked(work.out):
            work.open()
            failed = _run(list(work.preparation()))
            if not failed:
                work.write_plans()
        if not failed:
            failed = _run(list(work.trainings()))
    if (report := work.out / REPORT).exists():
        say(f"Report: {report}")
    if failed:
        say(
            f"{failed} steps failed or run in another command. The same command goes on with what is missing, and "
            "writes the report anew whenever another seed or row is complete."
        )
    return failed


def _run(steps: Sequence[Step]) -> int:
    failed = 0
    for outcome in run_steps(steps, lambda step, report: step.run(report)):
        say(f"{outcome.label}: {outcome.message}")
        failed += not outcome.succeeded
    return failed


@dataclass(frozen=True)
class Reproduction:
    """A study in a folder: what is to be done, in steps. nnU-Net's folders in the environment are those of ``out``."""

    study: Study
    datasets: tuple[Path, ...]
    """Labelled, in nnU-Net's raw format."""
    corpus: Path
    """Of slices, which holds none of their cases."""
    out: Path
    """Absolute."""
    device: str
    """``-device`` of all trainings."""

    @property
    def names(self) -> list[str]:
        """Names of the datasets."""
        return [folder.name for folder in self.datasets]

    @cached_property
    def cases(self) -> dict[str, list[str]]:
        """Labelled training cases of each dataset."""
        return {folder.name: labelled_cases(folder) for folder in self.datasets}

    def open(self) -> None:
        """Make the folder, or see that it is that of the same reproduction."""
        names = self.names
        for name in names:
            if not re.fullmatch(r"Dataset\d{3}_.+", name) or sum(name[:10] == other[:10] for other in names) > 1:
                msg = f"Datasets are folders of different numbers in nnU-Net's raw format, DatasetNNN_Name; not {name}."
                raise DataError(msg)
            self.study.splits(self.cases[name])
        record = {
            "study": asdict(self.study),
            "datasets": {str(folder): self.cases[folder.name] for folder in self.datasets},
            "corpus": str(self.corpus),
        }
        path = self.out / RECORD
        if path.is_file():
            before = read_json(path, ConfigurationError, "Name another folder.")
            if changed := [key for key, value in json.loads(json.dumps(record)).items() if before.get(key) != value]:
                msg = f"{self.out} holds a reproduction whose {' and '.join(changed)} differ ({path} names them)."
                raise ConfigurationError(f"{msg} Name another folder, or go on with what it was begun with.")
        for part in ("logs", "weights", "nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            (self.out / part).mkdir(parents=True, exist_ok=True)
        for folder in self.datasets:
            with suppress(FileExistsError):
                (self.out / "nnUNet_raw" / folder.name).symlink_to(folder, target_is_directory=True)
        write_json(record, path)

    def preparation(self) -> Iterator[Step]:
        """Yield what must be done before anything can be trained."""
        images = [  # first channels: others, such as PET, have no like in a corpus of CT
            folder / "imagesTr" / f"{case}_0000{_file_ending(folder)}"
            for folder in self.datasets
            for case in self.cases[folder.name]
        ]
        yield self._command(
            "seen", "no evaluated case is in the corpus", "meddino-pretrain", "seen", self.corpus, *images
        )
        run = self.out / "pretraining"
        given = ("--corpus", self.corpus, "--out", run, "--recipe", self.study.recipe, "-device", self.device)
        probe = ("--monitor.probe-dataset", self.datasets[0])  # a measure; nothing is chosen by it
        pretrain = ("meddino-pretrain", "train", "all", *given, *probe, *self.study.pretraining)
        yield self._command("pretrain", "pretrain in three stages", *pretrain, needs="seen")
        for stage in STAGES:
            export = ("meddino-pretrain", "export", run / stage, "--out", self.weights(stage))
            yield self._command(f"export_{stage}", f"export {stage}", *export, needs="pretrain")
        for dataset in self.names:
            for px in (self.study.high_px, self.study.low_px):
                plan, data = f"plan_{dataset}_{px}", f"preprocess_{dataset}_{px}"
                numbered = ("-d", dataset[7:10])
                command = ("meddino", "plan", *numbered, "--patch-size", px)
                yield self._command(plan, f"{dataset}: plan {px} px", *command)
                preprocess = ("nnUNetv2_preprocess", *numbered, "-plans_name", BASE_PLANS, "-c", f"2d_{px}", "-np", 1)
                yield self._command(data, f"{dataset}: preprocess {px} px", *preprocess, needs=plan)

    def weights(self, stage: str) -> Path:
        """Return the file of the last teacher of a stage, as the trainers take it."""
        return self.out / "weights" / f"{stage}.safetensors"

    def _command(self, name: str, title: str, *command: object, needs: str | None = None) -> Step:
        """Return a step of one command, which is not run again once it has succeeded."""
        done = self.out / "logs" / f"{name}.done"

        def run(report: Report) -> None:
            if not done.exists():
                environment = {**os.environ, **run_environment()}
                run_command([*map(str, command)], environment, self.out / "logs" / f"{name}.log", BarWatch(report))
                done.touch()

        return Step(name, title, run, () if needs is None else (needs,))

    def write_plans(self) -> None:
        """Give every row its plans, and the datasets the folds of the study."""
        for folder in self.datasets:
            preprocessed = self.out / "nnUNet_preprocessed" / folder.name
            plans = read_json(preprocessed / f"{BASE_PLANS}.json", PlanError, "Delete the folder to plan anew.")
            for row in self.study.rows:
                write_json(self.study.plans_of(row, plans), preprocessed / f"{row.plans}.json")
            write_json(self.study.splits(self.cases[folder.name]), preprocessed / "splits_final.json")

    def trainings(self) -> Iterator[Step]:
        """Yield all trainings, those of a part of the study before those of the next, with a report on each part."""
        parts, before = self.study.parts(), list[tuple[str, str, Row, int]]()
        for number, (rows, seeds) in enumerate(parts, 1):
            folds = self._folds(rows, seeds)
            done = self._finished(folds)
            for dataset, label, row, fold in (training for training in folds if training not in before):
                title = f"{dataset}: {row.title}, {label}, seed {fold % self.study.seeds}"
                yield Step(f"{dataset}_{row.name}_{fold}", title, partial(self._train, dataset, row, fold))
            before = folds
            if not done or number == len(parts):
                title = f"report on {rows} of {len(self.study.rows)} rows, {seeds} of {self.study.seeds} seeds"
                yield Step(f"report_{number}", title, partial(self._write_reports, rows, seeds))

    def _folds(self, rows: int, seeds: int) -> list[tuple[str, str, Row, int]]:
        """Return dataset, number of labelled cases, row and fold of all trainings of the first rows and seeds."""
        return [
            (dataset, label, row, numbers[seed])
            for seed in range(seeds)
            for dataset in self.names
            for label, numbers in self.study.folds(len(self.cases[dataset])).items()
            for row in self.study.rows[:rows]
            if row.few_labels or label == ALL
        ]

    def _finished(self, trainings: Sequence[tuple[str, str, Row, int]]) -> bool:
        folders = Folders.from_environment()
        folds = [folders.model(name, method_of(self.study, row)) / f"fold_{n}" for name, _, row, n in trainings]
        return all(continuation(fold) is None for fold in folds)

    def _write_reports(self, rows: int, seeds: int, report: Report) -> None:
        if not self._finished(self._folds(rows, seeds)):
            raise BusyError("some of these trainings failed, or run in another command")
        with locked(self.out):
            cases = {name: len(listed) for name, listed in self.cases.items()}
            write_reports(self.study, rows, seeds, self.names, cases, self.out)

    def _train(self, dataset: str, row: Row, fold: int, report: Report) -> None:
        chosen = Selection((dataset,), (row.trainer,), (self.study.configuration(row),), (str(fold),), row.plans)
        variables = {
            MEDDINO_WEIGHTS.name: NO_WEIGHTS if row.stage is None else str(self.weights(row.stage)),
            MEDDINO_BACKBONE.name: self._backbone(),
            MEDDINO_FINETUNE.name: row.fine_tuning,
            MEDDINO_LOADER.name: WHOLE_SLICE,
            MEDDINO_AUGMENT.name: WORKER,
        }
        folders = Folders.from_environment()
        (method,) = chosen.methods(row.plans)
        with locked(folders.model(dataset, method) / f"fold_{fold}"):  # what is missing is asked for within
            for step in plan_steps(chosen, folders, device=self.device, processes=1):
                run_step(step, report, logs=self.out / "logs", variables=variables)

    def _backbone(self) -> str:
        """Return the architecture that was pretrained; random weights have the same."""
        import yaml

        config: dict[str, Any] = yaml.safe_load((self.out / "pretraining" / STAGES[0] / "config.yaml").read_text())
        return str(config["model"]["backbone"])


def labelled_cases(dataset: Path) -> list[str]:
    """Return the training cases of a raw dataset.

    Raises:
        DataError: It is none.
    """
    ending, folder = _file_ending(dataset), dataset / "labelsTr"
    if not folder.is_dir():
        raise DataError(f"{dataset} has no labelsTr. Give a labelled dataset in nnU-Net's raw format.")
    return sorted(path.name.removesuffix(ending) for path in folder.iterdir() if path.name.endswith(ending))


def _file_ending(dataset: Path) -> str:
    content = read_json(dataset / "dataset.json", DataError, "Give a dataset in nnU-Net's raw format.")
    if "file_ending" not in content:
        raise DataError(f"{dataset / 'dataset.json'} has no file_ending. Give a dataset in nnU-Net's raw format.")
    return str(content["file_ending"])
