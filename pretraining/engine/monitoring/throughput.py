"""How fast a run is: images a second, the share of the accelerator's peak, memory, and the time that is left."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

WINDOW_STEPS = 50

PEAK_BF16_FLOPS = {
    "NVIDIA A10": 125e12,
    "NVIDIA A30": 165e12,
    "NVIDIA A40": 149.7e12,
    "NVIDIA A100": 312e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40": 181e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA H100 80GB HBM3": 989.4e12,
    "NVIDIA H100 PCIe": 756.5e12,
    "NVIDIA H100 NVL": 835.5e12,
    "NVIDIA H200": 989.4e12,
    "NVIDIA H200 NVL": 835.5e12,
    "NVIDIA GH200": 989.4e12,
    "NVIDIA B200": 2250e12,
}
"""Dense bfloat16 operations a second by the name that CUDA gives a device.

From NVIDIA's data sheet of each product; where it only states the rate "with sparsity", half of that.
"""


def peak_flops(device: torch.device) -> float | None:
    """Return the dense bfloat16 peak of a device in operations a second, or None where it is not known."""
    return peak_flops_by_name(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def peak_flops_by_name(name: str) -> float | None:
    """Look a device name up; ``NVIDIA A100-SXM4-80GB`` is an ``NVIDIA A100``, a MIG slice is no whole device."""
    if " MIG " in name:
        return None
    fitting = [known for known in PEAK_BF16_FLOPS if name == known or name.startswith((f"{known} ", f"{known}-"))]
    return PEAK_BF16_FLOPS[max(fitting, key=len)] if fitting else None


class Throughput:
    """Measures the last ``WINDOW_STEPS`` steps.

    Work on an accelerator is queued: single steps mean nothing, but the queue is short, so that the window is right.

    Args:
        device: Of this process.
        processes: How many work in step, each with an equal device.
        clock: Returns seconds.
    """

    def __init__(
        self, device: torch.device, *, processes: int = 1, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._device, self._clock = device, clock
        peak = peak_flops(device)
        self._peak = None if peak is None else peak * processes
        self._paused_s = 0.0
        self._ends = deque([clock()], maxlen=WINDOW_STEPS + 1)
        self._work: deque[tuple[int, float]] = deque(maxlen=WINDOW_STEPS)

    def step(self, images: int, flops_per_image: float) -> None:
        """Count a finished step.

        Args:
            images: Of all processes.
            flops_per_image: ``StepFlops.total`` for the crop sizes of this step.
        """
        self._ends.append(self._clock() - self._paused_s)
        self._work.append((images, images * flops_per_image))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the time of what is no training: pictures, probes, checkpoints."""
        start = self._clock()
        try:
            yield
        finally:
            self._paused_s += self._clock() - start

    def values(self, remaining_steps: int) -> dict[str, float]:
        """Return metrics by name.

        ``throughput/images_per_s`` and ``throughput/step_s`` over the window, ``throughput/remaining_s`` at that speed;
        ``throughput/mfu``, the share of the devices' peak, where the peak is known; ``throughput/peak_memory_gib``, the
        most that this process has held, on CUDA. Nothing before the first step.
        """
        if not self._work:
            return {}
        elapsed = max(self._ends[-1] - self._ends[0], 1e-9)
        step_s = elapsed / len(self._work)
        found = {
            "throughput/images_per_s": sum(images for images, _ in self._work) / elapsed,
            "throughput/step_s": step_s,
            "throughput/remaining_s": remaining_steps * step_s,
        }
        if self._peak is not None:
            found["throughput/mfu"] = sum(flops for _, flops in self._work) / elapsed / self._peak
        if self._device.type == "cuda":
            found["throughput/peak_memory_gib"] = torch.cuda.max_memory_allocated(self._device) / 2**30
        return found
