"""How the student is optimised and the teacher follows it. Every default names its source."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from nnunetv2_meddino.errors import ConfigurationError
from pretraining.schedules import Schedule, Schedules, scheduled

ScalingRule = Literal["none", "sqrt_1024", "linear_256"]


@dataclass(frozen=True)
class OptimConfig:
    """AdamW, gradient clipping, teacher momentum and everything that follows a schedule; steps count from 0.

    Defaults are those of the first of three stages. MedDINOv3's paper gives learning rates and lengths and nothing
    else; what it leaves open has the shape of DINOv3's 7B configuration, scaled to 100,000 steps, or the value of the
    DINOv3 ViT-L configuration that MedDINOv3's author named.
    """

    lr: Schedule = Schedule(2e-4, warmup_steps=5_000)
    """Learning rate (MedDINOv3, stage 1), constant after a linear warm-up (DINOv3's 7B)."""
    lr_scaling: ScalingRule = "none"
    """Factor of the learning rates: ``none`` is 1, ``sqrt_1024`` 4 sqrt(batch / 1024), ``linear_256`` batch / 256.
    DINOv3 has ``sqrt_1024``; MedDINOv3 does not say whether its rates are before or after it. ``none`` is the smaller
    step of the two."""
    weight_decay: Schedule = Schedule(0.04)
    """Weight decay of AdamW (DINOv3's 7B)."""
    momentum: Schedule = Schedule(0.994)
    """Momentum of the EMA teacher: the share of the old teacher in the new one, 0 to 1 (DINOv3's 7B)."""
    teacher_temperature: Schedule = Schedule(0.07, start=0.04, warmup_steps=10_000)
    """Temperature of the teacher's targets (DINOv3's 7B)."""
    freeze_last_layer_steps: int = 5_000
    """First steps in which the last layers of both heads are frozen, since heads begin at random on a trained backbone
    (5 epochs of 1000 steps in DINOv3's 7B)."""
    layer_decay: float = 0.9
    """Factor by which learning rates shrink from block to block, towards the patches (DINOv3's ViT-L)."""
    patch_embed_lr_multiplier: float = 0.2
    """Factor of the patch embedding's learning rate, on top of ``layer_decay`` (every DINOv3 configuration)."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Betas of AdamW (DINOv3's ViT-L; its 7B has 0.9 and 0.99)."""
    clip_norm: float = 3.0
    """Largest L2 norm of the gradients of the backbone, and of each head; larger ones are scaled down to it
    (DINOv3's ViT-L; its 7B has 30). ``inf`` never clips."""

    def __post_init__(self) -> None:
        rules = get_args(ScalingRule)
        _check(self.lr_scaling in rules, f"lr_scaling {self.lr_scaling!r} is none of {', '.join(rules)}")
        for name in ("lr", "weight_decay"):
            _check(getattr(self, name).extremes[0] >= 0, f"{name} must never be below 0")
        _check(self.teacher_temperature.extremes[0] > 0, "teacher_temperature must always be above 0")
        low, high = self.momentum.extremes
        _check(low >= 0 and high <= 1, "momentum must stay within 0 to 1")
        _check(
            self.freeze_last_layer_steps >= 0,
            f"freeze_last_layer_steps {self.freeze_last_layer_steps} must be at least 0",
        )
        _check(0 < self.layer_decay <= 1, f"layer_decay {self.layer_decay} must be above 0, at most 1")
        _check(
            self.patch_embed_lr_multiplier >= 0,
            f"patch_embed_lr_multiplier {self.patch_embed_lr_multiplier} must be at least 0",
        )
        _check(
            len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas),
            f"betas {self.betas} must be two numbers, each at least 0 and below 1",
        )
        _check(self.clip_norm > 0 and not math.isnan(self.clip_norm), f"clip_norm {self.clip_norm} must be above 0")

    def schedules(self, total_steps: int, batch_size: int, losses: Mapping[str, Schedule]) -> Schedules:
        """Return the schedules of a run.

        Args:
            total_steps: Length of the run.
            batch_size: Images of a step, over all processes and micro-batches.
            losses: Schedules of the losses' weights.
        """
        lr = self.lr.scaled(lr_factor(self.lr_scaling, batch_size))
        return Schedules(total_steps, {**scheduled(self), **losses, "lr": lr}, self.freeze_last_layer_steps)


def lr_factor(rule: ScalingRule, batch_size: int) -> float:
    """Return what learning rates are multiplied with; a batch is all images of a step.

    The factor 4 of ``sqrt_1024`` is DINOv3's.
    """
    return {"none": 1.0, "sqrt_1024": 4.0 * math.sqrt(batch_size / 1024), "linear_256": batch_size / 256}[rule]


def _check(condition: bool, what: str) -> None:
    if not condition:
        raise ConfigurationError(f"optim: {what}")
