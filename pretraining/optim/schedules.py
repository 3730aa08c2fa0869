"""Values that change from step to step: learning rate, weight decay, momentum, temperature, loss weights.

Two families of curves exist, and both are needed to repeat published runs: the one that DINOv3 inherited from DINOv2
and the one of its 7B training. They look alike and differ at the ends of the warm-up and of the cosine.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from nnunetv2_meddino.errors import ConfigurationError

ScalingRule = Literal["none", "sqrt_1024", "linear_256"]


@dataclass(frozen=True)
class Schedule:
    """A value for every step, from 0: warm-up from ``start`` to ``peak``, cosine to ``end``, then ``end``.

    ``Schedule(0.04)`` is constant. With W warm-up steps, D decay steps and T steps in all, the families are:

    - ``dinov3`` (the "schedules" of the 7B configurations): the linear warm-up would reach ``peak`` at step W, where
      the cosine begins; the cosine contains both its ends, so ``end`` is reached at step W + D - 1.
    - ``dinov2`` (the default and ViT-L configurations): the linear warm-up reaches ``peak`` at step W - 1 and the
      cosine begins with ``peak`` once more; it would reach ``end`` at step T, one after the last.

    Attributes:
        peak: Value after the warm-up.
        start: Value at step 0 of a warm-up; without a warm-up it is not used.
        end: Value after the cosine; None is ``peak``, so that nothing changes after the warm-up.
        warmup_steps: Length W of the warm-up.
        decay_steps: Length D of the cosine; None is all steps after the warm-up. ``dinov3`` only.
        warmup_shape: ``linear``, or ``cosine`` for a half cosine that contains both its ends (the learning rate of
            DINOv3's third stage and the loss weights of its second are such ramps).
        family: ``dinov3`` or ``dinov2``.
        trunc_extra: Share by which the cosine is made longer than the run, in whole steps and with both its ends; what
            is left of it is stretched to reach ``end`` at the last step. ``dinov2`` only, where its configuration calls
            it ``schedule_trunc_extra``.
    """

    MAIN_FIELD: ClassVar[str] = "peak"
    """A plain number in a file or on the command line is this one."""

    peak: float
    start: float = 0.0
    end: float | None = None
    warmup_steps: int = 0
    decay_steps: int | None = None
    warmup_shape: Literal["linear", "cosine"] = "linear"
    family: Literal["dinov3", "dinov2"] = "dinov3"
    trunc_extra: float = 0.0

    def __post_init__(self) -> None:
        _check(self.warmup_steps >= 0, f"warmup_steps {self.warmup_steps} must be at least 0")
        _check(self.decay_steps is None or self.decay_steps >= 0, f"decay_steps {self.decay_steps} must be at least 0")
        _check(self.warmup_shape in ("linear", "cosine"), f"warmup_shape {self.warmup_shape!r} is not linear or cosine")
        _check(self.family in ("dinov3", "dinov2"), f"family {self.family!r} is not dinov3 or dinov2")
        _check(self.trunc_extra >= 0, f"trunc_extra {self.trunc_extra} must be at least 0")
        if self.family == "dinov2":
            _check(self.decay_steps is None, "decay_steps cannot be chosen in the family dinov2; leave it out")
        else:
            _check(self.trunc_extra == 0, "trunc_extra belongs to the family dinov2; leave it out")

    @property
    def last_value(self) -> float:
        """The value that the cosine leads to."""
        return self.peak if self.end is None else self.end

    def scaled(self, factor: float) -> Schedule:
        """Return the schedule with its learning rates multiplied as DINOv3 multiplies them.

        ``start`` never changes; ``end`` does in the family ``dinov3`` only (where it follows ``peak`` it still does).
        """
        scale_end = self.end is not None and self.family == "dinov3"
        return replace(self, peak=self.peak * factor, end=self.last_value * factor if scale_end else self.end)

    @property
    def fixed_steps(self) -> int:
        """Steps of warm-up and cosine that do not depend on the length of the run."""
        return self.warmup_steps + (self.decay_steps or 0)

    def values(self, total_steps: int) -> NDArray[np.float64]:
        """Return the values of all steps: ``(total_steps,)``."""
        return self._evaluate(np.arange(total_steps), total_steps)

    def at(self, step: int, total_steps: int) -> float:
        """Return the value of one step; beyond the last it is ``end``."""
        return float(self._evaluate(np.array([step]), total_steps)[0])

    def _evaluate(self, steps: NDArray[np.int64], total_steps: int) -> NDArray[np.float64]:
        after = steps - self.warmup_steps
        remaining = max(total_steps - self.warmup_steps, 0)
        if self.family == "dinov2":
            decay, share = remaining, self._dinov2_cosine(after, remaining)
        else:
            decay = remaining if self.decay_steps is None else self.decay_steps
            share = _half_cosine(after / max(decay - 1, 1))
        decaying = self.last_value + (self.peak - self.last_value) * share
        rested = np.where(after < decay, decaying, self.last_value)
        return np.where(after < 0, self._warm_up(steps), rested)

    def _dinov2_cosine(self, after: NDArray[np.int64], length: int) -> NDArray[np.float64]:
        """Return 1 at the first step after the warm-up, falling towards 0."""
        if self.trunc_extra == 0 or length < 2:  # one step cannot be both peak and end
            return _half_cosine(after / max(length, 1))
        intervals = max(int((1 + self.trunc_extra) * length) - 1, 1)
        last = _half_cosine(np.array((length - 1) / intervals))
        return (_half_cosine(after / intervals) - last) / (1 - last)

    def _warm_up(self, steps: NDArray[np.int64]) -> NDArray[np.float64]:
        if self.warmup_shape == "cosine":
            return self.peak + (self.start - self.peak) * _half_cosine(steps / max(self.warmup_steps - 1, 1))
        length = self.warmup_steps - 1 if self.family == "dinov2" else self.warmup_steps
        return self.start + (self.peak - self.start) * (steps / max(length, 1))


@dataclass(frozen=True)
class StepValues:
    """What the schedules say for one step.

    Attributes:
        lr: Learning rate, before the multipliers of the parameter groups.
        last_layer_lr: That of the heads' last layers, 0 while they are frozen.
        weight_decay: Before the multipliers of the parameter groups.
        momentum: Share of the old teacher in the new one.
        teacher_temperature: Of the teacher's targets.
        local_loss_weight: Of the DINO loss of the local crops.
        gram_loss_weight: Of the Gram loss.
    """

    lr: float
    last_layer_lr: float
    weight_decay: float
    momentum: float
    teacher_temperature: float
    local_loss_weight: float
    gram_loss_weight: float


@dataclass(frozen=True)
class Schedules:
    """All schedules of a run of known length and batch size; ``OptimConfig.schedules`` makes it.

    Attributes:
        total_steps: Length T of the run.
        lr: Learning rate, already scaled to the batch size.
        weight_decay: As in ``StepValues``, like the rest.
        momentum: See there.
        teacher_temperature: See there.
        local_loss_weight: See there.
        gram_loss_weight: See there.
        freeze_last_layer_steps: First steps in which the last layers of both heads stay as they are.
    """

    total_steps: int
    lr: Schedule
    weight_decay: Schedule
    momentum: Schedule
    teacher_temperature: Schedule
    local_loss_weight: Schedule
    gram_loss_weight: Schedule
    freeze_last_layer_steps: int

    def at(self, step: int) -> StepValues:
        """Return the values of a step, counted from 0."""
        lr = self.lr.at(step, self.total_steps)
        return StepValues(
            lr=lr,
            last_layer_lr=0.0 if step < self.freeze_last_layer_steps else lr,
            weight_decay=self.weight_decay.at(step, self.total_steps),
            momentum=self.momentum.at(step, self.total_steps),
            teacher_temperature=self.teacher_temperature.at(step, self.total_steps),
            local_loss_weight=self.local_loss_weight.at(step, self.total_steps),
            gram_loss_weight=self.gram_loss_weight.at(step, self.total_steps),
        )

    def unfinished(self) -> list[str]:
        """Return the names of schedules whose warm-up or cosine, or freeze, does not end within the run.

        A published configuration of a long run, started for a short one, never reaches its Gram weight this way.
        """
        ends = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "total_steps"}
        steps = {name: end.fixed_steps if isinstance(end, Schedule) else end for name, end in ends.items()}
        return [name for name, end in steps.items() if end > self.total_steps]


def lr_factor(rule: ScalingRule, batch_size: int) -> float:
    """Return what learning rates are multiplied with.

    Args:
        rule: ``none``; ``sqrt_1024``: 4 sqrt(batch / 1024), the factor 4 being DINOv3's; ``linear_256``: batch / 256.
        batch_size: Images of a step, over all processes and micro-batches.
    """
    return {"none": 1.0, "sqrt_1024": 4.0 * float(np.sqrt(batch_size / 1024)), "linear_256": batch_size / 256}[rule]


def _half_cosine(progress: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return 1 at progress 0, falling to 0 at progress 1."""
    return (1 + np.cos(np.pi * progress)) / 2


def _check(condition: bool, what: str) -> None:
    if not condition:
        raise ConfigurationError(f"schedule: {what}")
