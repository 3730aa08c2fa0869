"""Values that change from step to step: learning rate, weight decay, momentum, temperature, loss weights.

Two families of curves exist, and both are needed to repeat published runs: the one that DINOv3 inherited from DINOv2
and the one of its 7B training. They look alike and differ at the ends of the warm-up and of the cosine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nnunetv2_meddino.errors import ConfigurationError


@dataclass(frozen=True)
class Schedule:
    """A value for every step, from 0: warm-up from ``start`` to ``peak``, cosine to ``end``, then ``end``.

    ``Schedule(0.04)`` is constant. With W warm-up steps, D decay steps and T steps in all, the families are:

    - ``dinov3`` (the "schedules" of the 7B configurations): the linear warm-up would reach ``peak`` at step W, where
      the cosine begins; the cosine contains both its ends, so ``end`` is reached at step W + D - 1.
    - ``dinov2`` (the default and ViT-L configurations): the linear warm-up reaches ``peak`` at step W - 1 and the
      cosine begins with ``peak`` once more; it would reach ``end`` at step T, one after the last.
    """

    peak: float
    """Value after the warm-up."""
    start: float = 0.0
    """Value at step 0 of the warm-up; without a warm-up it is not used."""
    end: float | None = None
    """Value after the cosine; none is the value after the warm-up, so that nothing changes any more."""
    warmup_steps: int = 0
    """Length W of the warm-up in steps."""
    decay_steps: int | None = None
    """Length D of the cosine in steps; none is all steps after the warm-up. ``dinov3`` only."""
    warmup_shape: Literal["linear", "cosine"] = "linear"
    """``linear``, or ``cosine`` for a half cosine that contains both its ends (the learning rate of DINOv3's third
    stage and the loss weights of its second are such ramps)."""
    family: Literal["dinov3", "dinov2"] = "dinov3"
    """Which curves: those of DINOv3's 7B training, or those that it inherited from DINOv2."""
    trunc_extra: float = 0.0
    """Share by which the cosine is made longer than the run, in whole steps and with both its ends; what is left of it
    is stretched to reach ``end`` at the last step (``schedule_trunc_extra`` of the reference). ``dinov2`` only."""

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
    def extremes(self) -> tuple[float, float]:
        """The smallest and the largest value."""
        ends = (*((self.start,) if self.warmup_steps else ()), self.peak, self.last_value)
        return min(ends), max(ends)

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
            cosine_steps, share = remaining, self._dinov2_cosine(after, remaining)
        else:
            cosine_steps = remaining if self.decay_steps is None else self.decay_steps
            share = _half_cosine(after / max(cosine_steps - 1, 1))
        cosine = self.last_value + (self.peak - self.last_value) * share
        after_warmup = np.where(after < cosine_steps, cosine, self.last_value)
        return np.where(after < 0, self._warm_up(steps), after_warmup)

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


class StepValues(SimpleNamespace):
    """The scheduled values of one step, by the names of their settings, and ``last_layer_lr``.

    ``lr`` and ``weight_decay`` are those before the multipliers of the parameter groups; ``last_layer_lr``, for the
    last layers of both heads, is ``lr``, or 0 while they are frozen.
    """


@dataclass(frozen=True)
class Schedules:
    """All schedules of a run of known length."""

    total_steps: int
    """Length T of the run."""
    by_name: Mapping[str, Schedule]
    """By the names of their settings; the learning rate ``lr`` is already scaled to the batch size."""
    freeze_last_layer_steps: int
    """First steps in which the last layers of both heads stay as they are."""

    def at(self, step: int) -> StepValues:
        """Return the values of a step, counted from 0."""
        values = {name: schedule.at(step, self.total_steps) for name, schedule in self.by_name.items()}
        return StepValues(**values, last_layer_lr=0.0 if step < self.freeze_last_layer_steps else values["lr"])

    def unfinished(self) -> list[str]:
        """Return the names of schedules whose warm-up or cosine, or freeze, does not end within the run.

        A published configuration of a long run, started for a short one, never reaches its Gram weight this way.
        """
        ends = {name: schedule.fixed_steps for name, schedule in self.by_name.items()}
        ends["freeze_last_layer_steps"] = self.freeze_last_layer_steps
        return [name for name, end in ends.items() if end > self.total_steps]


def scheduled(section: Any) -> dict[str, Schedule]:
    """Return the schedules among the settings of a section, by name."""
    settings = {field.name: getattr(section, field.name) for field in fields(section)}
    return {name: value for name, value in settings.items() if isinstance(value, Schedule)}


def _half_cosine(progress: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return 1 at progress 0, falling to 0 at progress 1."""
    return (1 + np.cos(np.pi * progress)) / 2


def _check(condition: bool, what: str) -> None:
    if not condition:
        raise ConfigurationError(f"schedule: {what}")
