"""Everything that a stage of a training is made of; each part of the package owns its section."""

from __future__ import annotations

from dataclasses import dataclass, field

from nnunetv2_meddino.errors import ConfigurationError
from pretraining.config.engine import DataConfig, EngineConfig, GramTeacherConfig
from pretraining.config.monitor import MonitorConfig
from pretraining.groups import Division
from pretraining.losses.config import LossConfig
from pretraining.model.config import ModelConfig
from pretraining.optim.config import OptimConfig
from pretraining.schedules import Schedules, scheduled
from pretraining.views.config import ViewConfig
from pretraining.views.resolutions import Resolution

STAGES = ("stage1", "stage2", "stage3")
"""Self-distillation, Gram anchoring, high-resolution adaptation."""

PREVIOUS, NONE = "previous", "none"
"""What a stage starts from: the last teacher of the stage before; no teacher, so that its heads are random."""


@dataclass(frozen=True)
class RunConfig:
    """One stage of a training."""

    stage: str = "stage1"
    """Name of the stage, and of its folder in the run; the command line's STAGE decides it."""
    initial: str = NONE
    """Start of backbone and heads: ``none``, the backbone from ``model.weights`` and random heads; ``previous``, the
    last teacher of the stage before in the same run; or the file of a teacher."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The networks."""
    views: ViewConfig = field(default_factory=ViewConfig)
    """The crops of a slice, and what is done to them."""
    resolutions: tuple[Resolution, ...] = ()
    """Crop sizes in pixels that are drawn for every step, each with its share of the steps (0 to 1, together 1); empty:
    always those of ``views``."""
    losses: LossConfig = field(default_factory=LossConfig)
    """The objective."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimizer, schedules and EMA teacher."""
    gram_teacher: GramTeacherConfig = field(default_factory=GramTeacherConfig)
    """Where the Gram teacher comes from, and when it is refreshed."""
    data: DataConfig = field(default_factory=DataConfig)
    """The slices of a step."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """Length, precision, processes and files."""
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    """What is recorded, and how often."""

    def __post_init__(self) -> None:
        if self.stage not in STAGES:
            raise ConfigurationError(f"stage {self.stage!r} is none of {', '.join(STAGES)}")
        if self.stage == STAGES[0] and PREVIOUS in (self.initial, self.gram_teacher.teacher.partition(":")[0]):
            raise ConfigurationError(f"{self.stage} has no stage before it: give the file of a teacher, or none")
        for views in self.all_views():
            if (views.gram_size is None) == self.gram_teacher.enabled:
                raise ConfigurationError(
                    f"views.gram_size is {views.gram_size} and gram_teacher.enabled is {self.gram_teacher.enabled}: a "
                    "Gram teacher needs crops of its own, and they need a Gram teacher"
                )
        if self.data.group_size <= self.losses.koleo.top_k:
            raise ConfigurationError(
                f"data: group_size {self.data.group_size} must be above the number of neighbours that KoLeo looks for, "
                f"{self.losses.koleo.top_k}"
            )
        unfinished = self.schedules().unfinished()
        if unfinished:
            raise ConfigurationError(
                f"the schedules of {', '.join(unfinished)} do not end within the {self.engine.steps} steps of this "
                "stage: they would never reach their values. Shorten them, or train longer."
            )

    def schedules(self) -> Schedules:
        """Return everything that changes from step to step."""
        return self.optim.schedules(self.engine.steps, self.data.batch_size, scheduled(self.losses))

    def division(self, world_size: int) -> Division:
        """Return how processes divide a step.

        Raises:
            ConfigurationError: The batch cannot be divided so.
        """
        division = self.data.division(world_size)
        if self.gram_teacher.enabled and self.losses.gram.level == "batch" and division.micro_batch < division.group:
            raise ConfigurationError(
                f"losses: the gram level 'batch' compares all patches of a group of {division.group} slices, of which "
                f"a process holds {division.micro_batch} at once with {world_size} processes: use fewer processes, "
                "the level 'image', a smaller --data.group-size, or no --data.micro-batch-size"
            )
        return division

    def all_views(self) -> tuple[ViewConfig, ...]:
        """Return the views of every resolution."""
        return tuple(r.applied_to(self.views) for r in self.resolutions) or (self.views,)
