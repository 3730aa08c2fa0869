"""Prediction with 2D models, slice by slice, against nnU-Net's own, from command to written labels.

    python benchmarks/prediction.py [--out FOLDER] [--core N]

Both predict the same images with the same models of random weights, in fresh processes on one core. Takes an hour and
12 GiB of memory, which are nnU-Net's.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
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
REPEATS, REPEATS_OF_OTHERS = 3, 2
NOTES = (
    f"MedDINOv3 with a tiny ViT and random weights, no mirroring; CT of {IMAGE_PX} x {IMAGE_PX} px at {SPACING_MM} mm "
    "in int16, resampled to 'px' for the network. One core and one thread; nnU-Net with -npp 1 -nps 1. CPU s: outside "
    "and inside the kernel (where new memory is zeroed), of all processes of a command, for the cores were shared with "
    "other work that wall time would see. MiB: peak of the proportional set size of all processes, mapped files once. "
    f"Medians of {REPEATS} interleaved runs ({REPEATS_OF_OTHERS} but for the first case; {MANY_SLICES} slices "
    "once). 'every further slice': between the two numbers of slices above, per slice. 'rest' is everything but the "
    "network, for a further slice: nnU-Net's from the difference between both numbers of slices, less the CPU time of "
    "the network, which is measured in our processes and contains tiling and the check for NaN; ours is the sum of the "
    "other steps."
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


CASES = [
    Case(896, 16, (24, 48)),
    *(Case(px, 2, (12, 36)) for px in (256, 512, 896)),
    *(Case(px, 16, (12, 36)) for px in (256, 512)),
    *(Case(px, 105, (4, 12)) for px in (256, 512)),
    Case(896, 105, (3, 7)),
]
"""Few slices of many classes: nnU-Net holds a GiB for each of the last one's."""


class Measured:
    """Interleaved runs of one case."""

    def __init__(self, case: Case, folder: Path, repeats: int) -> None:
        settings = case.settings(folder)
        self.case = case
        self.stock: dict[int, list[Usage]] = {n: [] for n in case.slices}
        self.ours: dict[int, list[tuple[Usage, Steps]]] = {n: [] for n in case.slices}
        for _ in range(repeats):
            for n in case.slices:
                self.ours[n].append(predict_ours(settings, case.images(folder, n), folder / "runs"))
                self.stock[n].append(predict_stock(settings, case.images(folder, n), folder / "runs"))

    def row(self, slices: int) -> dict[str, Any]:
        """Compare whole commands."""
        row: dict[str, Any] = {"px": self.case.size_px, "classes": self.case.classes, "slices": str(slices)}
        row["our CPU s"] = self._ours(slices, lambda usage, _: usage.cpu_s)
        row["our MiB"] = self._ours(slices, lambda usage, _: usage.peak_mib)
        if slices in self.stock:
            row["stock CPU s"] = self._stock(slices, lambda usage: usage.cpu_s)
            row["stock MiB"] = self._stock(slices, lambda usage: usage.peak_mib)
            row["CPU ratio"] = row["stock CPU s"] / row["our CPU s"]
        return row

    def further(self) -> dict[str, Any]:
        """Compare what every further slice takes."""
        (few, many), most = self.case.slices, max(self.ours)
        row: dict[str, Any] = {"px": self.case.size_px, "classes": self.case.classes, "slices": "every further slice"}
        for what, value in (("CPU s", lambda usage: usage.cpu_s), ("MiB", lambda usage: usage.peak_mib)):
            row[f"stock {what}"] = (self._stock(many, value) - self._stock(few, value)) / (many - few)
        start = many if most > many else few
        for what, of in (("CPU s", lambda usage, _: usage.cpu_s), ("MiB", lambda usage, _: usage.peak_mib)):
            row[f"our {what}"] = (self._ours(most, of) - self._ours(start, of)) / (most - start)
        row["network CPU s"] = self._ours(most, lambda _, steps: steps.cpu_s["network"]) / most
        row["stock rest CPU s"] = row["stock CPU s"] - row["network CPU s"]
        row["our rest CPU s"] = (
            self._ours(most, lambda _, steps: sum(steps.cpu_s.values()) - steps.cpu_s["network"]) / most
        )
        row["CPU ratio"] = row["stock CPU s"] / row["our CPU s"]
        row["rest ratio"] = row["stock rest CPU s"] / row["our rest CPU s"]
        return row

    def _stock(self, slices: int, value: Callable[[Usage], float]) -> float:
        return median(value(usage) for usage in self.stock[slices])

    def _ours(self, slices: int, value: Callable[[Usage, Steps], float]) -> float:
        return median(value(*run) for run in self.ours[slices])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--core", type=int, default=0, help="that all runs use (default: %(default)s)")
    options = parser.parse_args()
    os.sched_setaffinity(0, {options.core})
    rows = []
    with tempfile.TemporaryDirectory() as name, one_thread_each():
        folder = Path(name)
        for case in CASES:
            measured = Measured(case, folder, REPEATS if case is CASES[0] else REPEATS_OF_OTHERS)
            if case is CASES[0]:
                images = case.images(folder, MANY_SLICES)
                measured.ours[MANY_SLICES] = [predict_ours(case.settings(folder), images, folder / "runs")]
            rows += [*(measured.row(slices) for slices in measured.ours), measured.further()]
            write_results("prediction", "cpu", rows, options.out, NOTES)


if __name__ == "__main__":
    main()
