"""How a training run is watched: how often, on what, and when to raise an alarm. Every default has its reason."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from nnunetv2_meddino.errors import ConfigurationError

MIN_CORRELATION_SLICES = 24
"""Fewer say nothing."""


@dataclass(frozen=True)
class AlarmConfig:
    """Bounds of the alarms: each measure raises one below the first number and clears it from the second on.

    Two bounds keep a measure that wavers around one from being reported again and again. All measures are near 0 in a
    collapse. No publication gives bounds: these are set far from healthy runs, so that an alarm means something.
    """

    target_information: tuple[float, float] = (0.05, 0.1)
    """Information of the teacher's targets about their image, from 0 (collapse by definition) to 1 (the most that so
    many images can have)."""
    class_rank: tuple[float, float] = (0.02, 0.04)
    """Effective rank of the class tokens, from 0 (all point one way) to 1 (all directions are used equally)."""
    patch_spread: tuple[float, float] = (0.5, 0.6)
    """One minus the mean cosine similarity of the patches of an image, relative to the first measurement of the stage.
    It shrinks in long training, which Gram anchoring is for (DINOv3, section 4.1)."""
    heads_information: float = 0.01
    """Information of the teacher's targets below which heads count as having learned nothing: heads that take hold pass
    it within some hundred steps, and those that do not stay below 0.001."""
    heads_steps: int = 1_000
    """Steps of that, counted from when the last layers are freed, after which it is reported; a shorter stage reports
    it at its end. An alarm of its own, because the usual advice is wrong there."""
    grace_steps: int = 10_000
    """First steps of a stage in which a measure that has never been healthy raises no alarm: random heads need some
    thousand steps to say anything (their last layers are frozen for the first 5,000)."""

    def __post_init__(self) -> None:
        for name in ("target_information", "class_rank", "patch_spread"):
            bounds = getattr(self, name)
            if len(bounds) != 2 or not 0 <= bounds[0] <= bounds[1]:
                raise ConfigurationError(f"alarms: {name} {bounds} must be two numbers from 0 up, the smaller first")
        if not 0 <= self.heads_information < 1:
            raise ConfigurationError(f"alarms: heads_information {self.heads_information} must be from 0 up, below 1")
        if self.heads_steps < 1:
            raise ConfigurationError(f"alarms: heads_steps {self.heads_steps} must be at least 1")
        if self.grace_steps < 0:
            raise ConfigurationError(f"alarms: grace_steps {self.grace_steps} must not be negative")


@dataclass(frozen=True)
class MonitorConfig:
    """What is recorded of a run, and how often."""

    log_every: int = 10
    """Steps between records of losses and throughput (DINOv3 prints every 10). Each waits once for the accelerator."""
    check_every: int = 100
    """Steps between the measures of collapse, whose singular values take some milliseconds."""
    picture_every: int = 2000
    """Steps between feature pictures: fifty in a stage of 100,000 steps."""
    pictures: int = 8
    """Slices in a feature picture: as many as fit a screen."""
    probe_every: int = 2500
    """Steps between linear probes: often enough to find the best checkpoint, for about a percent of the time."""
    probe_dataset: Path | None = None
    """Folder of the labelled dataset of the probe, in nnU-Net's raw format; none: no probe. Use none that results will
    be judged on."""
    probe_slices: int = 64
    """Labelled slices of the probe, a quarter of them for validation; more change only the third digit."""
    correlation_slices: int = 256
    """Slices whose views are compared before the first step. Fewer make the correlation uncertain, and too low."""
    image_size: int = 512
    """Longer side of the slices for pictures and probe in pixels; 512 is that of most CT."""
    seed: int = 0
    """Seed of the choice of labelled slices."""
    tensorboard: bool = True
    """Write the metrics for TensorBoard as well."""
    wandb: str | None = None
    """Weights & Biases project that the metrics are also sent to; none: not sent."""
    alarms: AlarmConfig = field(default_factory=AlarmConfig)
    """Bounds of the alarms: raised below the first number, cleared from the second on."""

    def __post_init__(self) -> None:
        for name in ("log_every", "check_every", "picture_every", "pictures", "probe_every", "image_size"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"monitor: {name} {getattr(self, name)} must be at least 1")
        if self.correlation_slices < MIN_CORRELATION_SLICES:
            raise ConfigurationError(
                f"monitor: correlation_slices {self.correlation_slices} must be at least {MIN_CORRELATION_SLICES}"
            )
        if self.probe_slices < 2:
            raise ConfigurationError(f"monitor: probe_slices {self.probe_slices} must be at least 2")
