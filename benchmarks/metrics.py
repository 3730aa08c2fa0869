"""Segmentation metrics of one large case against DeepMind's surface-distance and MONAI: time, memory, differences.

The case is 200x512x512 voxels of 1.5x0.75x0.75 mm with 15 organs: two models' segmentations of one CT
(``data/metric_pairs`` of the shared reference data), each organ enlarged smoothly. Ours measures everything at once, in
both definitions; the references go class by class, each by its own definition. They run where they can be imported:
``pip install segmentationmetrics`` (DeepMind's code) and ``pip install monai``.

    python benchmarks/metrics.py [--pair FILE.npz] [--out FOLDER] [--repeats N] [--hard]

``FILE.npz`` holds ``ref`` and ``pred`` (uint8, z y x) and ``spacing`` (mm); it is made where it does not exist.
``--hard`` adds predictions shifted by tens of voxels and salt-and-pepper noise, against DeepMind's.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from measure import RESULTS, in_fresh_process, interleaved, peak_rss_mib, speedup, write_results
from scipy import ndimage

from nnunetv2_meddino.evaluation import CaseMetrics, evaluate_case

PROJECT = Path(__file__).resolve().parent.parent
SHAPE, SPACING_MM = (200, 512, 512), (1.5, 0.75, 0.75)
ORGANS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 14, 18, 19, 20, 52)
TOLERANCES_MM = (1.0, 2.0)
OURS = "ours, both definitions"
NOTES = (
    "One case, one thread, CPU time of interleaved runs (median). x: that row's time over ours, which measures Dice, "
    "NSD at 1 and 2 mm, ASSD, HD95 and HD in both definitions. DeepMind: the same metrics, surfels only. MONAI: "
    "boundary voxels only; its official loop is NSD at 1 mm and HD95 (Dice left out, in its favour), 'all' adds NSD at "
    "2 mm, ASSD and HD. Peak: resident memory above the loaded volumes, in a process of its own. Difference: largest "
    "over classes and metrics."
)

Values = dict[str, dict[str, float]]
"""Metric values by class, named as in ``ClassMetrics.as_dict``."""


def enlarge(labels: np.ndarray) -> np.ndarray:
    """Enlarge a label map to ``SHAPE``: smooth each organ, interpolate linearly, take the largest above a half."""
    zoom = [new / old for new, old in zip(SHAPE, labels.shape, strict=True)]
    soft = {}
    for i, organ in enumerate(ORGANS, start=1):
        mask = (labels == organ).astype(np.float32)
        soft[i] = ndimage.gaussian_filter(mask, 0.7)
    result = np.zeros(SHAPE, dtype=np.uint8)
    grid = [(np.arange(n) + 0.5) / z - 0.5 for n, z in zip(SHAPE, zoom, strict=True)]
    for z, at in enumerate(grid[0]):  # slice by slice, to bound the memory
        best = np.full(SHAPE[1:], 0.5, dtype=np.float32)
        low = int(np.clip(np.floor(at), 0, labels.shape[0] - 1))
        high, part = min(low + 1, labels.shape[0] - 1), float(np.clip(at - low, 0, 1))
        for i, values in soft.items():
            flat = (1 - part) * values[low] + part * values[high]
            if flat.max() <= 0.5:
                continue
            rows, columns = (np.clip(g, 0, n - 1) for g, n in zip(grid[1:], flat.shape, strict=True))
            large = ndimage.map_coordinates(flat, np.meshgrid(rows, columns, indexing="ij"), order=1)
            result[z][large > best] = i
            best = np.maximum(best, large)
    return result


def make_pair(path: Path) -> None:
    import SimpleITK as sitk

    folder = Path(os.environ.get("MEDDINO_SHARED", PROJECT.parent / "shared")) / "data/metric_pairs"
    names = ("ts_ct_model1p5mm", "ts_ct_model3mm")
    volumes = [sitk.GetArrayFromImage(sitk.ReadImage(str(folder / f"{name}.nii.gz"))) for name in names]
    np.savez_compressed(path, ref=enlarge(volumes[0]), pred=enlarge(volumes[1]), spacing=SPACING_MM)


class Case:
    """A pair of label maps and the ways to measure it."""

    def __init__(self, reference: np.ndarray, prediction: np.ndarray, spacing: tuple[float, ...]) -> None:
        self.reference, self.prediction, self.spacing = reference, prediction, spacing
        # a class that one mask lacks has no distances, and each library its own idea of them
        self.labels = sorted(set(np.unique(reference)) & set(np.unique(prediction)) - {0})

    @classmethod
    def load(cls, path: Path) -> Case:
        with np.load(path) as stored:
            return cls(stored["ref"], stored["pred"], tuple(map(float, stored["spacing"])))

    def ours(self) -> CaseMetrics:
        classes = {str(label): int(label) for label in self.labels}
        return evaluate_case(self.reference, self.prediction, self.spacing, classes, tolerances_mm=TOLERANCES_MM)

    def deepmind(self) -> Values:
        from segmentationmetrics import surface_distance as reference

        values = {}
        for label in self.labels:
            masks = self.reference == label, self.prediction == label
            found = reference.compute_surface_distances(*masks, self.spacing)
            means = reference.compute_average_surface_distance(found)
            values[str(label)] = {
                "Dice": reference.compute_dice_coefficient(*masks),
                "MSD_ref_to_pred_surfel_mm": means[0],
                "MSD_pred_to_ref_surfel_mm": means[1],
                "HD95_surfel_mm": reference.compute_robust_hausdorff(found, 95),
                "HD_surfel_mm": reference.compute_robust_hausdorff(found, 100),
            } | {f"NSD_surfel_{t:g}mm": reference.compute_surface_dice_at_tolerance(found, t) for t in TOLERANCES_MM}
        return values

    def monai(self, *, everything: bool) -> Values:
        from monai import metrics as reference

        values = {}
        for label in self.labels:
            masks = [torch.from_numpy(v == label)[None, None] for v in (self.prediction, self.reference)]
            options = {"include_background": True, "spacing": self.spacing}
            tolerances = TOLERANCES_MM if everything else TOLERANCES_MM[:1]
            row = {f"NSD_voxel_{t:g}mm": reference.compute_surface_dice(*masks, [t], **options) for t in tolerances}
            row["HD95_voxel_mm"] = reference.compute_hausdorff_distance(*masks, percentile=95, **options)
            if everything:
                row["HD_voxel_mm"] = reference.compute_hausdorff_distance(*masks, **options)
                row["ASSD_voxel_mm"] = reference.compute_average_surface_distance(*masks, symmetric=True, **options)
            values[str(label)] = {key: float(value) for key, value in row.items()}
        return values

    def methods(self) -> dict[str, Callable[[], Any]]:
        """Return what can be imported, by name."""
        methods: dict[str, Callable[[], Any]] = {OURS: self.ours}
        try:
            import segmentationmetrics  # noqa: F401

            methods["DeepMind"] = self.deepmind
        except ImportError:
            print("skipped: DeepMind's surface-distance (pip install segmentationmetrics)")
        try:
            import monai

            methods[f"MONAI {monai.__version__}, official loop"] = lambda: self.monai(everything=False)
            methods[f"MONAI {monai.__version__}, all"] = lambda: self.monai(everything=True)
        except ImportError:
            print("skipped: MONAI (pip install monai)")
        return methods


def difference(ours: CaseMetrics, theirs: Any) -> float:
    rows = {key: m.as_dict() for key, m in ours.classes.items()}
    if isinstance(theirs, CaseMetrics):
        theirs = {key: m.as_dict() for key, m in theirs.classes.items()}
    return max(abs(rows[key][name] - value) for key, row in theirs.items() for name, value in row.items())


def measure(case: Case, path: Path, repeats: int) -> list[dict[str, Any]]:
    methods = case.methods()
    kept: dict[str, Any] = {}

    def run(name: str) -> Callable[[], None]:
        def function() -> None:
            kept[name] = methods[name]()

        return function

    times = interleaved({name: run(name) for name in methods}, repeats=repeats, device="cpu")
    return [
        {
            "case": "15 organs",
            "method": name,
            "s": float(np.median(times[name])),
            "x": 1 / speedup(times, name, OURS),
            "peak MiB": in_fresh_process(__file__, "--pair", str(path), "--peak", name),
            "difference": difference(kept[OURS], kept[name]),
        }
        for name in methods
    ]


def hard_cases(case: Case) -> dict[str, Case]:
    shifts = {f"shifted by {shift} voxels": shift for shift in ((3, 6, 6), (10, 20, 20), (40, 80, 80))}
    cases = {
        name: Case(case.reference, ndimage.shift(case.prediction, shift, order=0), case.spacing)
        for name, shift in shifts.items()
    }
    rng = np.random.default_rng(0)
    noisy = []
    for volume in (case.reference, case.prediction):
        volume = volume.copy()
        where = rng.integers(0, volume.size, volume.size // 500)
        volume.ravel()[where] = rng.integers(0, len(ORGANS) + 1, len(where))
        noisy.append(volume)
    return cases | {"0.2 % salt and pepper": Case(*noisy, case.spacing)}


def measure_hard(case: Case) -> list[dict[str, Any]]:
    rows = []
    for title, hard in hard_cases(case).items():
        methods = hard.methods()
        kept, seconds = {}, {}
        for name in (OURS, "DeepMind"):
            if name in methods:
                start = time.process_time()
                kept[name] = methods[name]()
                seconds[name] = time.process_time() - start
                ratio, error = seconds[name] / seconds[OURS], difference(kept[OURS], kept[name])
                rows.append({"case": title, "method": name, "s": seconds[name], "x": ratio, "difference": error})
    return rows


def first_calls(path: Path) -> list[dict[str, Any]]:
    """Time the first case of a process, with an empty and with a filled cache of compiled code."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["NUMBA_CACHE_DIR"] = folder
        for title in ("first call ever, with compilation", "first call of a process"):
            seconds = in_fresh_process(__file__, "--pair", str(path), "--first-call")
            rows.append({"case": title, "method": OURS, "s": seconds})
        del os.environ["NUMBA_CACHE_DIR"]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", type=Path, default=Path(tempfile.gettempdir()) / "metrics_benchmark_pair.npz")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--hard", action="store_true")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    parser.add_argument("--first-call", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if not args.pair.exists():
        print(f"making {args.pair} (about a minute)")
        make_pair(args.pair)
    case = Case.load(args.pair)
    if args.first_call:
        start = time.process_time()
        case.ours()
        print(json.dumps(time.process_time() - start))
        return
    if args.peak:
        small = Case(case.reference[100:110], case.prediction[100:110], case.spacing)
        small.methods()[args.peak]()  # libraries are loaded, compiled code is there
        print(json.dumps(peak_rss_mib(case.methods()[args.peak])))
        return
    rows = measure(case, args.pair, args.repeats) + first_calls(args.pair)
    if args.hard:
        rows += measure_hard(case)
    write_results("metrics", "cpu", rows, args.out, NOTES)


if __name__ == "__main__":
    main()
