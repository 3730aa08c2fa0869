"""What a reproduction trains: its rows, on how many labelled cases, how often, how large."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nnunetv2_meddino.errors import DataError
from nnunetv2_meddino.trainers.fine_tuning import FROZEN, FULL, LAYER_DECAY, LORA

STAGES = ("stage1", "stage2", "stage3")
FOUR_BLOCKS, LAST_BLOCK = "MedDINOv3Trainer_demo", "MedDINOv3LastBlockTrainer_demo"


@dataclass(frozen=True)
class Row:
    """One line of the tables: a network, what it starts from, and how it is fine-tuned."""

    name: str
    """Also of its plans: what nnU-Net tells the results of two rows apart by."""
    title: str
    """In the report."""
    stage: str | None
    """Whose last teacher it starts from; None: random weights."""
    trainer: str = FOUR_BLOCKS
    """Reads the tokens of four blocks, or of the last."""
    high_resolution: bool = True
    """Whether slices have the study's higher number of pixels."""
    fine_tuning: str = FULL
    """``MEDDINO_FINETUNE``."""
    few_labels: bool = False
    """Whether it is also trained on fewer cases than there are."""

    @property
    def plans(self) -> str:
        """Name of its plans."""
        return f"{self.name}Plans"


SCRATCH = Row("Scratch", "random weights", None, few_labels=True)
PRETRAINED = Row("Stage3", "after stage 3", STAGES[2], few_labels=True)


@dataclass(frozen=True)
class Study:
    """A reproduction."""

    recipe: str
    """Of ``meddino-pretrain train``."""
    rows: tuple[Row, ...]
    """The first is what the others are compared with; the second is trained beside it, the others after them."""
    few: tuple[int, ...]
    """Numbers of labelled cases for the rows of few labels; all rows are also trained on all."""
    seeds: int
    """Trainings of a row, each on another fold."""
    low_px: int
    """Side of a patch in pixels at the lower resolution; the field of view is the same at both."""
    high_px: int
    """At the higher one."""
    batch_size: int
    """Slices of a training step."""
    pretraining: tuple[str, ...] = ()
    """Further arguments of ``meddino-pretrain train all``."""

    def folds(self, cases: int) -> dict[str, list[int]]:
        """Return numbers of nnU-Net's folds by the name of how many labelled cases they train on.

        Args:
            cases: Labelled training cases of the dataset.
        """
        most = cases - -(-cases // self.seeds)
        names = [_label(count) for count in self.few if count < most] + [ALL]
        return {name: [number * self.seeds + seed for seed in range(self.seeds)] for number, name in enumerate(names)}

    def parts(self) -> list[tuple[int, int]]:
        """Return how many rows and seeds are reported on, each part with more than the one before.

        The first two rows have all their seeds before another row has one: what they are about is known first.
        """
        first = min(2, len(self.rows))
        seeds = [(first, seeds) for seeds in range(1, self.seeds + 1)]
        return seeds + [(rows, self.seeds) for rows in range(first + 1, len(self.rows) + 1)]

    def splits(self, cases: Sequence[str]) -> list[dict[str, list[str]]]:
        """Return the content of ``splits_final.json``: fold ``n * seeds + s`` trains on the n-th number of cases.

        The cases are divided into as many parts as there are seeds; seed s is validated on part s, whatever it is
        trained on, so that each case counts once with each number of cases. Fewer cases are the first ones of more.

        Args:
            cases: Labelled training cases.

        Raises:
            DataError: They are too few to divide.
        """
        if len(cases) < self.seeds:
            msg = f"{len(cases)} labelled cases cannot be divided into {self.seeds} parts. Take a larger dataset."
            raise DataError(msg)
        order = np.random.default_rng(SPLIT_SEED).permutation(sorted(cases)).tolist()
        parts = [order[seed :: self.seeds] for seed in range(self.seeds)]
        found = []
        for name in self.folds(len(cases)):
            for seed, held_out in enumerate(parts):
                others = [case for case in order if case not in held_out]
                others = np.random.default_rng([SPLIT_SEED, seed]).permutation(others).tolist()
                trained = others if name == ALL else others[: int(name.split()[0])]
                found.append({"train": sorted(trained), "val": sorted(held_out)})
        return found

    def plans_of(self, row: Row, plans: Mapping[str, Any]) -> dict[str, Any]:
        """Return the plans of a row: those of the dataset under another name, whose data is the same.

        Args:
            row: Of the study.
            plans: Of the dataset, with both resolutions.
        """
        configuration = self.configuration(row)
        configurations = plans["configurations"]
        changed = {**configurations[configuration], "batch_size": self.batch_size}
        return {**plans, "plans_name": row.plans, "configurations": {**configurations, configuration: changed}}

    def configuration(self, row: Row) -> str:
        """Return the name of a row's configuration."""
        return f"2d_{self.high_px if row.high_resolution else self.low_px}"


ALL = "all"
SPLIT_SEED = 0

STUDIES = {
    "small": Study(
        recipe="small",
        rows=(
            SCRATCH,
            PRETRAINED,
            Row("ScratchLastBlock", "random weights, last block", None, LAST_BLOCK),
            Row("LastBlock", "after stage 3, last block", STAGES[2], LAST_BLOCK),
            Row("LowResolution", "after stage 3, low resolution", STAGES[2], high_resolution=False),
            Row("Stage1", "after stage 1", STAGES[0]),
            Row("Stage2", "after stage 2", STAGES[1]),
            Row("Frozen", "after stage 3, frozen", STAGES[2], fine_tuning=FROZEN, few_labels=True),
            Row("ScratchFrozen", "random weights, frozen", None, fine_tuning=FROZEN, few_labels=True),
            Row("Lora", "after stage 3, adapters", STAGES[2], fine_tuning=LORA, few_labels=True),
            Row("ScratchLora", "random weights, adapters", None, fine_tuning=LORA, few_labels=True),
            Row("LayerDecay", "after stage 3, layer decay", STAGES[2], fine_tuning=LAYER_DECAY, few_labels=True),
        ),
        few=(1, 2, 4),
        seeds=5,
        low_px=112,
        high_px=224,
        batch_size=6,
    )
}
"""Reproductions by the name that the command takes."""


def _label(count: int) -> str:
    return f"{count} case{'s' if count > 1 else ''}"
