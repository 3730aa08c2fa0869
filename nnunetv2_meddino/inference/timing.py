"""How long the steps of a prediction take."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class StepTimes:
    """Seconds spent in each step, by its name. A GPU is waited for only where ``exact`` is set."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.exact = False
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        """Add the time of a ``with`` block to a step."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            if self.exact and self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self.seconds[step] += time.perf_counter() - begun
