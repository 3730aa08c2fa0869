"""What a training step costs where the ViT is trained in full, by low-rank adapters, or not: ViT-B/16 with its decoder.

The step is that of ``training_step.py``. Layer-wise decay costs what full fine-tuning does. Needs torch and timm; no
nnU-Net.

    python benchmarks/fine_tuning.py [--out FOLDER] [--size 320] [--batch 1] [--repeats N]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from measure import RESULTS, in_fresh_process, interleaved, peak_rss_mib, write_results
from torch import nn
from training_step import CLASSES, build_ours, step_of

FULL = "full"
OPTIONS: dict[str, dict[str, Any]] = {
    FULL: {},
    "lora": {"lora": {"rank": 8, "alpha": 16}},
    "frozen": {"frozen": True, "drop_path": 0.0},
}
NOTES = (
    "One training step, ViT-B/16, 4 blocks, 14 classes, float32. Time: medians of interleaved steps in one process, as "
    "a share of full fine-tuning's; user CPU time of one thread, on a GPU wall time. Peak of two steps above the "
    "weights: activations, gradients and AdamW's moments; resident memory in a process of its own, on a GPU what is "
    "allocated."
)


def build(name: str, size: int, batch: int, device: str) -> tuple[nn.Module, Callable[[], object]]:
    """Return a network and its training step."""
    torch.manual_seed(0)
    network = build_ours(**OPTIONS[name]).to(device)
    image = torch.randn(batch, 1, size, size, device=device)
    target = torch.randint(0, CLASSES, (batch, size, size), device=device)
    return network, step_of(network, image, target, scaled=False)


def peak(name: str, size: int, batch: int, device: str) -> float:
    """Return the peak of the second step, when the optimizer's state is there, in MiB above the weights."""
    _, step = build(name, size, batch, device)
    if device == "cpu":
        return peak_rss_mib(lambda: (step(), step()))
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.reset_peak_memory_stats()
    step()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size, batch = options.size, options.batch
    if options.peak:
        print(json.dumps(peak(options.peak, size, batch, device)))
        return
    arguments = ("--size", str(size), "--batch", str(batch))
    peaks = {name: in_fresh_process(__file__, "--peak", name, *arguments) for name in OPTIONS}
    built = {name: build(name, size, batch, device) for name in OPTIONS}
    times = interleaved({name: step for name, (_, step) in built.items()}, repeats=options.repeats, device=device)
    medians = {name: statistics.median(times[name]) for name in OPTIONS}
    rows = [
        {
            "fine-tuning": name,
            "size": size,
            "batch": batch,
            "trained, millions": sum(p.numel() for p in network.parameters() if p.requires_grad) / 1e6,
            "time of a step": medians[name] / medians[FULL],
            "peak MiB": round(peaks[name]),
        }
        for name, (network, _) in built.items()
    ]
    write_results("fine_tuning", device, rows, options.out, NOTES)


if __name__ == "__main__":
    main()
