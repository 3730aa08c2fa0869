"""Learning rate schedules that nnU-Net's training loop can step."""

from __future__ import annotations

import torch


class LinearDecay:
    """Learning rate ``base x (1 - epoch / num_epochs)`` in every parameter group, each from its own base.

    A pure function of the epoch, so a resumed training needs no saved state. nnU-Net's own schedule writes one rate
    into all groups.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, num_epochs: int) -> None:
        self.optimizer = optimizer
        self.num_epochs = num_epochs
        self.base_lrs = [group["lr"] for group in optimizer.param_groups]

    def step(self, epoch: int) -> None:
        """Set the rates of ``epoch`` (from 0)."""
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = base * (1 - epoch / self.num_epochs)
