"""Crop sizes that change from step to step, the same for all processes (DINOv3's third stage)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from nnunetv2_meddino.errors import ConfigurationError
from pretraining.views.config import ViewConfig


@dataclass(frozen=True)
class Resolution:
    """Crop sizes of a step."""

    global_size: int
    """Side of the global crops in pixels."""
    local_size: int
    """Side of the local crops in pixels."""
    gram_size: int | None
    """Side of the Gram teacher's crops in pixels, or None."""
    share: float
    """Share of the steps that have this resolution; all shares add up to 1."""

    def applied_to(self, config: ViewConfig) -> ViewConfig:
        """Return views of this resolution."""
        return replace(config, global_size=self.global_size, local_size=self.local_size, gram_size=self.gram_size)


def resolution_sequence(resolutions: Sequence[Resolution], steps: int, seed: int) -> NDArray[np.int64]:
    """Draw the resolution of every step of a run.

    The draws are those of the reference: ``numpy.random.default_rng(seed)``, one choice by share a step. The whole
    sequence is drawn at once, so that a run that goes on sees the one it would have seen.

    Returns:
        ``(steps,)`` indices.

    Raises:
        ConfigurationError: A share is negative, or they do not add up to 1.
    """
    shares = [resolution.share for resolution in resolutions]
    if min(shares) < 0 or not np.isclose(sum(shares), 1):
        raise ConfigurationError(f"resolutions: the shares {shares} must add up to 1, none negative")
    return np.random.default_rng(seed).choice(len(shares), size=steps, p=shares)
