"""How a training runs: its length, batches, precision, processes and files. Every default names its source."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
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
    """Which slices a step sees.

    Attributes:
        batch_size: Slices of a step over all processes and micro-batches (MedDINOv3).
        group_size: Slices that are together, whatever the number of processes: KoLeo looks for neighbours among them,
            and masks, stochastic depth and the scale of the patch coordinates are drawn for them. In the reference
            these are the slices of a GPU: 64 in DINOv3's ViT-L configuration.
        micro_batch_size: Most slices that a process holds at once. None: a group, or its part of one. Fewer need less
            memory and are the same training, but a group of several micro-batches takes a second look at its global
            crops.
        workers: Processes that decompress slices, for each training process; one feeds about 1900 slices a second.
        source_weights: (source, weight) pairs: relative sampling weights; empty counts every slice alike.
        seed: Of the order of slices, of all views and masks, of initial weights and stochastic depth.
        resolution_seed: Of the sequence of crop sizes (DINOv3's).
    """

    batch_size: int = 512
    group_size: int = 64
    micro_batch_size: int | None = None
    workers: int = 2
    source_weights: tuple[tuple[str, float], ...] = ()
    seed: int = 0
    resolution_seed: int = 65537

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
                f"{world_size} processes; it can over {', '.join(fitting)}. Start so many, or change "
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
    """Where the Gram teacher comes from and when it is renewed.

    Attributes:
        enabled: Whether there is one.
        teacher: A file of a teacher (``teachers/*.safetensors`` of a run, or an export), or ``initial``: the teacher
            that this stage starts from.
        refresh_every: Steps after which it becomes the current EMA teacher again; None keeps it. Counted from the
            beginning of the stage.
        first_refresh: Earliest step of a refresh.
        max_refreshes: Largest number of refreshes; None is no limit.
    """

    enabled: bool = False
    teacher: str = "initial"
    refresh_every: int | None = None
    first_refresh: int = 0
    max_refreshes: int | None = None

    def __post_init__(self) -> None:
        if self.refresh_every is not None:
            _check(self.refresh_every >= 1, f"gram_teacher: refresh_every {self.refresh_every} must be at least 1")

    def refreshes_after(self, step: int) -> bool:
        """Tell whether the Gram teacher is renewed once a step, counted from 0, is done."""
        if not self.enabled or self.refresh_every is None:
            return False
        done = step + 1
        if done < self.first_refresh or done % self.refresh_every:
            return False
        before = -(-max(self.first_refresh, 1) // self.refresh_every)
        return self.max_refreshes is None or done // self.refresh_every - before < self.max_refreshes


@dataclass(frozen=True)
class EngineConfig:
    """Length of a stage, and how it is computed and saved.

    Attributes:
        steps: Optimizer steps of the stage (MedDINOv3).
        precision: ``bfloat16``, ``float16`` (with loss scaling) or ``float32`` for networks; weights, their averages,
            losses and the optimizer are float32 (DINOv3).
        strategy: ``ddp`` or ``fsdp`` for more than one process; DDP suits S and B, whose weights fit many times.
        compile: Compile the transformer blocks; the first step of each crop size takes a minute longer.
        checkpoint_activations: Compute blocks again in the backward pass, for a third more work and far less memory.
        checkpoint_every: Steps between checkpoints (DINOv3's 7B: 1000).
        keep_checkpoints: Newest checkpoints that are kept (DINOv3).
        teacher_every: Steps between teachers that are exported to ``teachers`` and kept; DINOv3 evaluates every
            12,500, and the Gram teacher is one of 20,000 (MedDINOv3).
        max_bad_steps: Steps with a loss or gradient that is not finite, in a row, after which the run stops (DINOv3).
        timeout_s: How long processes wait for each other, and for a batch of slices from their workers.
    """

    steps: int = 100_000
    precision: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    strategy: Literal["ddp", "fsdp"] = "ddp"
    compile: bool = True
    checkpoint_activations: bool = False
    checkpoint_every: int = 1000
    keep_checkpoints: int = 3
    teacher_every: int = 10_000
    max_bad_steps: int = 3
    timeout_s: float = 600.0

    def __post_init__(self) -> None:
        for name in ("steps", "checkpoint_every", "keep_checkpoints", "teacher_every", "max_bad_steps"):
            _check(getattr(self, name) >= 1, f"engine: {name} {getattr(self, name)} must be at least 1")
        _check(self.timeout_s > 0, f"engine: timeout_s {self.timeout_s} must be above 0")


@dataclass(frozen=True)
class InitialConfig:
    """What a stage starts from.

    Attributes:
        teacher: Teacher of an earlier stage (``teachers/*.safetensors``), for backbone and both heads of student and
            teacher; None starts from ``model.weights`` with random heads.
    """

    teacher: Path | None = None
