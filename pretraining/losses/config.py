"""What the loss is made of: weights, temperatures, options. Every default names its source."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from nnunetv2_meddino.errors import ConfigurationError
from pretraining.schedules import Schedule, scheduled

GramLevel = Literal["image", "batch"]
GramNegatives = Literal["keep", "remove", "remove_teacher"]
GramTokens = Literal["all", "masked", "unmasked"]


def _check(condition: bool, what: str) -> None:
    if not condition:
        raise ConfigurationError(f"losses: {what}")


@dataclass(frozen=True)
class KoLeoConfig:
    """Which nearest neighbours count; they are looked for among the slices of a group, ``data.group_size``."""

    top_k: int = 1
    """Nearest neighbours to average over (DINOv3: 1)."""

    def __post_init__(self) -> None:
        _check(self.top_k >= 1, f"koleo top_k {self.top_k} must be at least 1")


@dataclass(frozen=True)
class GramConfig:
    """Which similarities the Gram loss compares. Defaults are those of all DINOv3 configurations."""

    normalize: bool = True
    """Scale the features of every patch to length 1, so that similarities are cosines."""
    level: GramLevel = "image"
    """``image``: compare patches of the same crop; ``batch``: all patches of the micro-batch with one another."""
    negatives: GramNegatives = "keep"
    """What is done about negative similarities. ``keep``: nothing. ``remove``: they are set to 0 in student and
    teacher. ``remove_teacher``: they are set to 0 in the teacher alone. (DINOv3's code says of this option that it
    removes the student's, too, where both are negative, but by then the teacher has none left; this is what it does.)
    """
    tokens: GramTokens = "all"
    """Patches that are compared: ``all``, or those ``masked`` or ``unmasked`` in the student. The last two need the
    level ``batch``, since images differ in how many they have."""

    def __post_init__(self) -> None:
        for name, kind in {"level": GramLevel, "negatives": GramNegatives, "tokens": GramTokens}.items():
            value, allowed = getattr(self, name), get_args(kind)
            _check(value in allowed, f"gram {name} {value!r} is none of {', '.join(allowed)}")
        _check(
            self.tokens == "all" or self.level == "batch", f"gram tokens {self.tokens!r} needs the gram level 'batch'"
        )


@dataclass(frozen=True)
class LossConfig:
    """Weights and options of the objective; steps of scheduled weights count from 0."""

    dino_weight: float = 1.0
    """Weight of the DINO loss (all DINOv3 configurations)."""
    local_weight: Schedule = Schedule(1.0)
    """Weight of the local crops within the DINO loss (DINOv3's 7B configurations)."""
    ibot_weight: float = 1.0
    """Weight of the iBOT loss (all DINOv3 configurations)."""
    koleo_weight: float = 0.1
    """Weight of the KoLeo loss of each global crop (all DINOv3 configurations)."""
    gram_weight: Schedule = Schedule(0.0)
    """Weight of the Gram loss; there is none in the first stage."""
    student_temperature: float = 0.1
    """Temperature of the student's softmax in DINO and iBOT (DINOv3's code)."""
    sinkhorn_iterations: int = 3
    """Sinkhorn-Knopp iterations of the teacher's centring (DINOv3's code)."""
    global_ignore_diagonal: bool = True
    """Leave out the pairs of a global crop with itself (all DINOv3 configurations)."""
    koleo: KoLeoConfig = field(default_factory=KoLeoConfig)
    """Nearest neighbours of the KoLeo loss."""
    gram: GramConfig = field(default_factory=GramConfig)
    """Similarities of the Gram loss."""

    def __post_init__(self) -> None:
        for name in ("dino_weight", "ibot_weight", "koleo_weight"):
            _check(0 <= getattr(self, name) < math.inf, f"{name} {getattr(self, name)} must be finite, at least 0")
        for name, weight in scheduled(self).items():
            _check(weight.extremes[0] >= 0, f"{name} must never be below 0")
        _check(self.student_temperature > 0, f"student_temperature {self.student_temperature} must be above 0")
        _check(self.sinkhorn_iterations >= 1, f"sinkhorn_iterations {self.sinkhorn_iterations} must be at least 1")
