"""What the loss is made of: weights, temperatures, options. Every default names its source."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from nnunetv2_meddino.errors import ConfigurationError

GRAM_LEVELS = ("image", "batch")
GRAM_NEGATIVES = ("keep", "remove", "remove_teacher")
GRAM_TOKENS = ("all", "masked", "unmasked")


def _check(condition: bool, what: str) -> None:
    if not condition:
        raise ConfigurationError(f"losses: {what}")


@dataclass(frozen=True)
class KoLeoConfig:
    """Which nearest neighbours count; they are looked for in the group of a slice, ``data.group_size``.

    Attributes:
        top_k: Neighbours to average over (DINOv3: 1).
    """

    top_k: int = 1

    def __post_init__(self) -> None:
        _check(self.top_k >= 1, f"koleo top_k {self.top_k} must be at least 1")


@dataclass(frozen=True)
class GramConfig:
    """Which similarities the Gram loss compares. Defaults are those of all DINOv3 configurations.

    Attributes:
        normalize: Patches to length 1, so that similarities are cosines.
        level: ``image``: patches of the same crop; ``batch``: all patches of the micro-batch with one another.
        negatives: What is done about negative similarities:

            - ``keep``: nothing.
            - ``remove``: they count as 0, in student and teacher.
            - ``remove_teacher``: they count as 0 in the teacher alone. DINOv3's code says it removes the student's,
              too, where both are negative, but by then the teacher has none left; this is what it does.
        tokens: ``all`` patches, or those ``masked`` or ``unmasked`` in the student. Other than ``all`` needs the level
            ``batch``, since images differ in how many they have.
    """

    normalize: bool = True
    level: str = "image"
    negatives: str = "keep"
    tokens: str = "all"

    def __post_init__(self) -> None:
        for name, allowed in {"level": GRAM_LEVELS, "negatives": GRAM_NEGATIVES, "tokens": GRAM_TOKENS}.items():
            value = getattr(self, name)
            _check(value in allowed, f"gram {name} {value!r} is none of {', '.join(allowed)}")
        _check(
            self.tokens == "all" or self.level == "batch", f"gram tokens {self.tokens!r} needs the gram level 'batch'"
        )


@dataclass(frozen=True)
class LossConfig:
    """Weights and options of the objective. What changes during training is no part of it: see ``objective``.

    Attributes:
        dino_weight: Of the DINO loss (all DINOv3 configurations).
        ibot_weight: Of the iBOT loss (all DINOv3 configurations).
        koleo_weight: Of the KoLeo loss of each global crop (all DINOv3 configurations).
        student_temperature: Of the student's softmax in DINO and iBOT (DINOv3's code).
        sinkhorn_iterations: Of the teacher's centring (DINOv3's code).
        global_ignore_diagonal: Leave out pairs of a global crop with itself (all DINOv3 configurations).
        koleo: Nearest neighbours.
        gram: similarities.
    """

    dino_weight: float = 1.0
    ibot_weight: float = 1.0
    koleo_weight: float = 0.1
    student_temperature: float = 0.1
    sinkhorn_iterations: int = 3
    global_ignore_diagonal: bool = True
    koleo: KoLeoConfig = field(default_factory=KoLeoConfig)
    gram: GramConfig = field(default_factory=GramConfig)

    def __post_init__(self) -> None:
        for name in ("dino_weight", "ibot_weight", "koleo_weight"):
            _check(0 <= getattr(self, name) < math.inf, f"{name} {getattr(self, name)} must be finite, at least 0")
        _check(self.student_temperature > 0, f"student_temperature {self.student_temperature} must be above 0")
        _check(self.sinkhorn_iterations >= 1, f"sinkhorn_iterations {self.sinkhorn_iterations} must be at least 1")
