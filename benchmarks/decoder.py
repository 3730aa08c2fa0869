"""The token decoder against a plain channel-first one: time, peak memory and error, at 448 and 896 pixels.

Both start from the patch tokens of four ViT-B blocks, batch 1, 14 classes, and end with logits in image layout. Needs
torch and timm; no nnU-Net.

    python benchmarks/decoder.py [--out FOLDER] [--repeats N] [--sizes 448 896]
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
from measure import (
    RESULTS,
    in_fresh_process,
    interleaved,
    peak_rss_mib,
    speedup,
    write_results,
)
from plain_primus import ChannelFirstDecoder, load_published
from torch import Tensor, nn

from nnunetv2_meddino.networks.token_decoder import TokenDecoder

DIM, MAPS, CLASSES = 768, 4, 14
REFERENCE = "channel-first"
NOTES = (
    "Decoder only, batch 1, ViT-B, 4 blocks concatenated, 14 classes. x: channel-first reference over ours, medians of "
    "interleaved runs of the same process; one thread and user CPU time (no page faults) on the CPU, wall time on a "
    "GPU. Peak memory above weights and inputs: resident memory in a process of its own on the CPU, allocator on a GPU."
)


def build(dtype: torch.dtype, device: str) -> dict[str, nn.Module]:
    """Return the reference and our variants, all with the same weights."""
    torch.manual_seed(0)
    reference = ChannelFirstDecoder(DIM * MAPS, CLASSES)
    for parameter in reference.parameters():
        if parameter.ndim > 1:
            nn.init.kaiming_normal_(parameter, a=1e-2)
    ours = {
        "token": TokenDecoder(DIM, MAPS, CLASSES),
        "token checkpointed": TokenDecoder(DIM, MAPS, CLASSES, checkpointing=True),
    }
    for decoder in ours.values():
        load_published(decoder, reference.state_dict())
    return {name: m.to(device=device, dtype=dtype) for name, m in {REFERENCE: reference, **ours}.items()}


def inputs(size: int, dtype: torch.dtype, device: str) -> tuple[list[Tensor], tuple[int, int]]:
    side = size // 16
    generator = torch.Generator().manual_seed(1)
    maps = [torch.randn(1, side * side, DIM, generator=generator).to(device=device, dtype=dtype) for _ in range(MAPS)]
    return maps, (side, side)


def forward(model: nn.Module, maps: list[Tensor], grid: tuple[int, int]) -> Callable[[], object]:
    def run() -> None:
        with torch.no_grad():
            model(maps, grid)

    return run


def forward_backward(model: nn.Module, maps: list[Tensor], grid: tuple[int, int]) -> Callable[[], object]:
    maps = [m.detach().requires_grad_() for m in maps]

    def run() -> None:
        model.zero_grad()
        for m in maps:
            m.grad = None
        logits = model(maps, grid)
        logits.backward(torch.ones_like(logits))

    return run


PASSES = {"forward": forward, "forward+backward": forward_backward}


def peak(name: str, step: str, size: int, dtype: torch.dtype, device: str) -> float:
    model = build(dtype, device)[name]
    run = PASSES[step](model, *inputs(size, dtype, device))
    if device == "cpu":
        return peak_rss_mib(run)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def measure(step: str, size: int, dtype: torch.dtype, device: str, repeats: int) -> list[dict[str, Any]]:
    """Time all decoders in one process, in turn."""
    models = build(dtype, device)
    maps, grid = inputs(size, dtype, device)
    with torch.no_grad():
        expected = models[REFERENCE](maps, grid).float()
        errors = {name: (model(maps, grid).float() - expected).abs().max().item() for name, model in models.items()}
    functions = {name: PASSES[step](model, maps, grid) for name, model in models.items()}
    times = interleaved(functions, repeats=repeats, device=device)
    return [
        {
            "decoder": name,
            "x": speedup(times, name, REFERENCE),
            "median s": statistics.median(times[name]),
            "max abs error": errors[name],
        }
        for name in models
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="+", default=[448, 896])
    parser.add_argument("--peak", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.peak:
        name, step, size, dtype = options.peak
        print(json.dumps(peak(name, step, int(size), getattr(torch, dtype), device)))
        return
    if options.measure:
        step, size, dtype = options.measure
        print(json.dumps(measure(step, int(size), getattr(torch, dtype), device, options.repeats)))
        return
    rows: list[dict[str, Any]] = []
    for size in options.sizes:
        for dtype in ("float32", "bfloat16"):
            for step in PASSES:
                arguments = ("--measure", step, str(size), dtype, "--repeats", str(options.repeats))
                for row in in_fresh_process(__file__, *arguments):
                    peak_mib = round(in_fresh_process(__file__, "--peak", row["decoder"], step, str(size), dtype))
                    rows.append({"size": size, "dtype": dtype, "pass": step, **row, "peak MiB": peak_mib})
            write_results("decoder", device, rows, options.out, NOTES)


if __name__ == "__main__":
    main()
