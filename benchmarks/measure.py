"""Shared by the benchmarks: interleaved timing, peak memory, a description of the machine, result files."""

from __future__ import annotations

import datetime
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).resolve().parent / "results"


def user_time_s() -> float:
    """Return the CPU time that this process has spent outside the kernel, in seconds.

    glibc hands every large tensor fresh pages, whose faults cost more than many an operator and say nothing about it (a
    GPU's caching allocator has none). They are the kernel's time. Keeping malloc from returning memory removes
    them too, but the heap then fragments beyond 20 GB at 896 pixels in float32.
    """
    return resource.getrusage(resource.RUSAGE_SELF).ru_utime


def interleaved(functions: Mapping[str, Callable[[], object]], *, repeats: int, device: str) -> dict[str, list[float]]:
    """Time functions in turn, A B C A B C ..., after one warm-up each.

    Returns:
        Seconds of each run: of user CPU time in this process on the CPU (unmoved by waiting for a core and by page
        faults), of wall time between synchronisations on a GPU.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for repeat in range(repeats + 1):
        for name, function in functions.items():
            if device == "cuda":
                torch.cuda.synchronize()
            clock = time.perf_counter if device == "cuda" else user_time_s
            start = clock()
            function()
            if device == "cuda":
                torch.cuda.synchronize()
            if repeat:
                times[name].append(clock() - start)
    return times


def speedup(times: Mapping[str, list[float]], name: str, reference: str) -> float:
    """Return the ratio of medians, reference over ``name``: above 1 is faster than the reference."""
    return statistics.median(times[reference]) / statistics.median(times[name])


def peak_rss_mib(function: Callable[[], object]) -> float:
    """Return how far a function raises this process' resident memory above where it stands, at its peak, in MiB."""
    Path("/proc/self/clear_refs").write_text("5")  # the kernel's peak starts anew
    before = _resident_mib("VmRSS")
    function()
    return _resident_mib("VmHWM") - before


def _resident_mib(field: str) -> float:
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith(field)) / 1024


def in_fresh_process(script: str, *arguments: str) -> Any:
    """Run ``script`` with arguments in a process of its own and return the JSON it prints last."""
    done = subprocess.run([sys.executable, script, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def machine(device: str) -> dict[str, str]:
    """Describe what the numbers were measured on."""
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    import timm

    facts = {
        "date": datetime.datetime.now(tz=datetime.timezone.utc).date().isoformat(),
        "cpu": f"{cpu}, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "timm": timm.__version__,
        "python": platform.python_version(),
    }
    if device == "cuda":
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def write_results(name: str, device: str, rows: list[dict[str, Any]], folder: Path, notes: str) -> Path:
    """Write rows as a Markdown table and as JSON, with the machine above them, and print the table."""
    facts = machine(device)
    folder.mkdir(parents=True, exist_ok=True)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [f"# {name} ({device})", "", "; ".join(f"{k}: {v}" for k, v in facts.items()), "", notes, ""]
    lines += ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        cells = (row.get(c, "") for c in columns)
        lines.append("| " + " | ".join(f"{c:.3g}" if isinstance(c, float) else str(c) for c in cells) + " |")
    text = "\n".join(lines) + "\n"
    path = folder / f"{name}_{device}.md"
    path.write_text(text)
    path.with_suffix(".json").write_text(json.dumps({"machine": facts, "notes": notes, "rows": rows}, indent=1))
    print(text)
    return path
