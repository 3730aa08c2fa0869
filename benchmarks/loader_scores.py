"""Whether the loader changes what a network learns: trainings of equal steps on three small datasets, five seeds each.

    python benchmarks/loader_scores.py --data FOLDER --work FOLDER [--out FOLDER] [--loaders ...] [--datasets ...]

FOLDER holds ``Dataset900_CTMini``, ``Dataset901_MRMini`` and ``Dataset902_CTSarcoma``. Each training is a process of
its own on one core, whose result is a file in the work folder: the same command continues where it was stopped. Two at
a time; takes two hours.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from measure import RESULTS, write_results

from nnunetv2_meddino.commands import run_command
from nnunetv2_meddino.environment import (
    MEDDINO_LOADER,
    NNUNET_N_PROC_DA,
    NNUNET_PREPROCESSED,
    NNUNET_RAW,
    NNUNET_RESULTS,
    changed_environment,
    nnunet_folders,
    one_thread_each,
    run_environment,
)
from nnunetv2_meddino.files import write_json

SIZES_PX = {"Dataset902_CTSarcoma": 224, "Dataset900_CTMini": 160, "Dataset901_MRMini": 96}
EPOCHS = {"Dataset902_CTSarcoma": 16, "Dataset900_CTMini": 20, "Dataset901_MRMini": 32}
SEEDS, BATCH_SIZE = 5, 6
PLANS = {"stock": "nnUNetPlans", "whole_slice": "nnUNetPlans", "lazy": "LazyPlans"}
"""Plans of each row; ``lazy`` is the loader of whole slices with slices enlarged while they are read."""
SETTINGS = {"MEDDINO_WEIGHTS": "none", "MEDDINO_BACKBONE": "tiny", "nnUNet_def_n_proc": "1"}
NOTES = (
    f"MedDINOv3Trainer_demo, a tiny ViT from random weights, epochs of 25 steps of {BATCH_SIZE} samples on "
    "one core, which loader and network share (no worker processes). Seed s trains on fold s: 4/5 of the training "
    "cases. Held-out: those of the fold, so that each case of a dataset is scored once. Test: the test cases, by each"
    f" of the {SEEDS} networks. Dice in %: mean over the foreground classes of a case and over cases. Differences to "
    "nnU-Net's loader: of held-out cases, paired, with the 95 % bootstrap interval over cases; of test cases, paired "
    "by seed, with the 95 % interval of Student's t over seeds. CPU s: of a training without the prediction, outside "
    "and inside the kernel, median."
)


def prepare(data: Path, work: Path, dataset: str, loaders: Sequence[str]) -> None:
    """Plan and preprocess a dataset where that has not been done, for the loaders that are compared."""
    raw = work / "raw" / dataset
    raw.parent.mkdir(parents=True, exist_ok=True)
    if not raw.exists():
        raw.symlink_to((data / dataset).absolute(), target_is_directory=True)
    number, size = dataset[7:10], SIZES_PX[dataset]
    for plans in dict.fromkeys(PLANS[loader] for loader in loaders):
        done = work / "preprocessed" / dataset / f"{plans}.done"
        if done.exists():
            continue
        lazy = plans != PLANS["stock"]
        plan = f"meddino plan -d {number} -p {plans} --patch-size {size}" + (" --lazy-resample" if lazy else "")
        for command in (
            plan,
            f"nnUNetv2_preprocess -d {number} -plans_name {plans} -np 1 -c 2d{'' if lazy else f'_{size}'}",
        ):
            run_command(command.split(), {**os.environ, **run_environment()}, work / "log.txt", lambda line: None)
        done.touch()


def train(dataset: str, loader: str, seed: int, result: Path) -> None:
    """Train one network in this process, predict with it, and write its scores."""
    import torch

    from nnunetv2_meddino.trainers import find_trainer

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    preprocessed = nnunet_folders(NNUNET_PREPROCESSED)[0] / dataset
    plans, content = (
        json.loads((preprocessed / name).read_text()) for name in (f"{PLANS[loader]}.json", "dataset.json")
    )
    configuration = f"2d_{SIZES_PX[dataset]}"
    plans["configurations"][configuration]["batch_size"] = BATCH_SIZE
    plans["continue_training"] = False
    trainer = find_trainer("MedDINOv3Trainer_demo")(plans, configuration, seed, content, torch.device("cpu"))
    trainer.num_epochs = EPOCHS[dataset]
    before, begun = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    trainer.run_training()
    wall_s, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    _, held_out = trainer.do_split()
    raw = nnunet_folders(NNUNET_RAW)[0] / dataset
    test = sorted(file.name.removesuffix(content["file_ending"]) for file in (raw / "labelsTs").iterdir())
    model = Path(trainer.output_folder).parent
    scores = {
        part: dice(model, seed, raw, letters, cases)
        for part, letters, cases in (("held_out", "Tr", sorted(map(str, held_out))), ("test", "Ts", test))
    }
    write_json({**scores, "wall_s": wall_s, "cpu_s": cpu_s}, result)


def dice(model: Path, seed: int, raw: Path, letters: str, cases: Sequence[str]) -> dict[str, float]:
    """Predict cases and return the mean Dice of the foreground classes of each."""
    import SimpleITK as sitk

    from nnunetv2_meddino.evaluation import LabelSet, evaluate_case
    from nnunetv2_meddino.inference import Predictor

    predictor = Predictor.from_folder(model, folds=seed, device="cpu")
    labels = LabelSet.read(raw / "dataset.json")
    found = {}
    for case in cases:
        predicted = predictor.predict(raw / f"images{letters}" / f"{case}_0000.nii.gz")
        reference = sitk.ReadImage(raw / f"labels{letters}" / f"{case}.nii.gz")
        metrics = evaluate_case(
            sitk.GetArrayFromImage(reference), predicted, reference.GetSpacing()[::-1], labels.classes
        )
        found[case] = float(np.nanmean([one.dsc for one in metrics.classes.values()]))
    return found


def run_all(work: Path, datasets: Sequence[str], loaders: Sequence[str]) -> None:
    """Train what has no result yet, two at a time, all rows of a seed before the next seed."""
    order = [(dataset, loader, seed) for seed in range(SEEDS) for dataset in datasets for loader in loaders]
    waiting = [(run, file) for run in order if not (file := result_file(work, *run)).exists()]

    def one(run_and_file: tuple[tuple[str, str, int], Path]) -> None:
        (dataset, loader, seed), file = run_and_file
        command = [sys.executable, __file__, "--run", dataset, loader, str(seed), "--work", str(work)]
        chosen = {MEDDINO_LOADER.name: "stock" if loader == "stock" else "whole_slice", NNUNET_N_PROC_DA.name: "0"}
        # a results folder each: trainings of one fold with both loaders would share it
        results = {NNUNET_RESULTS.name: str(work / "results" / loader)}
        run_command(
            command,
            {**os.environ, **run_environment(), **chosen, **results},
            file.with_suffix(".log"),
            lambda line: None,
        )
        print(file.stem, file.read_text(), flush=True)

    with ThreadPoolExecutor(2) as pool:
        for _ in pool.map(one, waiting):
            pass


def result_file(work: Path, dataset: str, loader: str, seed: int) -> Path:
    return work / "scores" / f"{dataset}_{loader}_{seed}.json"


def table(work: Path, datasets: Sequence[str], loaders: Sequence[str]) -> list[dict[str, Any]]:
    from scipy import stats

    from nnunetv2_meddino.comparison.statistics import estimate, paired

    half = stats.t.ppf(0.975, SEEDS - 1) / SEEDS**0.5
    rows = []
    for dataset in datasets:
        runs = {
            loader: [json.loads(result_file(work, dataset, loader, seed).read_text()) for seed in range(SEEDS)]
            for loader in loaders
        }
        held_out = {loader: {c: d for run in of for c, d in run["held_out"].items()} for loader, of in runs.items()}
        test = {loader: np.array([mean(run["test"].values()) for run in of]) for loader, of in runs.items()}
        for loader in loaders:
            scores = 100 * np.array([held_out[loader][case] for case in held_out[loaders[0]]])
            stock = 100 * np.array([held_out[loaders[0]][case] for case in held_out[loaders[0]]])
            row = {
                "dataset": dataset[11:],
                "px": SIZES_PX[dataset],
                "epochs": EPOCHS[dataset],
                "loader": loader,
                "held-out": _interval(estimate(scores)),
                "test": f"{100 * test[loader].mean():.1f} ± {100 * half * test[loader].std(ddof=1):.1f}",
            }
            if loader != loaders[0]:
                apart = paired(scores, stock, higher_is_better=True)
                row["held-out difference"] = f"{apart.mean:+.1f} ({_range(apart.mean_interval)}), p {apart.p:.2g}"
                gain = 100 * (test[loader] - test[loaders[0]])
                row["test difference"] = f"{gain.mean():+.1f} ± {half * gain.std(ddof=1):.1f}"
            row["CPU s"] = round(median(run["cpu_s"] for run in runs[loader]))
            rows.append(row)
    return rows


def _interval(found: Any) -> str:
    return f"{found.mean:.1f} ({_range(found.interval)}), {found.n} cases"


def _range(interval: Any) -> str:
    return f"{interval.low:.1f} to {interval.high:.1f}" if interval else "no interval"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="of the three datasets in nnU-Net's raw format")
    parser.add_argument("--work", type=Path, required=True, help="for everything that is written; continued")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--loaders", nargs="+", choices=list(PLANS), default=list(PLANS))
    parser.add_argument("--datasets", nargs="+", choices=list(SIZES_PX), default=list(SIZES_PX))
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        dataset, loader, seed = options.run
        train(dataset, loader, int(seed), result_file(options.work, dataset, loader, int(seed)))
        return
    folders = {f"nnUNet_{part}": str(options.work / part) for part in ("raw", "preprocessed", "results")}
    with one_thread_each(), changed_environment({**folders, **SETTINGS}):
        (options.work / "scores").mkdir(parents=True, exist_ok=True)
        for dataset in options.datasets:
            prepare(options.data, options.work, dataset, options.loaders)
        run_all(options.work, options.datasets, options.loaders)
        rows = table(options.work, options.datasets, options.loaders)
    write_results("loader_scores", "cpu", rows, options.out, NOTES)


if __name__ == "__main__":
    main()
