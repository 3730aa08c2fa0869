"""Training batches by our loader of whole slices against nnU-Net's: samples a second of a core, memory, padding.

    python benchmarks/loading.py [--out FOLDER] [--repeats N] [--batches N]

Both loaders read the same preprocessed slices, with augmentation on. Takes five minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from measure import RESULTS, in_fresh_process, interleaved, speedup, write_results
from raw_datasets import write_ct_with_organs

from nnunetv2_meddino.dataloading.loader import BatchLoader
from nnunetv2_meddino.environment import (
    MEDDINO_LOADER,
    NNUNET_N_PROC_DA,
    NNUNET_PREPROCESSED,
    changed_environment,
    nnunet_folders,
    one_thread_each,
)
from nnunetv2_meddino.inference.benchmark import run_measured
from nnunetv2_meddino.process_tree import descendants
from nnunetv2_meddino.trainers import find_trainer
from nnunetv2_meddino.trainers.base import BaseTrainer
from nnunetv2_meddino.trainers.training_input import LOADERS, STOCK, WHOLE_SLICE

CASES, SLICES, CLASSES, IMAGE_PX, SIZES_PX = 4, 12, 6, 512, (512, 896)
BATCH_SIZE, WORKERS, DRAWS = 4, 2, 4000
NOTES = (
    f"{CASES} cases of {SLICES} slices of {IMAGE_PX} x {IMAGE_PX} px, {CLASSES} classes whose organs lie anywhere in "
    "the body, preprocessed by nnU-Net to patches as large as the slice. Samples a second: of one core and one thread, "
    "reading, augmentation and batching, in user CPU time; 'x' is the ratio of medians of interleaved runs in one "
    f"process. MiB: of {WORKERS} training processes and one of validation together, at most, anonymous and shared "
    "memory, pages that processes share divided among them. Padding: what share of a patch lies outside of the slice "
    f"before it is turned, of {DRAWS} samples of either loader."
)


def prepare(home: Path) -> None:
    """Write a raw dataset and preprocess it at each size."""
    write_ct_with_organs(home / "raw" / "Dataset897_Loading", CASES, SLICES, IMAGE_PX, CLASSES)
    run_measured(["nnUNetv2_plan_and_preprocess", "-d", "897", "-c", "2d", "--no_pp", "-npfp", "1"], home)
    for size in SIZES_PX:
        run_measured(f"meddino plan -d 897 --patch-size {size}".split(), home)
        run_measured(f"nnUNetv2_preprocess -d 897 -plans_name nnUNetPlans -c 2d_{size} -np 2".split(), home)


def a_trainer(dataset_name: str, plans_name: str, configuration: str) -> BaseTrainer:
    """Return a trainer of a preprocessed dataset, with the batch size of the benchmark."""
    preprocessed = nnunet_folders(NNUNET_PREPROCESSED)[0] / dataset_name
    plans, dataset = (json.loads((preprocessed / f"{name}.json").read_text()) for name in (plans_name, "dataset"))
    plans["configurations"][configuration]["batch_size"] = BATCH_SIZE
    plans["continue_training"] = False
    trainer = find_trainer("MedDINOv3Trainer")(plans, configuration, "all", dataset, torch.device("cpu"))
    trainer.initialize()
    return trainer


def loaders(loader: str, size: int, workers: int) -> tuple[Iterator[Any], Iterator[Any]]:
    with changed_environment({MEDDINO_LOADER.name: loader, NNUNET_N_PROC_DA.name: str(workers)}):
        return a_trainer("Dataset897_Loading", "nnUNetPlans", f"2d_{size}").get_dataloaders()


def speed(size: int, batches: int, repeats: int) -> dict[str, float]:
    """Return samples a second of both loaders, and their ratio."""
    made = {loader: loaders(loader, size, 0)[0] for loader in LOADERS}
    functions = {
        loader: lambda source=source: [next(source) for _ in range(batches)] for loader, source in made.items()
    }
    times = interleaved(functions, repeats=repeats, device="cpu")
    per_s = {f"{loader} samples/s": batches * BATCH_SIZE / median(times[loader]) for loader in LOADERS}
    return {**per_s, "x": speedup(times, WHOLE_SLICE, STOCK)}


def workers_mib(loader: str, size: int, batches: int) -> float:
    """Return the most memory that the processes of a loader hold while batches are taken."""
    training, validation = loaders(loader, size, WORKERS)
    most = 0.0
    for _ in range(batches):
        next(training)
        next(validation)
        most = max(most, sum(map(_held_mib, descendants())))
    return most


def _held_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("Pss_Anon", "Pss_Shmem"))) / 1024


def padding(size: int) -> dict[str, str]:
    """Return, for both loaders, the share of padding in samples that must hold foreground, and in all."""
    stock, ours = (loaders(loader, size, 0)[0] for loader in LOADERS)
    assert isinstance(ours, BatchLoader)
    found: dict[str, dict[bool, list[float]]] = {loader: {True: [], False: []} for loader in LOADERS}
    source, draws = stock.data_loader, ours.batches.draws
    for number in range(DRAWS // BATCH_SIZE):
        for place, case in enumerate(source.get_indices()):
            forced = source.get_do_oversample(place)
            data, _, _, properties = source._data.load_case(case)
            lower, upper = source.get_bbox(data.shape[1:], forced, properties["class_locations"])
            corner = [(a + b) // 2 - size // 2 for a, b in zip(lower[1:], upper[1:], strict=True)]
            found[STOCK][forced].append(_outside(corner, data.shape[2:], size))
            draw = draws.draw(number, place)
            shape = draws.cases.shape(draw.case)[1:]
            found[WHOLE_SLICE][draw.label is not None].append(_outside(draw.corner, shape, size))
    result = {}
    for loader, shares in found.items():
        every = [*shares[True], *shares[False]]
        means = f"{np.mean(shares[True]):.1%} of forced, {np.mean(every):.1%} of all, at most {np.max(every):.0%}"
        result[f"{loader} padding"] = means
    return result


def _outside(corner: Any, shape: Any, size: int) -> float:
    inside = [max(0, min(first + size, length) - max(first, 0)) for first, length in zip(corner, shape, strict=True)]
    return 1 - inside[0] * inside[1] / size**2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--batches", type=int, default=12, help="in one run (default: %(default)s)")
    parser.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.memory:
        print(json.dumps(workers_mib(options.memory[0], int(options.memory[1]), options.batches)))
        os._exit(0)  # nnU-Net's loader has no end
    rows = []
    with tempfile.TemporaryDirectory() as name, one_thread_each():
        folders = {f"nnUNet_{part}": str(Path(name) / part) for part in ("raw", "preprocessed", "results")}
        with changed_environment({**folders, "MEDDINO_WEIGHTS": "none", "MEDDINO_BACKBONE": "tiny"}):
            prepare(Path(name))
            for size in SIZES_PX:
                row: dict[str, Any] = {"px": size, **speed(size, options.batches, options.repeats)}
                for loader in LOADERS:
                    row[f"{loader} MiB"] = in_fresh_process(__file__, "--memory", loader, str(size))
                rows.append({**row, **padding(size)})
    write_results("loading", "cpu", rows, options.out, NOTES)


if __name__ == "__main__":
    main()
