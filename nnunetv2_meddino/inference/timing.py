"""How long the steps of a prediction take."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class StepTimes:
    """Seconds spent in each step, by its name. A GPU is waited for only where ``exact`` is set.

    ``cpu_seconds`` are those of all threads of the process, so of the step only where nothing else runs beside it.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.exact = False
        self.seconds: dict[str, float] = defaultdict(float)
        self.cpu_seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        """Add the time of a ``with`` block to a step."""
        begun, begun_cpu = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            if self.exact and self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self.seconds[step] += time.perf_counter() - begun
            self.cpu_seconds[step] += time.process_time() - begun_cpu
