"""Curation of a CT volume against merely reading it, and what the whole of CT-3M would take: time and disk.

The reference is SimpleITK reading the same .nii.gz without looking at anything. One thread, user CPU time.

    python benchmarks/curation.py [CT ...] [--slices N] [--repeats N] [--out FOLDER]

A CT is a file or the folder of a DICOM series, best of 512 x 512 pixels; a synthetic one (noise of 20 HU) is always
measured too. Slices are repeated up to N.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1"}
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import SimpleITK as sitk  # noqa: N813
from measure import RESULTS, interleaved, speedup, write_results
from numpy.typing import NDArray

from pretraining.corpus.storage import StoreSettings
from pretraining.curation.fingerprint import exact_hash, fingerprint
from pretraining.curation.process_volume import VolumeTask, process
from pretraining.curation.readers.read import find_candidates, read_volume
from pretraining.modality import Modality

CT_3M_SLICES = 3_868_833
REFERENCE = "SimpleITK reads"
NOTES = (
    "x: reference over ours, medians of interleaved runs, user CPU time of one thread; below 1 is the price of "
    "checking, fingerprinting, measuring and compressing. bytes: a voxel of the stored file. TB and core hours: for "
    "the 3,868,833 slices of CT-3M, all taken to be like these."
)


def synthetic(slices: int) -> tuple[NDArray[np.int16], tuple[float, float, float]]:
    """A body of soft tissue with lungs and bone, with the noise of an ordinary scan."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-1:1:512j, -1:1:512j]
    image = np.where(x**2 / 0.7 + y**2 / 0.45 < 1, 40.0, -1000.0)
    image[(abs(x) - 0.35) ** 2 / 0.05 + y**2 / 0.1 < 1] = -850
    image[x**2 + (y - 0.45) ** 2 < 0.01] = 500
    noise = rng.normal(0, 20, (slices, 512, 512)) * np.where(image > -1000, 1, 0.4)
    return np.clip(np.rint(image + noise), -1024, 3071).astype(np.int16), (2.5, 0.8, 0.8)


def load(path: Path, slices: int) -> tuple[NDArray[np.int16], tuple[float, float, float]]:
    """Read a CT and repeat its slices."""
    folder = path if path.is_dir() else path.parent
    candidate = next(c for c in find_candidates(folder) if path.is_dir() or c.path == path)
    volume = read_volume(candidate, Modality.CT)
    repeats = -(-slices // len(volume.voxels))
    return np.concatenate([volume.voxels] * repeats)[:slices], volume.spacing_mm


def measure(
    name: str, voxels: NDArray[np.int16], spacing_mm: tuple[float, float, float], repeats: int
) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ct.nii.gz"
        image = sitk.GetImageFromArray(voxels)
        image.SetSpacing(spacing_mm[::-1])
        sitk.WriteImage(image, str(path), useCompression=True)
        (candidate,) = find_candidates(Path(folder))
        volume = read_volume(candidate, Modality.CT)
        stored = Path(folder) / "ct.b2nd"

        def curate(settings: StoreSettings) -> None:
            record = Path(folder) / "record"
            record.unlink(missing_ok=True)
            done = process(VolumeTask("", "", candidate, Path(folder), Modality.CT, record, stored), settings)
            assert not done.reason, done.message

        paper = StoreSettings(store_size=256, spacing_mm=0.45)
        functions = {
            REFERENCE: lambda: sitk.ReadImage(str(path)),
            "we read and check": lambda: read_volume(candidate, Modality.CT),
            "hash and fingerprint": lambda: (exact_hash(volume.voxels), fingerprint(volume)),
            "curate, own size": partial(curate, StoreSettings()),
            "curate, 256 px of 0.45 mm": partial(curate, paper),
        }
        times = interleaved(functions, repeats=repeats, device="cpu")
        bytes_per_slice = {}
        for step, settings in (("curate, own size", StoreSettings()), ("curate, 256 px of 0.45 mm", paper)):
            curate(settings)
            bytes_per_slice[step] = stored.stat().st_size / len(voxels)
    rows = []
    for step in functions:
        rate = len(voxels) / statistics.median(times[step])
        row = {"CT": name, "step": step, "x": speedup(times, step, REFERENCE), "slices/s": rate}
        if step in bytes_per_slice:
            pixels = voxels[0].size if "own" in step else 256 * 256
            row |= {
                "bytes": bytes_per_slice[step] / pixels,
                "TB": bytes_per_slice[step] * CT_3M_SLICES / 1e12,
                "core hours": CT_3M_SLICES / rate / 3600,
            }
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("volumes", nargs="*", type=Path, metavar="CT")
    parser.add_argument("--slices", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    rows = measure("synthetic", *synthetic(options.slices), options.repeats)
    for path in options.volumes:
        rows += measure(path.name, *load(path, options.slices), options.repeats)
    write_results("curation", "cpu", rows, options.out, NOTES)


if __name__ == "__main__":
    main()
