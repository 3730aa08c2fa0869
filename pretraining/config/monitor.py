"""How a training run is watched: how often, on what, and when to raise an alarm. Every default has its reason."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from nnunetv2_meddino.errors import ConfigurationError


@dataclass(frozen=True)
class AlarmConfig:
    """When a measure counts as ill and when as well again: (raised below, cleared from).

    Two bounds keep a measure that wavers around one from being reported again and again. All measures are near 0 in a
    collapse. No publication gives bounds: these are set far from healthy runs, so that an alarm means something.

    Attributes:
        target_information: Information of the teacher's targets about their image, as a share of the most that so many
            images can have. 0 is a collapse by definition; five percent is as good as no answer.
        class_rank: Effective rank of the class tokens, from 0 (all point one way) to 1 (all directions used alike).
        patch_spread: One minus the mean cosine similarity of the patches of an image, relative to the first
            measurement of the stage. Gram anchoring exists because it shrinks in long training (DINOv3, section 4.1).
        grace_steps: A measure that was never well is reported from this step of a stage on; random heads need some
            thousand steps to say anything (their last layers are frozen for the first 5,000).
    """

    target_information: tuple[float, float] = (0.05, 0.1)
    class_rank: tuple[float, float] = (0.02, 0.04)
    patch_spread: tuple[float, float] = (0.5, 0.6)
    grace_steps: int = 10_000

    def __post_init__(self) -> None:
        for name in ("target_information", "class_rank", "patch_spread"):
            bounds = getattr(self, name)
            if len(bounds) != 2 or not 0 <= bounds[0] <= bounds[1]:
                raise ConfigurationError(f"alarms: {name} {bounds} must be two numbers from 0 up, the smaller first")
        if self.grace_steps < 0:
            raise ConfigurationError(f"alarms: grace_steps {self.grace_steps} must not be negative")


@dataclass(frozen=True)
class MonitorConfig:
    """What is recorded of a run, and how often in steps.

    Attributes:
        log_every: Losses and throughput; 10 as DINOv3 prints them. Each time costs one wait for the accelerator.
        check_every: Collapse measures; their singular values cost some milliseconds.
        picture_every: Feature pictures: about fifty of a stage of 100,000 steps.
        pictures: Slices in a picture: as many as fit a screen.
        probe_every: Linear probe: often enough to find the best checkpoint, at about a percent of the time.
        probe_dataset: Folder of a labelled dataset in nnU-Net's raw format for the probe; None for no probe. It should
            be none of those that the result will be judged on.
        probe_slices: Labelled slices, a quarter of them for validation; more would change the third digit only.
        image_size: Longer side in pixels of the slices for pictures and probe; 512 is that of most CT.
        seed: Of the choice of labelled slices.
        tensorboard: Whether metrics are shown in TensorBoard too.
        wandb: Project of Weights & Biases that metrics are sent to; None for none.
        alarms: When to raise one.
    """

    log_every: int = 10
    check_every: int = 100
    picture_every: int = 2000
    pictures: int = 8
    probe_every: int = 2500
    probe_dataset: Path | None = None
    probe_slices: int = 64
    image_size: int = 512
    seed: int = 0
    tensorboard: bool = True
    wandb: str | None = None
    alarms: AlarmConfig = field(default_factory=AlarmConfig)

    def __post_init__(self) -> None:
        for name in ("log_every", "check_every", "picture_every", "pictures", "probe_every", "image_size"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"monitor: {name} {getattr(self, name)} must be at least 1")
        if self.probe_slices < 2:
            raise ConfigurationError(f"monitor: probe_slices {self.probe_slices} must be at least 2")
