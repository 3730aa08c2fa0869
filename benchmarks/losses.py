"""Teacher targets and cross-entropy over many prototypes against their definitions: time, peak memory and error.

Sinkhorn-Knopp in vectors and the cross-entropy in pieces are ours; the references follow the definitions on the whole
matrix, and autograd. Needs torch; no nnU-Net.

    python benchmarks/losses.py [--out FOLDER] [--repeats N] [--rows 512] [--prototypes 65536]
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
from measure import RESULTS, in_fresh_process, interleaved, peak_rss_mib, speedup, write_results
from torch import Tensor

from pretraining.losses import sinkhorn_scaling, sinkhorn_targets
from pretraining.losses.cross_entropy import soft_cross_entropy

TEACHER_TEMPERATURE, STUDENT_TEMPERATURE, ITERATIONS = 0.07, 0.1, 3
REFERENCE = "definition"
NOTES = (
    "Targets: three iterations of Sinkhorn-Knopp. Cross-entropy: forward and backward. x: definition over ours, "
    "medians of interleaved runs of the same process; one thread and user CPU time (no page faults) on the "
    "CPU, wall time on a GPU. Peak memory above that of the arguments: resident memory in a process of its own on the "
    "CPU, allocator on a GPU."
)


def targets_by_definition(logits: Tensor) -> Tensor:
    """Divide prototypes, then samples, by their sums, in turn."""
    q = torch.exp(logits.float() / TEACHER_TEMPERATURE).T
    prototypes, samples = q.shape
    q /= q.sum()
    for _ in range(ITERATIONS):
        q /= q.sum(1, keepdim=True)
        q /= prototypes
        q /= q.sum(0, keepdim=True)
        q /= samples
    return (q * samples).T


def our_targets(logits: Tensor) -> Tensor:
    log_u = sinkhorn_scaling([lambda: logits], TEACHER_TEMPERATURE, ITERATIONS)
    return sinkhorn_targets(logits, log_u, TEACHER_TEMPERATURE)


def cross_entropy_by_definition(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    log_p = (logits.float() / STUDENT_TEMPERATURE).log_softmax(1)
    return -((targets * log_p).sum(1) * weights).sum()


def our_cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    return soft_cross_entropy(logits, targets, weights, STUDENT_TEMPERATURE)


def gradient(loss: Callable[[Tensor, Tensor, Tensor], Tensor], *arguments: Tensor) -> Tensor:
    """Return the gradient of the logits, the first of the arguments."""
    leaf = arguments[0].detach().requires_grad_()
    return torch.autograd.grad(loss(leaf, *arguments[1:]), leaf)[0]


STEPS: dict[str, dict[str, Callable[..., Tensor]]] = {
    "targets": {REFERENCE: targets_by_definition, "ours": our_targets},
    "cross-entropy": {
        REFERENCE: lambda *a: gradient(cross_entropy_by_definition, *a),
        "ours": lambda *a: gradient(our_cross_entropy, *a),
    },
}


def arguments(step: str, rows: int, prototypes: int, dtype: torch.dtype, device: str) -> tuple[Tensor, ...]:
    """Return the arguments of a step; logits have the spread of a cosine times a last layer's row."""
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(rows, prototypes, generator=generator) * 0.3).to(device=device, dtype=dtype)
    if step == "targets":
        return (logits,)
    targets = our_targets(torch.randn(rows, prototypes, generator=generator) * 0.3).to(device)
    return logits, targets, torch.rand(rows, generator=generator).to(device)


def peak(name: str, *case: Any) -> float:
    step, device = case[0], case[-1]
    given, function = arguments(*case), STEPS[step][name]
    if device == "cpu":
        return peak_rss_mib(lambda: function(*given))
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function(*given)
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def measure(repeats: int, *case: Any) -> list[dict[str, Any]]:
    """Time ours and the definition in one process, in turn."""
    given, functions = arguments(*case), STEPS[case[0]]
    expected = functions[REFERENCE](*given).float()
    error = {name: (f(*given).float() - expected).abs().max().item() for name, f in functions.items()}
    runs = {name: (lambda f=f: f(*given)) for name, f in functions.items()}
    times = interleaved(runs, repeats=repeats, device=case[-1])
    return [
        {
            "method": name,
            "x": speedup(times, name, REFERENCE),
            "median s": statistics.median(times[name]),
            "error of the largest": error[name] / expected.abs().max().item(),
        }
        for name in functions
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--prototypes", type=int, default=65536)
    parser.add_argument("--peak", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = (options.rows, options.prototypes)
    if options.peak:
        name, step, dtype = options.peak
        print(json.dumps(peak(name, step, *size, getattr(torch, dtype), device)))
        return
    if options.measure:
        step, dtype = options.measure
        print(json.dumps(measure(options.repeats, step, *size, getattr(torch, dtype), device)))
        return
    shape = ("--rows", str(options.rows), "--prototypes", str(options.prototypes))
    rows: list[dict[str, Any]] = []
    for step in STEPS:
        for dtype in ("float32", "bfloat16"):
            for row in in_fresh_process(__file__, "--measure", step, dtype, "--repeats", str(options.repeats), *shape):
                peak_mib = round(in_fresh_process(__file__, "--peak", row["method"], step, dtype, *shape))
                rows.append({"step": step, "logits": dtype, **row, "peak MiB": peak_mib})
    write_results("losses", device, rows, options.out, f"{size[0]} rows, {size[1]} prototypes. {NOTES}")


if __name__ == "__main__":
    main()
