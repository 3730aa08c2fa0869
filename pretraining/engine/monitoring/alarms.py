"""Alarms: a sentence when training collapses or dense features decay, once until it is well again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from pretraining.config.monitor import AlarmConfig

PATCH_SIMILARITY = "collapse/patch_similarity"


class Alarm(NamedTuple):
    """Something is wrong."""

    kind: str
    """The measure that is ill."""
    message: str
    """What is seen, what it usually means, and what to do."""


TEXTS = {
    "target_information": (
        "The teacher's targets hardly depend on the image: they carry {value:.1%} of the information that they could.",
        "The heads have collapsed, to one prototype or to all alike. Usual causes: a learning rate too high, a teacher "
        "momentum too low, a teacher temperature too high, or slices that are almost the same.",
        "Find the fall of collapse/target_information in metrics.jsonl and go on from a checkpoint before it, with "
        "half the learning rate or a longer warm-up.",
    ),
    "class_rank": (
        "The class tokens use {value:.1%} of the directions that they could.",
        "The features collapse into a few dimensions: images become indistinguishable although the loss may look well.",
        "Look at collapse/class_rank in metrics.jsonl. If it falls steadily, go back to a checkpoint before and raise "
        "the weight of KoLeo or lower the learning rate.",
    ),
    "patch_spread": (
        "The patches of an image have become alike: their mean cosine similarity left them {value:.0%} of the spread "
        "that they had when the stage began.",
        "Dense features decay while the class token may still improve. This happens in long training without a Gram "
        "teacher, or with one that is too old or weighs too little.",
        "Compare the pictures. Use the checkpoint before the decay as the end of this stage and as Gram teacher of the "
        "next, or raise the weight of the Gram loss.",
    ),
}


class Alarms:
    """Remembers what is ill, so that it is reported once.

    An alarm is raised where a measure that was well falls below its lower bound, or was never well by ``grace_steps``.
    It can be raised again after the measure has reached the upper bound. NaN counts as ill.

    Args:
        config: The bounds.
    """

    def __init__(self, config: AlarmConfig) -> None:
        self._config = config
        self._well: set[str] = set()
        self._raised: set[str] = set()
        self._first_spread: float | None = None

    def check(self, step: int, measures: Mapping[str, float]) -> list[Alarm]:
        """Return alarms that are new.

        Args:
            step: Counted from the start of the stage.
            measures: By the names that ``collapse`` gives them; of ``collapse/patch_similarity`` the mean over the
                slices, always the same. Measures that are not given keep their state.
        """
        found = []
        for kind, value in self._values(measures).items():
            ill_below, well_from = getattr(self._config, kind)
            if value >= well_from:
                self._well.add(kind)
                self._raised.discard(kind)
                continue
            due = kind in self._well or step >= self._config.grace_steps
            if not value >= ill_below and due and kind not in self._raised:
                self._raised.add(kind)
                found.append(Alarm(kind, " ".join(TEXTS[kind]).format(value=value)))
        return found

    def _values(self, measures: Mapping[str, float]) -> dict[str, float]:
        names = {"target_information": "collapse/target_information", "class_rank": "collapse/class_rank"}
        values = {kind: float(measures[name]) for kind, name in names.items() if name in measures}
        if PATCH_SIMILARITY in measures:
            spread = 1 - float(measures[PATCH_SIMILARITY])
            if self._first_spread is None and math.isfinite(spread):
                self._first_spread = spread
            values["patch_spread"] = spread / max(self._first_spread or 0.0, 1e-6)
        return values

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must hold, as JSON values."""
        return {"well": sorted(self._well), "raised": sorted(self._raised), "first_spread": self._first_spread}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint of the same stage."""
        self._well, self._raised = set(state["well"]), set(state["raised"])
        self._first_spread = state["first_spread"]
