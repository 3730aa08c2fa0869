"""How the student is optimised and the teacher follows it. Every default names its source."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import get_args

from nnunetv2_meddino.errors import ConfigurationError
from pretraining.optim.schedules import ScalingRule, Schedule, Schedules, lr_factor


@dataclass(frozen=True)
class OptimConfig:
    """AdamW, gradient clipping, teacher momentum and everything that follows a schedule; steps count from 0.

    Defaults are those of the first of three stages. MedDINOv3's paper gives learning rates and lengths and nothing
    else; what it leaves open has the shape of DINOv3's 7B configuration, scaled to 100,000 steps ("7B" below), or the
    value of the ViT-L configuration that MedDINOv3's author named ("ViT-L").

    Attributes:
        lr: Learning rate (MedDINOv3, stage 1), constant after a linear warm-up (7B).
        lr_scaling: Whether learning rates are for a batch of another size: ``none``, ``sqrt_1024`` or ``linear_256``.
            DINOv3 has ``sqrt_1024``; MedDINOv3 does not say whether its rates are before or after it. ``none`` is the
            smaller step of the two.
        weight_decay: Of AdamW (7B).
        momentum: Share of the old teacher in the new one (7B).
        teacher_temperature: Of the teacher's targets (7B).
        freeze_last_layer_steps: Steps in which the last layers of both heads stay as they are, since heads begin at
            random on a trained backbone (7B's 5 epochs of 1000 steps).
        local_loss_weight: Of the DINO loss of the local crops (7B).
        gram_loss_weight: Of the Gram loss; there is none in the first stage.
        layer_decay: Learning rates shrink by this from block to block, towards the patches (ViT-L).
        patch_embed_lr_multiplier: Of the patch embedding's learning rate, on top of ``layer_decay`` (every DINOv3).
        betas: Of AdamW (ViT-L; 7B has 0.9 and 0.99).
        clip_norm: Largest norm of the gradients of the backbone, and of each head, before they are scaled down to it
            (ViT-L; 7B has 30); ``inf`` never clips.
    """

    lr: Schedule = Schedule(2e-4, warmup_steps=5_000)
    lr_scaling: ScalingRule = "none"
    weight_decay: Schedule = Schedule(0.04)
    momentum: Schedule = Schedule(0.994)
    teacher_temperature: Schedule = Schedule(0.07, start=0.04, warmup_steps=10_000)
    freeze_last_layer_steps: int = 5_000
    local_loss_weight: Schedule = Schedule(1.0)
    gram_loss_weight: Schedule = Schedule(0.0)
    layer_decay: float = 0.9
    patch_embed_lr_multiplier: float = 0.2
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: float = 3.0

    def __post_init__(self) -> None:
        rules = get_args(ScalingRule)
        _check(self.lr_scaling in rules, f"lr_scaling {self.lr_scaling!r} is none of {', '.join(rules)}")
        for name in ("lr", "weight_decay", "local_loss_weight", "gram_loss_weight"):
            _check(min(_levels(getattr(self, name))) >= 0, f"{name} must never be below 0")
        _check(min(_levels(self.teacher_temperature)) > 0, "teacher_temperature must always be above 0")
        _check(
            min(_levels(self.momentum)) >= 0 and max(_levels(self.momentum)) <= 1, "momentum must stay within 0 to 1"
        )
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

    def schedules(self, total_steps: int, batch_size: int) -> Schedules:
        """Return the schedules of a run.

        Args:
            total_steps: Length of the run.
            batch_size: Images of a step, over all processes and micro-batches.
        """
        return Schedules(
            total_steps=total_steps,
            lr=self.lr.scaled(lr_factor(self.lr_scaling, batch_size)),
            weight_decay=self.weight_decay,
            momentum=self.momentum,
            teacher_temperature=self.teacher_temperature,
            local_loss_weight=self.local_loss_weight,
            gram_loss_weight=self.gram_loss_weight,
            freeze_last_layer_steps=self.freeze_last_layer_steps,
        )


def _levels(schedule: Schedule) -> tuple[float, ...]:
    """Return the values between which a schedule moves."""
    start = (schedule.start,) if schedule.warmup_steps else ()
    return (*start, schedule.peak, schedule.last_value)


def _check(condition: bool, what: str) -> None:
    if not condition:
        raise ConfigurationError(f"optim: {what}")
