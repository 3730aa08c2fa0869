"""Prediction with 2D models, slice by slice, against nnU-Net's own, from command to written labels.

    python benchmarks/prediction.py PART [--out FOLDER] [--core N]

PART is ``whole`` (one model; 24, 48 and 500 slices, the first two three times) or ``sizes`` (nine models). Both predict
the same images with the same models of random weights, in fresh processes on one core. Each part takes half an hour,
and 12 GiB of memory, which are nnU-Net's.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from measure import RESULTS, write_results

from nnunetv2_meddino.environment import one_thread_each
from nnunetv2_meddino.inference.benchmark import Settings, Steps, Usage, predict_ours, predict_stock, write_image
from nnunetv2_meddino.inference.model import read_model
from nnunetv2_meddino.networks.vit import BACKBONES
from tests.inference.models import write_model

IMAGE_PX, SPACING_MM, SLICE_DISTANCE_MM = 512, 0.75, 3.0
TINY = {
    "network_class_name": "nnunetv2_meddino.networks.meddinov3.MedDINOv3",
    "arch_kwargs": {"vit": BACKBONES["tiny"].to_dict(), "blocks": [0, 1, 2, 3]},
    "_kw_requires_import": [],
}
MANY_SLICES = 500
REPEATS = 3
NOTES = (
    f"MedDINOv3 with a tiny ViT and random weights, no mirroring; CT of {IMAGE_PX} x {IMAGE_PX} px at {SPACING_MM} mm "
    "in int16, resampled to the network's size in px. One core and one thread; nnU-Net with -npp 1 -nps 1. CPU s: "
    "outside and inside the kernel (where new memory is zeroed), of all processes of a command, for the cores were "
    "shared with other work that wall time would see. MiB: peak of the proportional set size of all processes, mapped "
    "files once. "
    "'network' is the CPU time of that step in our processes, with tiling and the check for NaN. 'rest' is everything "
    "else for a further slice: nnU-Net's from the difference between two numbers of slices, less that of the network; "
    "ours is the sum of the other steps. "
)
NOTES_WHOLE = (
    f"896 px, 16 classes. Medians of {REPEATS} interleaved runs ({MANY_SLICES} slices once); 'every further slice' is "
    f"from the difference between 24 and 48 slices, ours from 48 to {MANY_SLICES}."
)
NOTES_SIZES = (
    "One run each. Whole commands have the larger number of slices; of many classes they are few, for nnU-Net holds a "
    "GiB for each at 896 px."
)


@dataclass(frozen=True)
class Case:
    """A model, and the numbers of slices that it predicts."""

    size_px: int
    classes: int
    slices: tuple[int, int]

    def settings(self, folder: Path) -> Settings:
        """Write the model where it is not, and return how it predicts."""
        model = folder / f"model_{self.size_px}_{self.classes}"
        if not model.exists():
            write_model(
                model,
                labels={"background": 0, **{f"organ {i}": i for i in range(1, self.classes)}},
                trainer="MedDINOv3Trainer",
                spacing_mm=(SLICE_DISTANCE_MM, SPACING_MM, SPACING_MM),
                patch_size=[self.size_px] * 2,
                spacing=[SPACING_MM * IMAGE_PX / self.size_px] * 2,
                architecture=TINY,
            )
        return Settings(str(model), ("0",), device="cpu", mirroring=False)

    def images(self, folder: Path, slices: int) -> Path:
        """Write an image where it is not, and return its folder."""
        images = folder / f"images_{slices}"
        if not images.exists():
            write_image(read_model(Path(self.settings(folder).model), None), images, slices, IMAGE_PX)
        return images


WHOLE = Case(896, 16, (24, 48))
SIZES = [
    *(Case(px, 2, slices) for px, slices in ((256, (8, 200)), (512, (8, 200)), (896, (8, 32)))),
    *(Case(px, 16, slices) for px, slices in ((256, (8, 100)), (512, (8, 72)), (896, (24, 48)))),
    *(Case(px, 105, slices) for px, slices in ((256, (3, 21)), (512, (3, 17)), (896, (2, 8)))),
]


def measure_whole(folder: Path) -> list[dict[str, Any]]:
    """Compare whole commands with few and with many slices."""
    settings = WHOLE.settings(folder)
    ours: dict[int, list[tuple[Usage, Steps]]] = {n: [] for n in (*WHOLE.slices, MANY_SLICES)}
    stock: dict[int, list[Usage]] = {n: [] for n in WHOLE.slices}
    for _ in range(REPEATS):
        for n in WHOLE.slices:
            ours[n].append(predict_ours(settings, WHOLE.images(folder, n), folder / "runs"))
            stock[n].append(predict_stock(settings, WHOLE.images(folder, n), folder / "runs"))
    ours[MANY_SLICES].append(predict_ours(settings, WHOLE.images(folder, MANY_SLICES), folder / "runs"))
    my_usage = {n: middle([usage for usage, _ in runs]) for n, runs in ours.items()}
    its_usage = {n: middle(runs) for n, runs in stock.items()}
    rows = [{"slices": str(n), **compared(my_usage[n], its_usage.get(n))} for n in my_usage]
    few, many = WHOLE.slices
    further = compared(slope(my_usage, many, MANY_SLICES), slope(its_usage, few, many))
    steps = ours[MANY_SLICES][0][1].cpu_s
    rows.append({"slices": "every further slice", **further, **rest(steps, MANY_SLICES, further["stock CPU s"])})
    return rows


def measure_size(case: Case, folder: Path) -> dict[str, Any]:
    """Compare one run of a whole command, and what it takes but for the network."""
    settings, (few, many) = case.settings(folder), case.slices
    ours, steps = predict_ours(settings, case.images(folder, many), folder / "runs")
    stock = {n: predict_stock(settings, case.images(folder, n), folder / "runs") for n in case.slices}
    row = {"px": case.size_px, "classes": case.classes, "slices": f"{many} ({few})", **compared(ours, stock[many])}
    return {**row, **rest(steps.cpu_s, many, slope(stock, few, many).cpu_s)}


def middle(runs: list[Usage]) -> Usage:
    """Return the medians of several runs."""
    return Usage(*(median(values) for values in zip(*(astuple(run) for run in runs), strict=True)))


def slope(runs: Mapping[int, Usage], few: int, many: int) -> Usage:
    """Return what a further slice takes."""
    both = zip(astuple(runs[many]), astuple(runs[few]), strict=True)
    return Usage(*((more - less) / (many - few) for more, less in both))


def compared(ours: Usage, stock: Usage | None) -> dict[str, Any]:
    """Return the cells of two commands."""
    cells: dict[str, Any] = {"our CPU s": ours.cpu_s, "our MiB": digits(ours.peak_mib)}
    if stock is not None:
        cells |= {"stock CPU s": stock.cpu_s, "stock MiB": digits(stock.peak_mib)}
        cells["CPU ratio"] = stock.cpu_s / ours.cpu_s
    return cells


def digits(mib: float) -> int | float:
    """Return all digits before the point: tables show three of a number with others."""
    return round(mib) if mib > 10 else mib


def rest(steps_s: Mapping[str, float], slices: int, stock_s: float) -> dict[str, float]:
    """Return the cells of what a further slice takes but for the network."""
    network = steps_s["network"] / slices
    ours, stock = sum(steps_s.values()) / slices - network, stock_s - network
    return {"network CPU s": network, "our rest CPU s": ours, "stock rest CPU s": stock, "rest ratio": stock / ours}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("whole", "sizes"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--core", type=int, default=0, help="that all runs use (default: %(default)s)")
    options = parser.parse_args()
    os.sched_setaffinity(0, {options.core})
    with tempfile.TemporaryDirectory() as name, one_thread_each():
        if options.part == "whole":
            write_results("prediction", "cpu", measure_whole(Path(name)), options.out, NOTES + NOTES_WHOLE)
            return
        rows = []
        for case in SIZES:
            rows.append(measure_size(case, Path(name)))
            write_results("prediction_sizes", "cpu", rows, options.out, NOTES + NOTES_SIZES)


if __name__ == "__main__":
    main()
