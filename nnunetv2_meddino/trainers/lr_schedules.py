"""Learning rate schedules that nnU-Net's training loop can step.

All are pure functions of the position in the training, so a resumed training needs no saved state; and each parameter
group keeps its own rate, where nnU-Net's schedules write one rate into all groups.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

LRCurve = Callable[[float, float], float]
"""Base rate of a group and position in the training, from 0 to 1 -> rate."""


LR_SCALE = "lr_scale"
"""Key of a parameter group whose rate is that of its kind times this factor (timm's name)."""


class LRScheduler:
    """Learning rates that follow the position in the training.

    Args:
        optimizer: Its groups' present rates are their base rates. One with ``LR_SCALE`` follows the curve of its base
            rate without that factor, times the factor, to the end of the curve.
        num_epochs: Epochs of the training.
        iterations_per_epoch: Iterations of each.
        curve: The rates.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, num_epochs: int, iterations_per_epoch: int, curve: LRCurve
    ) -> None:
        self.optimizer = optimizer
        self.num_epochs = num_epochs
        self.iterations_per_epoch = iterations_per_epoch
        self.curve = curve
        self.base_lrs = [group["lr"] for group in optimizer.param_groups]

    def step(self, epoch: int, iteration: int = 0) -> None:
        """Set the rates of an iteration, both counted from 0; nnU-Net calls it with the epoch alone."""
        position = (epoch + iteration / self.iterations_per_epoch) / self.num_epochs
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            scale = group.get(LR_SCALE, 1.0)
            group["lr"] = scale * self.curve(base / scale, position)


def polynomial(power: float = 1.0, *, warmup: float = 0.0) -> LRCurve:
    """Return ``base x (1 - position) ** power``, multiplied by a linear ramp from 0 in the first ``warmup``."""

    def rate(base: float, position: float) -> float:
        ramp = position / warmup if position < warmup else 1.0
        return base * ramp * (1 - position) ** power

    return rate


def warmup_cosine(warmup: float, final: float) -> LRCurve:
    """Return a linear ramp from 0 to the base rate, then half a cosine down to ``final``, the same for every group.

    Args:
        warmup: Share of the training that is the ramp.
        final: Rate at the end.
    """

    def rate(base: float, position: float) -> float:
        if position < warmup:
            return base * position / warmup
        return final + (base - final) * (1 + math.cos(math.pi * (position - warmup) / (1 - warmup))) / 2

    return rate


class IterationSchedule(nnUNetTrainer):
    """Mixin: before every training step, tell the schedule which iteration it is; nnU-Net only tells the epoch."""

    def on_train_epoch_start(self) -> None:
        """Start counting the epoch's iterations."""
        super().on_train_epoch_start()
        self._iteration = 0

    def train_step(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Take one step at the rate of this very iteration."""
        self.lr_scheduler.step(self.current_epoch, self._iteration)
        self._iteration += 1
        return super().train_step(batch)
