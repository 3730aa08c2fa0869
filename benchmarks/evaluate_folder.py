"""Whole cases of 200x512x512 voxels and 15 organs, read from compressed files and scored by two processes.

    python benchmarks/evaluate_folder.py [--pair FILE.npz] [--out FOLDER]

``FILE.npz`` is the case of ``benchmarks/metrics.py``.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import SimpleITK
from measure import RESULTS, write_results
from metrics import ORGANS, TOLERANCES_MM, Case, make_pair

from nnunetv2_meddino.evaluation.cases import evaluate_files
from nnunetv2_meddino.evaluation.classes import LabelSet
from nnunetv2_meddino.evaluation.pairs import pair_files

FOLDER_SIZES = (4, 40)
NOTES = (
    "Wall time of evaluate_files with two processes: both files of a case decompressed and checked to the last byte, "
    "all metrics in both definitions. A folder's time includes starting the processes; 'every further case' is the "
    "slope between the two folders."
)


def measure(case: Case) -> list[dict[str, Any]]:
    """Time folders of the case, of both sizes."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, volume in (("reference", case.reference), ("prediction", case.prediction)):
            (Path(folder) / name).mkdir()
            image = SimpleITK.GetImageFromArray(volume)
            image.SetSpacing(case.spacing[::-1])
            SimpleITK.WriteImage(image, Path(folder) / name / "case_00.nii.gz", True)
        labels = LabelSet.from_json(list(range(1, len(ORGANS) + 1)), "labels")
        for count in FOLDER_SIZES:
            for name in ("reference", "prediction"):
                for i in range(1, count):
                    link = Path(folder) / name / f"case_{i:02d}.nii.gz"
                    if not link.exists():
                        os.link(Path(folder) / name / "case_00.nii.gz", link)
            pairing = pair_files(Path(folder) / "reference", Path(folder) / "prediction")
            start = time.perf_counter()
            evaluation = evaluate_files(pairing, labels, TOLERANCES_MM, processes=2)
            seconds = time.perf_counter() - start
            assert len(evaluation.results) == count
            rows.append({"case": f"{count} cases", "s": seconds})
        first, last = rows[0], rows[-1]
        rate = (FOLDER_SIZES[-1] - FOLDER_SIZES[0]) / (last["s"] - first["s"])
        last["cases/s"] = FOLDER_SIZES[-1] / last["s"]
        rows.append({"case": "every further case", "s": 1 / rate, "cases/s": rate})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", type=Path, default=Path(tempfile.gettempdir()) / "metrics_benchmark_pair.npz")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    if not args.pair.exists():
        make_pair(args.pair)
    write_results("evaluate_folder", "cpu", measure(Case.load(args.pair)), args.out, NOTES)


if __name__ == "__main__":
    main()
