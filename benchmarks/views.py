"""Views: what a worker does for a slice against the usual CPU pipeline, and what the views cost on CPU and GPU.

The usual pipeline is what most self-supervised training code runs in its loader's workers: Pillow's bicubic
RandomResizedCrop, colour jitter and blur by torchvision, for two global and eight local crops of an 8-bit RGB image.
Needs torch, torchvision, blosc2, nibabel and pyarrow; no nnU-Net.

    python benchmarks/views.py [--out FOLDER] [--repeats N] [--batch N]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from corpora import write_manifest, write_volume
from measure import RESULTS, interleaved, speedup, write_results
from PIL import Image
from slices import DEPTH, SIDE, chest
from torch import Tensor
from torchvision.transforms import v2

from pretraining.corpus.dataset import SliceDataset, Slices
from pretraining.views import ViewConfig, make_views
from pretraining.views.masks import draw_masks

CONFIG = ViewConfig()
USUAL = "usual pipeline (decode + PIL)"
MASK_BATCH = 64
MASKS = f"masks alone, batch of {MASK_BATCH}"
NOTES = (
    f"Per slice of {SIDE} x {SIDE}: 2 x {CONFIG.global_size} and {CONFIG.num_local} x {CONFIG.local_size} pixels. All "
    "start from the same stored slice. x: the usual pipeline over this, medians of interleaved runs in one process, "
    "one thread, user CPU time. The worker's share is all that a worker process does where an accelerator makes the "
    "views. Target: 20 x."
)
TARGET = (
    "samples/s of make_views on one batch that is on the GPU, and with the copy from the host, wall time between "
    "synchronisations. Target: 5,000 samples/s on one H100."
)


def usual_transforms() -> list[Callable[[Image.Image], Tensor]]:
    """Return one transform a view; probabilities of the blur as the reference trained with."""
    jitter = v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8)
    finish = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.485] * 3, [0.229] * 3)]

    def view(size: int, scale: tuple[float, float], blur: float) -> Callable[[Image.Image], Tensor]:
        crop = v2.RandomResizedCrop(size, scale, interpolation=v2.InterpolationMode.BICUBIC)
        blurring = v2.RandomApply([v2.GaussianBlur(9, (0.1, 2.0))], p=blur)
        return v2.Compose([crop, jitter, v2.RandomGrayscale(0.2), blurring, *finish])

    first, second = (view(CONFIG.global_size, CONFIG.global_scale, blur) for blur in (0.0, 0.9))
    local = view(CONFIG.local_size, CONFIG.local_scale, 0.5)
    return [first, second, *[local] * CONFIG.num_local]


def usual_views(dataset: SliceDataset, rows: list[int], transforms: list[Callable[[Image.Image], Tensor]]) -> Tensor:
    """Decode slices from the same corpus and make all views with Pillow and torchvision."""
    total = torch.zeros(())
    for row in rows:
        hu = dataset[row].pixels[0].numpy()
        grey = ((hu.clip(-1000, 1000) + 1000.0) * (255 / 2000)).round().astype(np.uint8)
        image = Image.fromarray(grey).convert("RGB")
        for transform in transforms:
            total += transform(image)[0, 0, 0]
    return total


def on_the_cpu(dataset: SliceDataset, batch: int, repeats: int) -> list[dict[str, Any]]:
    rows = np.arange(batch) % len(dataset)
    pixels = torch.empty((batch, SIDE, SIDE), dtype=torch.int16)
    dataset.decode(rows, pixels)
    slices = dataset.described(rows, np.arange(batch), pixels)
    transforms = usual_transforms()
    functions = {
        USUAL: lambda: usual_views(dataset, rows.tolist(), transforms),
        "worker's share: decode": lambda: dataset.decode(rows, pixels),
        "all views, same code on the CPU": lambda: make_views(slices, CONFIG, seed=0, step=0),
        "all views with Gram crops of 512": lambda: make_views(slices, ViewConfig(gram_size=512), seed=0, step=0),
        MASKS: lambda: draw_masks(2 * MASK_BATCH, 16, CONFIG.masks, seed=0, step=0, first=0),
    }
    runs = interleaved(functions, repeats=repeats, device="cpu")
    times = {name: [s / (MASK_BATCH if name == MASKS else batch) for s in seconds] for name, seconds in runs.items()}
    return [
        {
            "what": name,
            "ms/slice": 1e3 * statistics.median(times[name]),
            "slices/s/core": round(1 / statistics.median(times[name])),
            "x": speedup(times, name, USUAL),
        }
        for name in functions
    ]


def on_the_gpu(dataset: SliceDataset, batch: int, repeats: int) -> list[dict[str, Any]]:
    rows = np.arange(batch) % len(dataset)
    pixels = torch.empty((batch, SIDE, SIDE), dtype=torch.int16)
    dataset.decode(rows, pixels)
    on_host = dataset.described(rows, np.arange(batch), pixels)
    on_gpu = on_host.to("cuda")

    def views(slices: Slices, config: ViewConfig) -> Callable[[], object]:
        return lambda: make_views(slices.to("cuda"), config, seed=0, step=0)

    functions = {
        "views, slices on the GPU": views(on_gpu, CONFIG),
        "views and copy from the host": views(on_host, CONFIG),
        "views with Gram crops of 512": views(on_gpu, ViewConfig(gram_size=512)),
    }
    times = interleaved(functions, repeats=repeats, device="cuda")
    return [
        {
            "what": name,
            "batch": batch,
            "us/slice": 1e6 * statistics.median(times[name]) / batch,
            "samples/s": round(batch / statistics.median(times[name])),
            "of the target": batch / statistics.median(times[name]) / 5000,
        }
        for name in functions
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--batch", type=int, default=16, help="slices a run on the CPU; a GPU takes 64 and 256")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_volume(folder / "volumes/chest/case.b2nd", chest(np.random.default_rng(0)))
        write_manifest(folder, [("chest", "case", (DEPTH, SIDE, SIDE))])
        dataset = SliceDataset(folder)
        start = time.perf_counter()
        write_results("views", "cpu", on_the_cpu(dataset, options.batch, options.repeats), options.out, NOTES)
        print(f"took {time.perf_counter() - start:.0f} s")
        if not torch.cuda.is_available():
            print(f"No GPU here. Where there is one, this also measures: {TARGET}")
            return
        rows = [row for batch in (64, 256) for row in on_the_gpu(dataset, batch, options.repeats)]
        write_results("views", "cuda", rows, options.out, TARGET)


if __name__ == "__main__":
    main()
