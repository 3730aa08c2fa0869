"""Learning rates that change with every iteration, for trainers whose recipe has a warm-up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


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
