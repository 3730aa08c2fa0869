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

HEADS = "heads"

HEADS_TEXTS = (
    "The teacher's targets are uniform ({value:.2%} of the information that they could carry) {after}: the DINO head "
    "learns nothing, and {training}.",
    "Usual causes: two views of a slice agree too little for the teacher temperature (views/correlation against "
    "views/border in the first line of metrics.jsonl), or class tokens that are all alike (random weights with a "
    "--model.layer-scale of 1e-5, or a KoLeo weight too low). No checkpoint of this stage is better.",
)

REMEDY = (
    "Begin anew in another folder, from random weights with blocks that count from the first step (--model.layer-scale "
    "1), and with a lower teacher temperature (--optim.teacher-temperature 0.015 "
    "--optim.teacher-temperature.start 0.015; 0.015 has worked where 0.04 has not), larger crops (--views.global-scale "
    "0.5,1.0 --views.local-scale 0.2,0.5), weaker jitter (--views.brightness 0.2 --views.contrast 0.2), a KoLeo weight "
    "of 0.1 (--losses.koleo-weight), and for a small corpus fewer prototypes (--model.dino-head.prototypes 256). See "
    '"Heads that learn nothing" in docs/pretraining.md.'
)
"""What to do about heads that learn nothing."""


FEWEST_FREE_STEPS = 50
"""Steps with free last layers that a short stage must have had for its end to say anything."""


class Alarms:
    """Remembers what is ill, so that it is reported once.

    An alarm is raised where a measure that was well falls below its lower bound, or was never well by ``grace_steps``.
    It can be raised again after the measure has reached the upper bound. NaN counts as ill.

    Targets that were never well and say nothing for ``heads_steps`` are reported earlier, with other advice: such heads
    have not collapsed, they never began. The alarm of the grace steps is then held back.

    Args:
        config: The bounds.
        steps: Of the stage.
        freed_after: Steps in which the last layers of the heads are frozen.
        koleo: Whether KoLeo has a weight.
    """

    def __init__(self, config: AlarmConfig, *, steps: int, freed_after: int, koleo: bool) -> None:
        self._config, self._steps, self._freed_after, self._koleo = config, steps, freed_after, koleo
        self._silent_since = 0
        self._well: set[str] = set()
        self._raised: set[str] = set()
        self._first_spread: float | None = None

    def check(self, step: int, measures: Mapping[str, float]) -> list[Alarm]:
        """Return alarms that are new.

        Args:
            step: Counted from the start of the stage; -1 before the first.
            measures: By the names that ``collapse`` gives them; of ``collapse/patch_similarity`` the mean over the
                slices, always the same. Measures that are not given keep their state.
        """
        values = self._values(measures)
        found = self._heads(step + 1, values)
        for kind, value in values.items():
            ill_below, well_from = getattr(self._config, kind)
            if value >= well_from:
                self._well.add(kind)
                self._raised.discard(kind)
                continue
            due = kind in self._well or (step >= self._config.grace_steps and not self._held_back(kind, value))
            if not value >= ill_below and due and kind not in self._raised:
                self._raised.add(kind)
                found.append(Alarm(kind, " ".join(TEXTS[kind]).format(value=value)))
        return found

    def _heads(self, done: int, values: Mapping[str, float]) -> list[Alarm]:
        """Return the alarm of heads that have learned nothing in all this time, if it is new."""
        value = values.get("target_information")
        if value is None:
            return []
        if value >= self._config.heads_information:
            self._silent_since = done
            return []
        if "target_information" in self._well or HEADS in self._raised:
            return []
        free = max(done - self._freed_after, 0)
        silent = done - max(self._freed_after, self._silent_since)
        at_end = done == self._steps < self._freed_after + self._config.heads_steps and free >= FEWEST_FREE_STEPS
        if silent < self._config.heads_steps and not at_end:
            return []
        self._raised.add(HEADS)
        after = f"after {done:,} steps, in {free:,} of which the last layers were free"
        training = "only KoLeo is training the class tokens" if self._koleo else "nothing is training the class tokens"
        texts = " ".join((*HEADS_TEXTS, REMEDY))
        return [Alarm(HEADS, texts.format(value=value, after=after, training=training))]

    def _held_back(self, kind: str, value: float) -> bool:
        """Tell whether a measure that was never well is a matter of the heads' own alarm."""
        return kind == "target_information" and (HEADS in self._raised or not value >= self._config.heads_information)

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
        return {
            "well": sorted(self._well),
            "raised": sorted(self._raised),
            "first_spread": self._first_spread,
            "silent_since": self._silent_since,
        }

    def load_state_dict(self, state: Mapping[str, Any], step: int) -> None:
        """Go on from a checkpoint of the same stage.

        Args:
            state: From ``state_dict``; that of a release without the alarm of the heads lacks its number.
            step: First step that will be taken; such a stage counts from here.
        """
        self._silent_since = state.get("silent_since", step)
        self._well, self._raised = set(state["well"]), set(state["raised"])
        self._first_spread = state["first_spread"]
