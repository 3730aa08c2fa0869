"""The final validation of a training, slice by slice, against nnU-Net's own, from `--val` to the scores.

    python benchmarks/validation.py [--out FOLDER] [--core N] [--slices N]

The same network of random weights and the same preprocessed cases at 896 pixels, in fresh processes on one core. Takes
about ten minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from measure import RESULTS, write_results
from raw_datasets import write_ct_dataset

from nnunetv2_meddino.environment import NNUNET_PREPROCESSED, changed_environment, nnunet_folders, one_thread_each
from nnunetv2_meddino.inference.benchmark import Usage, run_measured, synthetic_ct

CASES, CLASSES, IMAGE_PX, PATCH_PX, SPACING_MM = 2, 16, 512, 896, 0.75
REPEATS = 2
NOTES = (
    f"MedDINOv3 with a tiny ViT and random weights, {CASES} cases of {IMAGE_PX} x {IMAGE_PX} px, {CLASSES} classes, "
    f"preprocessed at {PATCH_PX} px; mirrored views (four forward passes a slice), as in every validation. One core "
    "and one thread, one worker (nnUNet_def_n_proc=1). CPU s: inside and outside the kernel, of all processes, from "
    "the start of the process to its end, with nnU-Net's scores; without our surface metrics, which nnU-Net does not "
    "have and which take long for the noise that a random network draws. MiB: peak of what all processes hold. "
    f"Medians of {REPEATS} interleaved runs."
)


def prepare(home: Path, slices: int) -> None:
    """Write a raw dataset, preprocess it at high resolution, and leave a checkpoint of random weights."""
    import numpy as np

    values = synthetic_ct(slices, IMAGE_PX)
    labels = (np.indices(values.shape).sum(axis=0) // 40 % CLASSES).astype(np.uint8) * (values > -500)
    spacing_mm = (3.0, SPACING_MM, SPACING_MM)
    write_ct_dataset(home / "raw" / "Dataset896_Large", [(values, labels)] * CASES, CLASSES, spacing_mm)
    for command in (
        "nnUNetv2_plan_and_preprocess -d 896 -c 2d --no_pp -npfp 1",
        f"meddino plan -d 896 --patch-size {PATCH_PX}",
        f"nnUNetv2_preprocess -d 896 -plans_name nnUNetPlans -c 2d_{PATCH_PX} -np 1",
    ):
        run_measured(command.split(), home)
    run_measured([sys.executable, __file__, "--run", "checkpoint"], home)


def run(what: str) -> None:
    """Do one thing in this process: write a checkpoint, or validate with it."""
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    from nnunetv2_meddino.trainers import find_trainer
    from nnunetv2_meddino.trainers.validation import validate

    preprocessed = nnunet_folders(NNUNET_PREPROCESSED)[0] / "Dataset896_Large"
    plans = json.loads((preprocessed / "nnUNetPlans.json").read_text()) | {"continue_training": False}
    dataset = json.loads((preprocessed / "dataset.json").read_text())
    configuration = f"2d_{PATCH_PX}"
    trainer = find_trainer("MedDINOv3Trainer")(plans, configuration, "all", dataset, torch.device("cpu"))
    checkpoint = str(Path(trainer.output_folder) / "checkpoint_final.pth")
    if what == "checkpoint":
        trainer.initialize()
        trainer.save_checkpoint(checkpoint)
        return
    trainer.load_checkpoint(checkpoint)
    if what == "stock":
        nnUNetTrainer.perform_actual_validation(trainer)
    else:
        validate(trainer, save_probabilities=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--core", type=int, default=0, help="that all runs use (default: %(default)s)")
    parser.add_argument("--slices", type=int, nargs=2, default=(12, 24), help="of each case (default: 12 24)")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        run(options.run)
        return
    os.sched_setaffinity(0, {options.core})
    rows = []
    used: dict[tuple[str, int], list[Usage]] = {}
    with tempfile.TemporaryDirectory() as name, one_thread_each():
        for slices in options.slices:
            home = Path(name) / str(slices)
            folders = {f"nnUNet_{part}": str(home / part) for part in ("raw", "preprocessed", "results")}
            others = {"nnUNet_def_n_proc": "1", "MEDDINO_WEIGHTS": "none", "MEDDINO_BACKBONE": "tiny"}
            with changed_environment({**folders, **others}):
                prepare(home, slices)
                for _ in range(REPEATS):
                    for what in ("ours", "stock"):
                        usage = run_measured([sys.executable, __file__, "--run", what], home)
                        used.setdefault((what, slices), []).append(usage)
            row = {"slices in all": CASES * slices}
            for what in ("stock", "ours"):
                row[f"{what} CPU s"] = median(usage.cpu_s for usage in used[what, slices])
                row[f"{what} MiB"] = median(usage.peak_mib for usage in used[what, slices])
            row["CPU ratio"] = row["stock CPU s"] / row["ours CPU s"]
            rows.append(row)
    write_results("validation", "cpu", rows, options.out, NOTES)


if __name__ == "__main__":
    main()
