"""Slices enlarged while training against slices stored enlarged: disk, preprocessing, samples.

    python benchmarks/lazy_resampling.py [--out FOLDER] [--repeats N] [--batches N]

Takes four minutes.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from loading import BATCH_SIZE, a_trainer
from measure import RESULTS, interleaved, write_results
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from raw_datasets import write_ct_with_organs

from nnunetv2_meddino.environment import MEDDINO_LOADER, NNUNET_N_PROC_DA, changed_environment, one_thread_each
from nnunetv2_meddino.inference.benchmark import run_measured
from nnunetv2_meddino.trainers.training_input import STOCK, WHOLE_SLICE

DATASET, CASES, SLICES, CLASSES, IMAGE_PX, PATCH_PX = "Dataset898_Lazy", 2, 16, 14, 512, 896
STORED, LAZY = f"2d_{PATCH_PX}, stored", "2d, enlarged while training"
PREPROCESSED = {STORED: ("nnUNetPlans", f"2d_{PATCH_PX}"), LAZY: ("LazyPlans", "2d")}
TRAINED = {name: plans for name, (plans, _) in PREPROCESSED.items()}
NOTES = (
    f"{CASES} cases of {SLICES} slices of {IMAGE_PX} x {IMAGE_PX} px with {CLASSES - 1} structures, trained at "
    f"{PATCH_PX} px. kB: all files of the preprocessed data. Preprocessing: of one case by nnU-Net, from the image to "
    "the written file. A sample: reading, augmentation and batching. Times are user CPU time of one core and one "
    "thread, medians of interleaved runs in one process."
)


def prepare(home: Path) -> None:
    """Write a raw dataset; plan it and preprocess it once as ``2d`` and once enlarged."""
    write_ct_with_organs(home / "raw" / DATASET, CASES, SLICES, IMAGE_PX, CLASSES)
    plan = f"meddino plan -d 898 --patch-size {PATCH_PX} -p"
    for command in (f"{plan} {TRAINED[STORED]}", f"{plan} {TRAINED[LAZY]} --lazy-resample"):
        run_measured(command.split(), home)
    for plans, configuration in PREPROCESSED.values():
        run_measured(f"nnUNetv2_preprocess -d 898 -plans_name {plans} -c {configuration} -np 1".split(), home)


def stored_bytes(home: Path, plans_name: str, configuration: str) -> int:
    """Return the size of all files that preprocessing has written for a configuration."""
    base = home / "preprocessed" / DATASET
    plans = json.loads((base / f"{plans_name}.json").read_text())
    identifier = PlansManager(plans).get_configuration(configuration).data_identifier
    return sum(file.stat().st_size for file in (base / identifier).iterdir())


def preprocessing(home: Path, plans_name: str, configuration: str) -> Callable[[], None]:
    """Return what preprocesses the first case once more, into a folder of its own."""
    raw, out = home / "raw" / DATASET, home / "again" / configuration
    out.mkdir(parents=True)
    plans = PlansManager(json.loads((home / "preprocessed" / DATASET / f"{plans_name}.json").read_text()))
    dataset = json.loads((raw / "dataset.json").read_text())
    images, labels = [str(raw / "imagesTr" / "c1_0000.nii.gz")], str(raw / "labelsTr" / "c1.nii.gz")
    preprocessor, settings = DefaultPreprocessor(verbose=False), plans.get_configuration(configuration)

    def run() -> None:
        for written in out.iterdir():  # blosc2 writes over no file
            written.unlink()
        preprocessor.run_case_save(str(out / "c1"), images, labels, plans, settings, dataset)

    return run


def taking(loader: str, plans_name: str, batches: int) -> Callable[[], object]:
    """Return what takes batches of training samples from a loader in this process."""
    with changed_environment({MEDDINO_LOADER.name: loader, NNUNET_N_PROC_DA.name: "0"}):
        source, _ = a_trainer(DATASET, plans_name, f"2d_{PATCH_PX}").get_dataloaders()
    return lambda: [next(source) for _ in range(batches)]


def measure(home: Path, batches: int, repeats: int) -> list[dict[str, Any]]:
    preprocess = {name: preprocessing(home, *configuration) for name, configuration in PREPROCESSED.items()}
    take = {name: taking(WHOLE_SLICE, plans, batches) for name, plans in TRAINED.items()}
    stock = f"{STORED}, nnU-Net's loader"
    take[stock] = taking(STOCK, TRAINED[STORED], batches)
    preprocessing_s = interleaved(preprocess, repeats=repeats, device="cpu")
    sample_s = interleaved(take, repeats=repeats, device="cpu")
    rows: list[dict[str, Any]] = []
    for name in take:
        row: dict[str, Any] = {"data": name}
        if name != stock:
            row["kB a slice"] = stored_bytes(home, *PREPROCESSED[name]) / (CASES * SLICES) / 1000
            row["preprocessing, ms a slice"] = 1000 * median(preprocessing_s[name]) / SLICES
        rows.append({**row, "ms a sample": 1000 * median(sample_s[name]) / (batches * BATCH_SIZE)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--batches", type=int, default=6, help="in one run (default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name, one_thread_each():
        home = Path(name)
        folders = {f"nnUNet_{part}": str(home / part) for part in ("raw", "preprocessed", "results")}
        with changed_environment({**folders, "MEDDINO_WEIGHTS": "none", "MEDDINO_BACKBONE": "tiny"}):
            prepare(home)
            rows = measure(home, options.batches, options.repeats)
    write_results("lazy_resampling", "cpu", rows, options.out, NOTES)


if __name__ == "__main__":
    main()
