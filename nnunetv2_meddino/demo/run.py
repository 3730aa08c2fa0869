"""The demo: data, plans, training, prediction and scores by the stock nnU-Net commands, on a CPU, in minutes.

Everything is written to one work folder, which records the steps that have succeeded, so that the same call continues
where an earlier one stopped.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nnunetv2_meddino.command_line import Terminated
from nnunetv2_meddino.commands import (
    BarWatch,
    PredictionWatch,
    Report,
    TrainingWatch,
    Watch,
    check_installed,
    run_command,
)
from nnunetv2_meddino.console import say
from nnunetv2_meddino.demo.phantom import DATASET_NAME, make_phantom_dataset
from nnunetv2_meddino.environment import (
    MEDDINO_BACKBONE,
    MEDDINO_WEIGHTS,
    NNUNET_PATHS,
    NNUNET_WANDB,
    run_environment,
)
from nnunetv2_meddino.errors import DataError, DemoError
from nnunetv2_meddino.files import read_json, write_json
from nnunetv2_meddino.imaging.grid import to_axial
from nnunetv2_meddino.imaging.io import read_picture
from nnunetv2_meddino.imaging.segmentation import read_segmentation
from nnunetv2_meddino.imaging.slices import richest_slice
from nnunetv2_meddino.locks import NAME as LOCK
from nnunetv2_meddino.locks import locked
from nnunetv2_meddino.steps import run_steps
from nnunetv2_meddino.visualization.overlays import CT_WINDOW_HU, save_overlay

TRAINER = "MedDINOv3Trainer_demo"
STATEMENT = (
    "These scores demonstrate the pipeline, not the method: they come from a tiny, randomly initialised ViT trained "
    "for a few minutes on a CPU."
)
_NEXT = """
On your own data, as short as this:     meddino demo --data /path/to/nnUNet_raw/DatasetXXX_Name --out NEW_FOLDER
For real, with pretrained weights:      nnUNetv2_plan_and_preprocess -d XXX -c 2d
                                        meddino train XXX 2d 0 -tr MedDINOv3Trainer"""
PHANTOMS = {"num_training": 6, "num_test": 2, "seed": 0}
_MARK = "meddino_demo.json"
_COMMANDS = ("nnUNetv2_plan_and_preprocess", "nnUNetv2_train", "nnUNetv2_predict", "nnUNetv2_evaluate_folder")


@dataclass(frozen=True)
class DemoResult:
    """What a finished demo found and wrote."""

    scores: dict[str, float]
    """Mean Dice of each structure over the scored cases; NaN where no case has the structure."""
    mean_dice: float
    """Mean over the structures that a case has."""
    scored_on: str
    """Which cases were scored, in words."""
    paths: dict[str, Path]
    """What was written: ``work folder``, ``scores``, ``overlay`` and so on."""
    duration_s: float
    """Wall time of all steps, including those of earlier calls."""


def run_demo(work_dir: Path, *, data: Path | None = None) -> DemoResult:
    """Run the whole pipeline on phantoms or on a real dataset, and print the scores and where everything is.

    Args:
        work_dir: Folder for everything the demo writes. One of an earlier call with the same settings is continued.
        data: A dataset in nnU-Net raw format (``DatasetXXX_Name``) to run on instead of the phantoms; not changed.

    Returns:
        Scores and paths.

    Raises:
        DataError: ``data`` is not an nnU-Net raw dataset with at least five training cases.
        ConfigurationError: An nnU-Net command is missing.
        DemoError: The work folder is not one of a demo with these settings, or a step failed.
    """
    check_installed(_COMMANDS)
    demo = _Demo(work_dir.absolute(), _checked_dataset(data.absolute()) if data else None)
    demo.refuse_other_folders()
    with locked(demo.work_dir):
        result = _run(demo)
    _print_result(result)
    return result


def _run(demo: _Demo) -> DemoResult:
    finished_s = demo.open()
    say(f"Work folder: {demo.work_dir}")
    steps = demo.steps()
    done = list(takewhile(lambda step: step.name in finished_s and step.output.exists(), steps))
    finished_s = {step.name: finished_s[step.name] for step in done}
    demo.save(finished_s)
    try:
        for outcome in run_steps(steps, lambda step, report: step.run(report), done=len(done)):
            if not outcome.succeeded:
                raise DemoError(f"step {outcome.label}: {outcome.message}")
            say(f"{outcome.label}: {outcome.message}")
            finished_s.setdefault(outcome.step.name, outcome.seconds)
            demo.save(finished_s)
    except (KeyboardInterrupt, Terminated):
        say("Stopped. The same command continues from here.")
        raise
    return demo.result(sum(finished_s.values()))


@dataclass(frozen=True)
class _Step:
    name: str
    title: str
    run: Callable[[Report], None]
    output: Path
    """Present once the step has succeeded."""
    needs: tuple[str, ...] = ()


class _Demo:
    """The steps of one demo, and where each of them reads and writes."""

    def __init__(self, work_dir: Path, data: Path | None):
        self.work_dir, self.data = work_dir, data
        name = data.name if data else DATASET_NAME
        self.dataset_id = name[7:10]
        self.raw = work_dir / "nnUNet_raw" / name
        self.preprocessed = work_dir / "nnUNet_preprocessed" / name
        self.model = work_dir / "nnUNet_results" / name / f"{TRAINER}__nnUNetPlans__2d"
        self.validation = self.model / "fold_0" / "validation"
        self.predictions = work_dir / "predictions"
        self.logs = work_dir / "logs"
        self.overlay = work_dir / "overlay.png"
        self.predicts = data is None or bool(_cases(data, "imagesTs"))
        labelled = data is None or _cases(data, "imagesTs") <= _cases(data, "labelsTs")
        self.scores_test_cases = self.predicts and labelled
        self.scored = self.predictions if self.scores_test_cases else self.validation

    @property
    def settings(self) -> dict[str, Any]:
        return {"trainer": TRAINER, "data": str(self.data) if self.data else PHANTOMS}

    def refuse_other_folders(self) -> None:
        """Raise an error if the work folder holds anything but a demo."""
        if not self.work_dir.exists():
            return
        names = {path.name for path in self.work_dir.iterdir()} if self.work_dir.is_dir() else {self.work_dir.name}
        if names and not names & {_MARK, LOCK}:
            msg = f"{self.work_dir} is not the work folder of a demo: choose another (this one was left as it is)"
            raise DemoError(msg)

    def open(self) -> dict[str, float]:
        """Start or continue the work folder; return the finished steps and their seconds."""
        mark = self.work_dir / _MARK
        if mark.is_file():
            content = read_json(mark, DemoError, "Delete the folder, or choose another.")
            if content["settings"] == self.settings:
                return content["finished_s"]
            msg = f"{self.work_dir} holds a demo with other settings ({content['settings']}): "
            raise DemoError(msg + "choose another work folder or delete this one")
        for name in ("logs", *(variable.name for variable in NNUNET_PATHS)):
            (self.work_dir / name).mkdir(exist_ok=True)
        self.save({})
        return {}

    def save(self, finished_s: dict[str, float]) -> None:
        """Record which steps have finished."""
        write_json({"settings": self.settings, "finished_s": finished_s}, self.work_dir / _MARK)

    def steps(self) -> list[_Step]:
        steps = [
            _Step("data", "Check the dataset" if self.data else "Make phantom CT", self._provide_data, self.raw),
            _Step("plan", "Plan and preprocess", self._plan, self.preprocessed / "nnUNetPlans.json"),
            _Step("train", "Train a small ViT", self._train, self.validation / "summary.json"),
        ]
        if self.predicts:
            steps.append(_Step("predict", "Predict unseen cases", self._predict, self.predictions))
        if self.scores_test_cases:
            steps.append(_Step("evaluate", "Evaluate", self._evaluate, self.predictions / "summary.json"))
        return [*steps, _Step("overlay", "Draw an overlay", self._draw, self.overlay)]

    def _provide_data(self, report: Report) -> None:
        if self.data is None:
            make_phantom_dataset(self.raw.parent, **PHANTOMS)
        elif not self.raw.is_symlink():
            _check_files(self.data, report)
            self.raw.symlink_to(self.data, target_is_directory=True)

    def _plan(self, report: Report) -> None:
        arguments = ["-d", self.dataset_id, "-c", "2d", "-np", "1", "-npfp", "1", "--verify_dataset_integrity"]
        self._run("02_plan", ["nnUNetv2_plan_and_preprocess", *arguments], BarWatch(report))

    def _train(self, report: Report) -> None:
        arguments = [self.dataset_id, "2d", "0", "-tr", TRAINER, "-device", "cpu"]
        if any(self.validation.parent.glob("checkpoint_*.pth")):
            arguments.append("--c")
        # with few cores, worker processes for augmentation cost more time than they save
        watch = TrainingWatch(report, self.validation.parent / "debug.json")
        self._run("03_train", ["nnUNetv2_train", *arguments], watch, nnUNet_n_proc_DA="0")

    def _predict(self, report: Report) -> None:
        arguments = ["-i", str(self.raw / "imagesTs"), "-o", str(self.predictions), "-d", self.dataset_id]
        arguments += ["-c", "2d", "-f", "0", "-tr", TRAINER, "-device", "cpu", "-npp", "1", "-nps", "1"]
        watch = PredictionWatch(report, len(_cases(self.raw, "imagesTs")))
        # for nnUNetv2_predict, this variable limits the threads of the network
        self._run("04_predict", ["nnUNetv2_predict", *arguments], watch, nnUNet_def_n_proc=str(os.cpu_count()))

    def _evaluate(self, report: Report) -> None:
        arguments = [str(self.raw / "labelsTs"), str(self.predictions), "-np", "1"]
        arguments += ["-djfile", str(self.predictions / "dataset.json"), "-pfile", str(self.predictions / "plans.json")]
        self._run("05_evaluate", ["nnUNetv2_evaluate_folder", *arguments], BarWatch(report))

    def _run(self, log_name: str, command: list[str], watch: Watch, **variables: str) -> None:
        environment = os.environ | run_environment()
        environment |= {variable.name: str(self.work_dir / variable.name) for variable in NNUNET_PATHS}
        environment |= {MEDDINO_BACKBONE.name: "tiny", MEDDINO_WEIGHTS.name: "none"}
        environment |= {"nnUNet_def_n_proc": "1", NNUNET_WANDB.name: "0"}
        environment.pop("nnUNet_n_proc_DA", None)  # 0 there would crash the planner
        run_command(command, environment | variables, self.logs / f"{log_name}.log", watch)

    def _draw(self, report: Report) -> None:
        """Draw the first scored case, whichever it is."""
        description = json.loads((self.raw / "dataset.json").read_text())
        names = {int(value): name for name, value in description["labels"].items() if not isinstance(value, list)}
        ending, split = description["file_ending"], "Ts" if self.scores_test_cases else "Tr"
        prediction_file = min(self.scored.glob(f"*{ending}"))
        case = prediction_file.name.removesuffix(ending)
        picture = read_picture(self.raw / f"images{split}" / f"{case}_0000{ending}")
        image, spacing_mm = to_axial(picture.channels[0], picture.grid)
        maps = [read_segmentation(file) for file in (self.raw / f"labels{split}" / f"{case}{ending}", prediction_file)]
        reference, prediction = (to_axial(found.labels, found.grid)[0] for found in maps)
        z = richest_slice(reference)
        channel = next(iter(description["channel_names"].values()))
        save_overlay(
            image[z],
            reference[z],
            prediction[z],
            self.overlay,
            spacing_mm=spacing_mm[1:],
            label_names=names,
            window_hu=CT_WINDOW_HU if channel.casefold() == "ct" else None,
            title=f"{case}, slice {z + 1} of {len(image)}",
            in_mm=picture.in_mm,
        )

    def result(self, duration_s: float) -> DemoResult:
        summary = json.loads((self.scored / "summary.json").read_text())
        labels = json.loads((self.raw / "dataset.json").read_text())["labels"]
        # nnU-Net's keys: "1" for a label, "(1, 2)" for a region of several.
        names = {str(tuple(value) if isinstance(value, list) else value): name for name, value in labels.items()}
        scores = {names.get(key, key): metrics["Dice"] for key, metrics in summary["mean"].items()}
        present = [dice for dice in scores.values() if not math.isnan(dice)]
        mean_dice = fmean(present) if present else math.nan
        kind = "unseen test cases" if self.scores_test_cases else "validation cases of fold 0 (unseen in training)"
        scored_on = f"{len(summary['metric_per_case'])} {kind}"
        paths = {"work folder": self.work_dir, "dataset": self.raw, "preprocessed": self.preprocessed}
        paths |= {"model": self.model, "predictions": self.predictions} if self.predicts else {"model": self.model}
        paths |= {"scores": self.scored / "summary.json", "overlay": self.overlay, "logs": self.logs}
        return DemoResult(scores, mean_dice, scored_on, paths, duration_s)


def _cases(dataset: Path, folder: str) -> set[str]:
    """Return the names of the cases in one of the folders of a raw dataset."""
    ending = json.loads((dataset / "dataset.json").read_text())["file_ending"]
    names = (file.name.removesuffix(ending) for file in (dataset / folder).glob(f"*{ending}"))
    return {name[:-5] if folder.startswith("images") else name for name in names}  # without the channel, _0000


def _checked_dataset(folder: Path) -> Path:
    if not re.fullmatch(r"Dataset\d{3}_\w+", folder.name):
        raise DataError(f"{folder}: an nnU-Net raw dataset is a folder named DatasetXXX_Name, XXX being three digits")
    absent = [name for name in ("dataset.json", "imagesTr", "labelsTr") if not (folder / name).exists()]
    if absent:
        raise DataError(f"{folder} is not an nnU-Net raw dataset: {', '.join(absent)} not found in it")
    if (count := len(_cases(folder, "labelsTr"))) < 5:
        raise DataError(f"{folder} has {count} training cases; nnU-Net's five-fold split needs at least 5")
    return folder


def _check_files(dataset: Path, report: Report) -> None:
    """Read every image and label map of a raw dataset; damage would otherwise be found during the training, or never.

    Raises:
        DataError: Lists every file that cannot be used, and why.
    """
    ending = json.loads((dataset / "dataset.json").read_text())["file_ending"]
    folders = [dataset / name for name in ("imagesTr", "labelsTr", "imagesTs", "labelsTs")]
    files = sorted(file for folder in folders for file in folder.glob(f"*{ending}"))
    faults = []
    for done, file in enumerate(files):
        report(done / len(files), f"checking {file.name}")
        try:
            (read_segmentation if file.parent.name.startswith("labels") else read_picture)(file)
        except DataError as error:
            faults.append(str(error))
    if faults:
        msg = f"{len(faults)} of {len(files)} files of {dataset} cannot be used:\n"
        raise DataError(msg + "\n".join(faults))


def _print_result(result: DemoResult) -> None:
    say(f"\nDice on {result.scored_on}:")
    table = Table()
    table.add_column("structure")
    table.add_column("Dice", justify="right")
    for name, dice in result.scores.items():
        table.add_row(Text(name), "absent" if math.isnan(dice) else f"{dice:.3f}")
    table.add_section()
    table.add_row("mean", f"{result.mean_dice:.3f}", style="bold")
    console = Console()
    console.print(table)
    console.print(Text(STATEMENT, style="yellow"))
    for name, path in result.paths.items():
        say(f"{name:>12}  {path}")
    say(f"{'time':>12}  {result.duration_s / 60:.1f} min\n{_NEXT}")
