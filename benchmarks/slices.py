"""Reading slices: the corpus against NIfTI and 16-bit PNG, one core; and the manifest at up to its full size.

Makes its own data: chest-like slices of 512 x 512 with noise of 20 HU. Needs torch, blosc2, pyarrow, nibabel and
Pillow; no nnU-Net and no GPU.

    python benchmarks/slices.py [--out FOLDER] [--repeats N] [--volumes N] [--rows 1000 ... 3870000]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import nibabel
import numpy as np
import torch
from corpora import write_manifest, write_volume
from measure import RESULTS, in_fresh_process, write_results
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from pretraining.corpus.dataset import SliceDataset
from pretraining.corpus.loader import slice_loader

SIDE, DEPTH, BATCH = 512, 24, 64
STEP = 512
"""Slices of a training step, for the time that drawing them takes."""
FULL_SIZE = 3_870_000
NOTES = (
    f"Slices of {SIDE} x {SIDE} int16 in random order, in batches of {BATCH} by torch's DataLoader; page "
    "cache hot. ms: CPU time of all processes for a slice, user and kernel (decoding, copying, passing on, starting "
    "up), median of interleaved runs. x: NIfTI over this. Target: 2,000 slices/s on a core. NIfTI: gzipped volumes of "
    f"{DEPTH} slices, one slice through nibabel's dataobj; longer volumes cost more."
)
MANIFEST_NOTES = (
    "Opening a synthetic corpus, each in a process of its own: seconds until the first indices are drawn, resident "
    "memory that stays and that is needed for a moment, for each row of the manifest (150 slices a volume). draw: CPU "
    f"time to draw the {STEP} slices of a step, mean over an epoch, its permutation included. Targets "
    f"at {FULL_SIZE:,} rows: under 10 s, under 100 bytes a row."
)


def chest(generator: np.random.Generator) -> NDArray[np.int16]:
    """Return slices (z, y, x) in HU: a body with lungs, spine and a table in air, smoothed noise of 20 HU inside."""
    y, x = (np.mgrid[:SIDE, :SIDE] - SIDE / 2) / (SIDE / 2)
    slices = np.full((DEPTH, SIDE, SIDE), -1000.0)
    for z, hu in enumerate(slices):
        size = 0.75 + 0.1 * np.sin(z / 5)
        body = (x / size) ** 2 + (y / (0.7 * size)) ** 2 < 1
        lungs = ((np.abs(x) - 0.33) / 0.22) ** 2 + (y / 0.35) ** 2 < 1
        spine = x**2 + (y - 0.35) ** 2 < 0.01
        hu[body], hu[lungs], hu[spine] = 50, -850, 400
        noise = generator.normal(0, 1, (SIDE, SIDE))
        noise = (noise + np.roll(noise, 1, 0) + np.roll(noise, 1, 1) + np.roll(noise, (1, 1), (0, 1))) / 2
        hu += 20 * noise * np.where(body, 1, 0.3)
    return slices.round().clip(-1024, 3071).astype(np.int16)


def write_all(folder: Path, volumes: int) -> None:
    """Write the same slices as a corpus, as NIfTI and as PNG."""
    generator = np.random.default_rng(0)
    (folder / "png").mkdir(parents=True)
    for number in range(volumes):
        volume = chest(generator)
        write_volume(folder / f"volumes/chest/case{number}.b2nd", volume)
        nibabel.Nifti1Image(volume.transpose(2, 1, 0), np.eye(4)).to_filename(folder / f"case{number}.nii.gz")
        for index, slice_ in enumerate(volume):
            pixels = (slice_.astype(np.int32) + 1024).astype(np.uint16)
            Image.fromarray(pixels).save(folder / f"png/{number * DEPTH + index}.png")
    write_manifest(folder, [("chest", f"case{n}", (DEPTH, SIDE, SIDE)) for n in range(volumes)])


class Files(Dataset):
    """Slices by their number, from one of the other formats."""

    def __init__(self, folder: Path, read: Callable[[Path, int], NDArray[np.int16]], slices: int) -> None:
        self.folder, self.read, self.slices = folder, read, slices

    def __len__(self) -> int:
        return self.slices

    def __getitem__(self, number: int) -> torch.Tensor:
        return torch.from_numpy(self.read(self.folder, number))


def read_nifti(folder: Path, number: int) -> NDArray[np.int16]:
    image = nibabel.load(folder / f"case{number // DEPTH}.nii.gz")
    return np.array(image.dataobj[..., number % DEPTH]).T


def read_png(folder: Path, number: int) -> NDArray[np.int16]:
    return (np.asarray(Image.open(folder / f"png/{number}.png")).astype(np.int32) - 1024).astype(np.int16)


def check_equal(folder: Path, slices: int) -> None:
    """All three formats give the same pixels."""
    dataset = SliceDataset(folder)
    for number in (0, slices // 2, slices - 1):
        ours = dataset[number].pixels[0].numpy()
        for read in (read_nifti, read_png):
            np.testing.assert_array_equal(ours, read(folder, number))


def cpu_time_s() -> float:
    """Return user and kernel time of this process and of its children that have ended."""
    times = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(t.ru_utime + t.ru_stime for t in times)


def take_corpus(folder: Path, slices: int, workers: int) -> None:
    batches = itertools.islice(slice_loader(folder, batch_size=BATCH, seed=0, workers=workers), slices // BATCH)
    checksum = 0
    for _, batch in batches:
        checksum += int(batch.pixels[0, 0, 0])


def take_files(dataset: Files, slices: int, workers: int) -> None:
    generator = torch.Generator().manual_seed(0)
    order = [torch.randint(len(dataset), (BATCH,), generator=generator).tolist() for _ in range(slices // BATCH)]
    for batch in DataLoader(dataset, batch_sampler=order, num_workers=workers):  # type: ignore[arg-type]
        int(batch[0, 0, 0])


def reading(folder: Path, volumes: int, repeats: int) -> list[dict[str, Any]]:
    """Time all formats in turn with no worker and with one."""
    slices = volumes * DEPTH
    check_equal(folder, slices)
    nifti, png = (Files(folder, read, slices) for read in (read_nifti, read_png))
    few = 2 * BATCH
    # the more slices the faster the format, so that starting the workers weighs little
    takers = {
        "NIfTI": (lambda workers: take_files(nifti, few, workers), few),
        "PNG-16": (lambda workers: take_files(png, 4 * BATCH, workers), 4 * BATCH),
        "corpus": (lambda workers: take_corpus(folder, 120 * BATCH, workers), 120 * BATCH),
    }
    times: dict[tuple[str, int], list[float]] = {}
    for repeat, (name, (take, count)), workers in itertools.product(range(repeats + 1), takers.items(), (0, 1)):
        start = cpu_time_s()
        take(workers)
        if repeat:
            times.setdefault((name, workers), []).append((cpu_time_s() - start) / count)
    sizes = {
        "NIfTI": sum(p.stat().st_size for p in folder.glob("*.nii.gz")),
        "PNG-16": sum(p.stat().st_size for p in folder.glob("png/*")),
        "corpus": sum(p.stat().st_size for p in folder.glob("volumes/*/*")),
    }
    return [
        {
            "format": name,
            "workers": workers,
            "ms": 1e3 * statistics.median(seconds),
            "slices/s/core": round(1 / statistics.median(seconds)),
            "x": statistics.median(times["NIfTI", workers]) / statistics.median(seconds),
            "bytes/voxel": sizes[name] / (slices * SIDE * SIDE),
        }
        for (name, workers), seconds in times.items()
    ]


def opening(folder: str) -> dict[str, float]:
    """Open a corpus and draw the first batch of rows, and tell what it took; run in a fresh process."""
    from pretraining.corpus.sampler import SampleOrder

    SampleOrder([np.arange(9, dtype=np.int32)], [1.0], seed=0).rows(0, 9)
    before = _resident_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the kernel's peak starts anew
    start, cpu = time.perf_counter(), time.process_time()
    dataset = SliceDataset(folder)
    order = SampleOrder([dataset.usable_rows()], [1.0], seed=0)
    order.rows(10**9, BATCH)
    seconds, resident, peak = time.perf_counter() - start, _resident_bytes("VmRSS"), _resident_bytes("VmHWM")
    cpu_seconds = time.process_time() - cpu
    steps = len(dataset) // STEP + 1
    start = cpu_time_s()
    for step in range(steps):
        order.rows(step * STEP, STEP)
    return {
        "rows": len(dataset),
        "start s": seconds,
        "start CPU s": cpu_seconds,
        "kept MiB": (resident - before) / 2**20,
        "kept bytes/row": (resident - before) / len(dataset),
        "peak bytes/row": (peak - before) / len(dataset),
        "draw ms/step": 1e3 * (cpu_time_s() - start) / steps,
    }


def _resident_bytes(field: str) -> int:
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith(field)) * 1024


def manifests(folder: Path, rows: Sequence[int]) -> list[dict[str, Any]]:
    """Open synthetic corpora of growing size."""
    results = []
    for count in rows:
        corpus = folder / f"manifest{count}"
        volumes = max(1, count // 150)
        lengths = np.diff(np.linspace(0, count, volumes + 1).astype(int)).tolist()
        write_manifest(
            corpus, [(f"source{n % 16}", f"case_{n:06d}", (length, SIDE, SIDE)) for n, length in enumerate(lengths)]
        )
        results.append(in_fresh_process(__file__, "--opening", str(corpus)))
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--volumes", type=int, default=8)
    parser.add_argument("--rows", type=int, nargs="+", default=[10**3, 10**4, 10**5, 10**6, FULL_SIZE])
    parser.add_argument("--opening", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.opening:
        print(json.dumps(opening(options.opening)))
        return
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as name:
        folder = Path(name)
        write_all(folder / "corpus", options.volumes)
        write_results("slices", "cpu", reading(folder / "corpus", options.volumes, options.repeats), options.out, NOTES)
        write_results("manifest", "cpu", manifests(folder, options.rows), options.out, MANIFEST_NOTES)


if __name__ == "__main__":
    main()
