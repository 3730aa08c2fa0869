"""How a training runs: its length, batches, precision, processes and files. Every default names its source."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from nnunetv2_meddino.errors import ConfigurationError
from pretraining.groups import Division

MOST_PROCESSES = 64
"""Processes up to which each holds whole strata of stochastic depth, so that a block has few shapes to compile."""


def _check(condition: bool, what: str) -> None:
    if not condition:
        raise ConfigurationError(what)


@dataclass(frozen=True)
class DataConfig:
    """Which slices a step sees."""

    batch_size: int = 512
    """Slices of a step, over all processes and micro-batches (MedDINOv3)."""
    group_size: int = 64
    """Slices of a group, whatever the number of processes: KoLeo looks for neighbours in it; masks, stochastic depth
    and the scale of the patch coordinates are drawn for it. In the reference a group is what a GPU holds: 64 in
    DINOv3's ViT-L configuration."""
    micro_batch_size: int | None = None
    """Most slices that a process holds at once; none is a group, or the part of one that a process has. A smaller
    number is the same training in less memory, but where a group is several micro-batches, its global crops pass
    through the student once more."""
    workers: int = 2
    """Processes that decompress slices, for each training process. One delivers about 1,900 slices a second."""
    source_weights: tuple[tuple[str, float], ...] = ()
    """Pairs of a source and its relative sampling weight; empty: every slice is equally likely."""
    seed: int = 0
    """Seed of the order of slices, of views, masks, initial weights and stochastic depth."""
    resolution_seed: int = 65537
    """Seed of the sequence of crop sizes (DINOv3's)."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "group_size", "micro_batch_size"):
            value = getattr(self, name)
            _check(value is None or value >= 1, f"data: {name} {value} must be at least 1")
        _check(
            self.batch_size % self.group_size == 0,
            f"data: batch_size {self.batch_size} must be a multiple of group_size {self.group_size}",
        )
        _check(self.workers >= 0, f"data: workers {self.workers} must be at least 0")

    def division(self, world_size: int) -> Division:
        """Return how processes divide a step.

        Raises:
            ConfigurationError: A process would have neither whole groups nor an even part of one.
        """
        if not self._divides(world_size):
            fitting = [str(count) for count in range(1, self.batch_size + 1) if self._divides(count)]
            raise ConfigurationError(
                f"data: a batch of {self.batch_size} slices in groups of {self.group_size} cannot be divided over "
                f"{world_size} processes; it can over {', '.join(fitting)}. Start one of these numbers, or change "
                "--data.batch-size or --data.group-size."
            )
        own = self.batch_size // world_size
        together = min(own, self.group_size)
        limit = min(self.micro_batch_size or together, together)
        micro_batch = next(size for size in range(limit, 0, -1) if together % size == 0)
        return Division(
            group=self.group_size,
            stratum=math.gcd(self.group_size, max(self.batch_size // MOST_PROCESSES, 1)),
            micro_batch=micro_batch,
            micro_batches=own // micro_batch,
            processes=self.group_size // together,
            parts=together // micro_batch,
        )

    def _divides(self, world_size: int) -> bool:
        own, rest = divmod(self.batch_size, world_size)
        return not rest and (own % self.group_size == 0 or self.group_size % own == 0)


@dataclass(frozen=True)
class GramTeacherConfig:
    """Where the Gram teacher comes from and when it is refreshed; steps count from the beginning of the stage."""

    enabled: bool = False
    """Whether there is a Gram teacher."""
    teacher: str = "initial"
    """Its weights: ``initial``, the teacher that this stage starts from; ``previous`` or ``previous:20000``, the last
    teacher of the stage before or that of a step; or a file (``teachers/*.safetensors`` of a run, or an export)."""
    refresh_every: int | None = None
    """Steps between refreshes, which make it a copy of the current EMA teacher; none keeps it as it is."""
    first_refresh: int = 0
    """Earliest step of a refresh."""
    max_refreshes: int | None = None
    """Largest number of refreshes; none is no limit."""

    def __post_init__(self) -> None:
        if self.refresh_every is not None:
            _check(self.refresh_every >= 1, f"gram_teacher: refresh_every {self.refresh_every} must be at least 1")

    def refreshes_after(self, step: int) -> bool:
        """Return whether the Gram teacher is refreshed after a step, counted from 0."""
        if not self.enabled or self.refresh_every is None:
            return False
        done = step + 1
        if done < self.first_refresh or done % self.refresh_every:
            return False
        before = -(-max(self.first_refresh, 1) // self.refresh_every)
        return self.max_refreshes is None or done // self.refresh_every - before < self.max_refreshes


@dataclass(frozen=True)
class EngineConfig:
    """Length of a stage, and how it is computed and saved."""

    steps: int = 100_000
    """Optimizer steps of the stage (MedDINOv3)."""
    precision: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Precision of the networks (DINOv3); ``float16`` has loss scaling. Weights, their averages, losses and the
    optimizer are always float32."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """What several processes do with weights: ``ddp`` copies them, which suits ViT-S and B; ``fsdp`` shards them."""
    compile: bool = True
    """Compile the transformer blocks. The first step of each crop size then takes a minute longer."""
    checkpoint_activations: bool = False
    """Compute activations again in the backward pass: a third more work, far less memory."""
    checkpoint_every: int = 1000
    """Steps between checkpoints (DINOv3's 7B: 1000)."""
    keep_checkpoints: int = 3
    """Number of checkpoints that are kept, the newest (DINOv3)."""
    teacher_every: int = 10_000
    """Steps between the teachers that are kept in ``teachers``. DINOv3 evaluates every 12,500 steps; MedDINOv3's Gram
    teacher is that of step 20,000."""
    max_bad_steps: int = 3
    """Consecutive steps with a loss or gradient that is not finite, after which the run stops (DINOv3)."""
    timeout_s: float = 600.0
    """Seconds that processes wait for each other, and for slices from their workers."""

    def __post_init__(self) -> None:
        for name in ("steps", "checkpoint_every", "keep_checkpoints", "teacher_every", "max_bad_steps"):
            _check(getattr(self, name) >= 1, f"engine: {name} {getattr(self, name)} must be at least 1")
        _check(self.timeout_s > 0, f"engine: timeout_s {self.timeout_s} must be above 0")
