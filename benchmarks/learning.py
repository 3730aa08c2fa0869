"""Whether a small pretraining learns, and what decides it: the recipe ``small`` with one setting changed at a time.

    python benchmarks/learning.py --corpus FOLDER --probe DATASET --work FOLDER [--variants ...] [--seeds ...]
        [--out FOLDER]

The corpus must hold no case of DATASET, the labelled dataset of the linear probe. Each training is a process and a
folder of its own, two at a time, on one core each: the same command continues where it was stopped. The table is of all
that the work folder holds; lines of other variants that it had already are kept.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from measure import RESULTS, write_results
from patient_probe import backbone_of, dice_of_patients, labelled_slices, mean_dice
from scipy import stats

from nnunetv2_meddino.commands import run_command
from nnunetv2_meddino.environment import one_thread_each, run_environment
from nnunetv2_meddino.errors import MedDINOError
from nnunetv2_meddino.files import read_json, write_json
from pretraining.config import RunConfig
from pretraining.config.parse import stage_configurations
from pretraining.engine.teachers import teacher_path

SMALL, KOLEO = "small", "KoLeo alone"
LOW = "layer scale 1e-5"
_LOW, _KOLEO = "--model.layer-scale 1e-5", "--losses.dino-weight 0 --losses.ibot-weight 0"
VARIANTS: dict[str, str] = {
    SMALL: "",
    KOLEO: _KOLEO,
    "without KoLeo": "--losses.koleo-weight 0",
    "teacher temperature 0.04": "--optim.teacher-temperature 0.04",
    LOW: _LOW,
    f"{LOW}, {KOLEO}": f"{_LOW} {_KOLEO}",
    f"{LOW}, without KoLeo": f"{_LOW} --losses.koleo-weight 0",
    f"{LOW}, teacher temperature 0.04": f"{_LOW} --optim.teacher-temperature 0.04",
    "layer scale 0.1": "--model.layer-scale 0.1",
    "teacher temperature 0.07": "--optim.teacher-temperature 0.07",
    "student temperature 0.3, teacher 0.04": "--losses.student-temperature 0.3 --optim.teacher-temperature 0.04",
    "crops of DINOv3": "--views.global-scale 0.32,1 --views.local-scale 0.05,0.32 --views.num-local 8",
    "smaller crops": "--views.global-scale 0.1,0.5 --views.local-scale 0.02,0.1",
    "brightness and contrast 0.4": "--views.brightness 0.4 --views.contrast 0.4",
    "momentum 0.994": "--optim.momentum 0.994",
    "betas 0.9, 0.999": "--optim.betas 0.9,0.999",
    "learning rate 2e-4": "--optim.lr 2e-4",
    "last layers frozen for 200 steps": "--optim.freeze-last-layer-steps 200",
    "batch 16": "--data.batch-size 16 --data.group-size 16",
    "2000 steps": "--engine.steps 2000 --optim.lr.warmup-steps 40",
    "KoLeo alone, 2000 steps": f"{_KOLEO} --engine.steps 2000 --optim.lr.warmup-steps 40",
    "K 4096": "--model.dino-head.prototypes 4096 --model.ibot-head.prototypes 4096",
}
PATIENTS = "patients.json"
INFORMATION, RANK, PROBE = "collapse/target_information", "collapse/class_rank", "probe/dice"
STEPS_SHOWN = (0, 100, 200, 400, 600, 1000, 2000)
NOTES = (
    "Means over seeds, in brackets the smallest and the largest. Views agree: views/correlation before the first "
    "step; untrained heads can begin where it is above the border, teacher's over student's temperature. Information: "
    "of the teacher's targets about their image, as a share of the most it can be, after so many steps. Heads begin: "
    "step of each seed at which the DINO losses are 1 % below log K. Below log K: how far the DINO losses are, in %, "
    "mean of the last records; ibot: that loss, the same mean. Probe: mean Dice of a linear classifier on the frozen "
    "patch features of the teacher, on a quarter of the patients, none of them in the corpus; gain: at the end, over "
    "the same network before its first step, and over KoLeo alone with the same seed, with the 95 % interval of "
    "Student's t over seeds. All patients: the same at the end for each in turn, fitted on the others, mean over "
    "patients; by class before and after; over KoLeo alone also by seed, and with the interval over patients, each "
    "the mean over its seeds."
)


def arguments(corpus: Path, probe: Path, work: Path, variant: str, seed: int) -> list[str]:
    """Return what ``meddino-pretrain train`` is given."""
    fixed = f"--data.seed {seed} --data.workers 0 --monitor.log-every 5 --monitor.tensorboard false"
    overrides = [*VARIANTS[variant].split(), *fixed.split(), "--monitor.probe-dataset", str(probe)]
    where = ["--corpus", str(corpus), "--out", str(run_folder(work, variant, seed))]
    return ["stage1", *where, "--recipe", SMALL, "-device", "cpu", *overrides]


def run_folder(work: Path, variant: str, seed: int) -> Path:
    return work / f"{variant.replace(' ', '_').replace(',', '')}_{seed}"


def run_all(corpus: Path, probe: Path, work: Path, variants: Sequence[str], seeds: Sequence[int]) -> None:
    """Train what is not finished, all variants of a seed before the next seed."""

    def one(run: tuple[str, int]) -> None:
        given = arguments(corpus, probe, work, *run)
        log = work / f"{run_folder(work, *run).name}.log"
        command = ["meddino-pretrain", "train", *given]
        environment = {**os.environ, **run_environment()}
        run_command(command, environment, log, lambda line: None)
        if not (run_folder(work, *run) / PATIENTS).exists():
            judging = [sys.executable, __file__, "--judge", *map(str, run)]
            fixed = ["--corpus", str(corpus), "--probe", str(probe), "--work", str(work)]
            run_command([*judging, *fixed], environment, log, lambda line: None)
        print(*run, "finished", flush=True)

    with ThreadPoolExecutor(2) as pool:
        for _ in pool.map(one, [(variant, seed) for seed in seeds for variant in variants]):
            pass


def judge(probe: Path, work: Path, variant: str, seed: int) -> None:
    """Write the mean Dice over patients of probes on the network before and after a training."""
    torch.set_num_threads(1)
    config = config_of(variant)
    config = replace(config, data=replace(config.data, seed=seed))
    names, slices = labelled_slices(probe, config)
    folder = run_folder(work, variant, seed)
    teachers = {"before": None, "after": teacher_path(folder / "stage1", config.engine.steps)}
    found = {}
    for when, file in teachers.items():
        patients = dice_of_patients(backbone_of(config, file), names, slices)
        found[when] = {"mean": mean_dice(patients), "patients": patients}
    write_json(found, folder / PATIENTS)


def judged(work: Path, variant: str, seeds: Sequence[int], when: str) -> list[dict[str, Any]]:
    """Return what the probes of trainings found: ``mean``, and the Dice by class of all ``patients``."""
    files = [run_folder(work, variant, seed) / PATIENTS for seed in seeds]
    return [read_json(file, MedDINOError, "Delete it.")[when] for file in files]


def curve(work: Path, variant: str, seed: int, name: str) -> dict[int, float]:
    """Return a metric of a run by the number of finished steps."""
    lines = (run_folder(work, variant, seed) / "stage1" / "metrics.jsonl").read_text().splitlines()
    found = {}
    for record in map(json.loads, lines):
        if record.get("event") == "baseline" and name in record["values"]:
            found[0] = record["values"][name]
        elif name in record:
            found[record["step"] + 1] = record[name]
    return found


def finished(work: Path, variant: str) -> list[int]:
    """Return the seeds of the trainings of a variant that are done."""
    seeds = {int(folder.name.rsplit("_", 1)[1]) for folder in work.glob("*_*/")}
    return sorted(seed for seed in seeds if (run_folder(work, variant, seed) / PATIENTS).exists())


def config_of(variant: str) -> RunConfig:
    (config,) = stage_configurations(["stage1"], SMALL, None, VARIANTS[variant].split())
    return config


def begins(local: dict[int, float], across: dict[int, float], log_k: float) -> int | None:
    """Return the first step at which the mean of both DINO losses over three records is 1 % below log K."""
    steps = sorted(local)
    for at in range(2, len(steps)):
        last = steps[at - 2 : at + 1]
        if mean(of[step] for of in (local, across) for step in last) < 0.99 * log_k:
            return steps[at]
    return None


def row(work: Path, variant: str) -> dict[str, Any]:
    """Return a line of the table."""
    seeds = finished(work, variant)

    def curves(name: str, variant: str = variant, seeds: Sequence[int] = seeds) -> list[dict[int, float]]:
        return [curve(work, variant, seed, name) for seed in seeds]

    found: dict[str, Any] = {"variant": variant, "seeds": ", ".join(map(str, seeds))}
    found["views agree"] = _spread([of[0] for of in curves("views/correlation")], "{:.2f}")
    found["border"] = _spread([of[0] for of in curves("views/border")], "{:.2f}")
    for name, title, form in ((INFORMATION, "information", "{:.2g}"), (PROBE, "probe", "{:.3f}")):
        values = curves(name)
        for step in STEPS_SHOWN:
            if all(step in of for of in values):
                found[f"{title} at {step}"] = _spread([of[step] for of in values], form)
    found["class rank"] = _spread([_last(of) for of in curves(RANK)], "{:.2f}")
    log_k = math.log(config_of(variant).model.dino_head.prototypes)
    begun = [begins(*of, log_k) for of in zip(curves("loss/dino_local"), curves("loss/dino_global"), strict=True)]
    found["heads begin"] = ", ".join("never" if step is None else str(step) for step in begun)
    for name in ("dino_local", "dino_global"):
        losses = [list(of.values())[-10:] for of in curves(f"loss/{name}")]
        found[f"{name}, % below log K"] = _spread([100 * (1 - mean(of) / log_k) for of in losses], "{:.0f}")
    found["ibot"] = _spread([mean(list(of.values())[-10:]) for of in curves("loss/ibot")], "{:.2f}")
    found["gain"] = _gain([_last(of) - of[0] for of in curves(PROBE)])
    before, after = (judged(work, variant, seeds, when) for when in ("before", "after"))
    found["all patients before"] = _spread([of["mean"] for of in before], "{:.3f}")
    found["all patients"] = _spread([of["mean"] for of in after], "{:.3f}")
    found["their gain"] = _gain([new["mean"] - old["mean"] for new, old in zip(after, before, strict=True)])
    for name in dict.fromkeys(name for of in after[0]["patients"].values() for name in of):
        means = (
            mean(by[name] for of in many for by in of["patients"].values() if name in by) for many in (before, after)
        )
        found[f"{name}, before and after"] = ", ".join(f"{value:.2f}" for value in means)
    alone = f"{LOW}, {KOLEO}" if variant.startswith(LOW) else KOLEO
    if both := [seed for seed in seeds if variant != alone and seed in finished(work, alone)]:
        pairs = zip(curves(PROBE, variant, both), curves(PROBE, alone, both), strict=True)
        found[f"over {KOLEO}"] = _gain([_last(of) - _last(other) for of, other in pairs])
        own, others = (judged(work, name, both, "after") for name in (variant, alone))
        over = [new["mean"] - old["mean"] for new, old in zip(own, others, strict=True)]
        found[f"theirs over {KOLEO}"] = _gain(over)
        found[f"theirs over {KOLEO}, by seed"] = ", ".join(f"{gain:+.3f}" for gain in over)
        patients = [
            [mean(mean(of["patients"][p].values()) for of in many) for p in own[0]["patients"]]
            for many in (own, others)
        ]
        found[f"theirs over {KOLEO}, over patients"] = _gain([new - old for new, old in zip(*patients, strict=True)])
    return found


def _last(values: dict[int, float]) -> float:
    return values[max(values)]


def _spread(values: list[float], form: str) -> str:
    text = form.format(mean(values))
    return text if min(values) == max(values) else f"{text} ({form.format(min(values))} to {form.format(max(values))})"


def _gain(values: list[float]) -> str:
    """Return the mean over seeds and, where there are several, the half of its interval."""
    if len(values) == 1:
        return f"{values[0]:+.3f}"
    half = stats.t.ppf(0.975, len(values) - 1) * stdev(values) / len(values) ** 0.5
    return f"{mean(values):+.3f} ± {half:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--probe", type=Path, required=True, help="labelled dataset in nnU-Net's raw format")
    parser.add_argument("--work", type=Path, required=True, help="for everything that is written; continued")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--judge", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    if options.judge:
        judge(options.probe, options.work, options.judge[0], int(options.judge[1]))
        return
    with one_thread_each():
        run_all(options.corpus, options.probe, options.work, options.variants, options.seeds)
    earlier = options.out / "learning_cpu.json"
    kept = json.loads(earlier.read_text())["rows"] if earlier.exists() else []
    rows = {line["variant"]: line for line in kept}
    rows |= {variant: row(options.work, variant) for variant in VARIANTS if finished(options.work, variant)}
    write_results("learning", "cpu", [rows[variant] for variant in VARIANTS if variant in rows], options.out, NOTES)


if __name__ == "__main__":
    main()
