"""Exported networks in onnxruntime against torch, on slices of real images: what differs, how large, how fast.

    python benchmarks/onnx_runtime.py MODEL IMAGES [--vit NAME --size PX] [--slices N] [--out FOLDER]

MODEL is the folder of a trained model, IMAGES a folder of its cases. ``--vit vitb16 --size 896`` measures MedDINOv3 on
that ViT with random weights as well, which takes over ten minutes and 14 GiB of memory.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import math
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from measure import RESULTS, interleaved, write_results
from torch import Tensor

from nnunetv2_meddino.errors import DataError
from nnunetv2_meddino.files import read_json, write_json
from nnunetv2_meddino.inference import Predictor
from nnunetv2_meddino.inference.model import chosen_folds
from nnunetv2_meddino.inference.sliding_window import SlidingWindow
from nnunetv2_meddino.networks.meddinov3 import MedDINOv3
from nnunetv2_meddino.networks.vit import BACKBONES, evenly_spaced_blocks
from nnunetv2_meddino.onnx_export.model import export_onnx
from nnunetv2_meddino.onnx_export.network import OnnxNetwork

REPEATS, RANDOM_SLICES = 7, 2
NOTES = (
    "Slices evenly spaced through the volumes, as `meddino predict` brings them to the network, without mirroring; the "
    "first fold of each model. Differences are from torch in float32: the largest of any logit, beside the largest "
    "logit, and voxels of the network's grid with another label. MB: of the ONNX file, and of the weights in float32. "
    f"CPU s: user time of one patch on one thread, medians of {REPEATS} interleaved runs after one that is not "
    "counted; torch computes in float32, as it does on CPUs."
)


def random_model(folder: Path, trained: Path, vit: str, size_px: int) -> Path:
    """Write a model with random weights that sees the same part of an image as a trained one, at ``size_px``."""
    name = trained.resolve().name.split("__")[2]
    plans = read_json(trained / "plans.json", DataError, "MODEL must be the folder of a trained model.")
    configuration = plans["configurations"][name]
    rows, columns = configuration["patch_size"]
    spacing = [mm * side / size_px for mm, side in zip(configuration["spacing"], (rows, columns), strict=True)]
    config = BACKBONES[vit]
    architecture = {"vit": config.to_dict(), "blocks": list(evenly_spaced_blocks(config.depth))}
    configuration |= {"patch_size": [size_px] * 2, "spacing": spacing}
    configuration["architecture"] = {
        "network_class_name": "nnunetv2_meddino.networks.meddinov3.MedDINOv3",
        "arch_kwargs": architecture,
        "_kw_requires_import": [],
    }
    classes = len(read_json(trained / "dataset.json", DataError, "")["labels"])
    torch.manual_seed(0)
    network = MedDINOv3(1, classes, **architecture)
    for block in network.encoder.blocks:
        torch.nn.init.ones_(block.gamma_1)  # 1e-5 at first, which hides what a block computes
        torch.nn.init.ones_(block.gamma_2)
    checkpoint = {
        "network_weights": network.state_dict(),
        "trainer_name": "MedDINOv3Trainer",
        "init_args": {"configuration": name},
    }
    (folder / "fold_0").mkdir(parents=True)
    torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")
    write_json(plans, folder / "plans.json")
    shutil.copy(trained / "dataset.json", folder)
    return folder


def measure(name: str, model: Path, images: list[Path], count: int, folder: Path) -> list[dict[str, Any]]:
    """Export a model in both precisions and compare each with torch."""
    fold = chosen_folds(model, None)[0]
    predictor = Predictor.from_folder(model, fold, device="cpu", mirroring=False)
    (network,) = predictor.model.networks
    rows, columns = predictor.model.configuration.patch_size
    runtimes = {}
    for half in (False, True):
        out = export_onnx(model, folder / f"{name}_{half}", [fold], half=half)
        runtimes["float16" if half else "float32"] = OnnxNetwork(out / f"fold_{fold}.onnx", threads=1)
    expected = [whole(patches, window, network) for patches, window in slices(predictor, images, count)]
    patch, _ = next(slices(predictor, images, 1))
    patch = torch.nn.functional.pad(patch, (0, columns, 0, rows))[..., :rows, :columns].contiguous()
    times = interleaved(
        {"torch": lambda: network(patch)} | {p: lambda run=run: run(patch.numpy()) for p, run in runtimes.items()},
        repeats=REPEATS,
        device="cpu",
    )
    table = []
    for precision, run in runtimes.items():
        found = [
            whole(patches, window, lambda x, run=run: torch.from_numpy(run(x.numpy())))
            for patches, window in slices(predictor, images, count)
        ]
        pairs = list(zip(found, expected, strict=True))
        table.append(
            {
                "network": name,
                "px": f"{rows} x {columns}",
                "precision": precision,
                "slices": len(pairs),
                "logits differ by": max(float((a - b).abs().max()) for a, b in pairs),
                "largest logit": max(float(b.abs().max()) for b in expected),
                "labels differ": f"{sum(int((a.argmax(1) != b.argmax(1)).sum()) for a, b in pairs)}"
                f" of {sum(a[:, 0].numel() for a in found)}",
                "MB": (folder / f"{name}_{precision == 'float16'}" / f"fold_{fold}.onnx").stat().st_size / 1e6,
                "weights MB": sum(p.numel() * 4 for p in network.parameters()) / 1e6,
                "onnxruntime CPU s": median(times[precision]),
                "torch CPU s": median(times["torch"]),
            }
        )
    return table


def slices(predictor: Predictor, images: list[Path], count: int) -> Iterator[tuple[Tensor, SlidingWindow]]:
    """Yield ``count`` slices ``(1, C, rows, columns)`` evenly spaced through all images, and how they are tiled."""
    sides = [int(side) for side in predictor.model.configuration.patch_size]
    for i in range(count):
        place, case = math.modf((i + 0.5) / count * len(images))
        prepared = predictor.preprocessed(predictor.read(images[int(case)]))
        z = int(place * prepared.shape[0])
        window = SlidingWindow(prepared.shape[1:], (sides[0], sides[1]), 0.5, torch.device("cpu"))
        yield prepared.read(z, z + 1), window


def whole(pixels: Tensor, window: SlidingWindow, network: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the logits of a slice."""
    with torch.inference_mode():
        return window.logits(pixels, network)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--vit", choices=BACKBONES, help="measure this ViT with random weights, too")
    parser.add_argument("--size", type=int, default=896, help="of its slices, in pixels (default: %(default)s)")
    parser.add_argument("--slices", type=int, default=24, help="of the trained model (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    images = sorted(options.images.glob("*_0000.nii.gz"))
    with tempfile.TemporaryDirectory() as name:
        rows = measure("trained", options.model, images, options.slices, Path(name))
        write_results("onnx_runtime", "cpu", rows, options.out, NOTES)
        if options.vit is not None:
            model = random_model(Path(name) / "model", options.model, options.vit, options.size)
            rows += measure(f"{options.vit}, random", model, images, RANDOM_SLICES, Path(name))
            write_results("onnx_runtime", "cpu", rows, options.out, NOTES)


if __name__ == "__main__":
    main()
