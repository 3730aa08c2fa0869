"""What is watched during a stage: metrics, collapse, pictures, the linear probe."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from nnunetv2_meddino.networks.vit import VisionTransformer
from pretraining.config import NONE, RunConfig
from pretraining.corpus.dataset import SliceDataset
from pretraining.engine.distributed import Ranks, mean_over_ranks
from pretraining.engine.monitoring.alarms import PATCH_SIMILARITY, Alarms
from pretraining.engine.monitoring.collapse import patch_similarity
from pretraining.engine.monitoring.feature_maps import save_pictures
from pretraining.engine.monitoring.fixed_slices import patch_features, watched_slices
from pretraining.engine.monitoring.linear_probe import linear_probe
from pretraining.engine.monitoring.linear_probe_data import read_probe_data
from pretraining.engine.monitoring.metrics import MetricsLog
from pretraining.engine.monitoring.throughput import Throughput
from pretraining.engine.monitoring.view_correlation import class_tokens, correlation_warning, view_correlation
from pretraining.engine.step import StepResult
from pretraining.engine.teachers import whole_state
from pretraining.model.student_teacher import StudentTeacher
from pretraining.schedules import StepValues
from pretraining.views import Views

logger = logging.getLogger(__name__)


class Monitor:
    """Writes down what happens in a stage. All processes call all methods; the first writes.

    Args:
        config: Of the stage.
        folder: Of the stage.
        dataset: Slices to be watched.
        ranks: This process.
        start_step: First step that will be taken.
        state: Of an earlier process of this stage (``state_dict``), or None.
    """

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        dataset: SliceDataset,
        ranks: Ranks,
        *,
        start_step: int,
        state: Mapping[str, Any] | None,
    ) -> None:
        self.config, self.settings, self.folder, self.ranks = config, config.monitor, folder, ranks
        self.throughput = Throughput(ranks.device, processes=ranks.world_size)
        self.alarms = Alarms(
            self.settings.alarms,
            steps=config.engine.steps,
            freed_after=config.optim.freeze_last_layer_steps,
            koleo=config.losses.koleo_weight > 0,
        )
        if state is not None:
            self.alarms.load_state_dict(state["alarms"], start_step)
        self.log = MetricsLog(
            folder,
            start_step=start_step,
            tensorboard=self.settings.tensorboard,
            wandb=self.settings.wandb,
            enabled=ranks.is_main,
        )
        patch = config.views.masks.patch_size
        intensity, size = config.views.intensity, self.settings.image_size
        self.slices, self.probe_data = [], None
        if ranks.is_main:
            self.slices = watched_slices(dataset, self.settings.pictures, intensity, size=size, patch_size=patch)
            if self.settings.probe_dataset is not None:
                self.probe_data = read_probe_data(
                    self.settings.probe_dataset,
                    slices=self.settings.probe_slices,
                    seed=self.settings.seed,
                    intensity=intensity,
                    size=size,
                    patch_size=patch,
                )

    def measures(self, step: int) -> bool:
        """Tell whether a step is looked at for a collapse."""
        return self._due(step + 1, self.settings.check_every)

    def _due(self, done: int, every: int) -> bool:
        return done % every == 0 or done == self.config.engine.steps

    def baseline(
        self,
        model: StudentTeacher,
        measures: Mapping[str, torch.Tensor],
        views: Iterable[tuple[torch.Tensor, Views]],
        values: StepValues,
    ) -> None:
        """Record the networks before the first step, apart from the metrics of steps, and judge the views.

        Args:
            model: As the stage begins.
            measures: What ``collapse`` says of the first batch in this process.
            views: Rows of the manifest and views of slices as the first steps draw them; used by the first process.
            values: Of the first step.
        """
        found = self._averaged(measures)
        vit = self._teacher_backbone(model)
        if vit is None:
            return
        found |= self._features(0, vit)
        found |= self._views_compared(vit, views, values)
        self.log.baseline("Measured before the first step.", found)
        # random heads may say much by chance: only what is compared with the beginning counts
        self.alarms.check(-1, {PATCH_SIMILARITY: found[PATCH_SIMILARITY]})
        warning = (
            correlation_warning(found, self.config.losses.student_temperature) if self.config.initial == NONE else None
        )
        if warning is not None:
            self.log.event(0, "warning", warning)
            logger.warning("%s", warning)

    def _views_compared(
        self, vit: VisionTransformer, views: Iterable[tuple[torch.Tensor, Views]], values: StepValues
    ) -> dict[str, float]:
        seen = [(rows, class_tokens(vit, some)) for rows, some in views]
        rows, tokens = torch.cat([rows for rows, _ in seen]), torch.cat([tokens for _, tokens in seen], dim=1)
        student = self.config.losses.student_temperature
        largest = self.config.optim.teacher_temperature.extremes[1]
        return view_correlation(rows, tokens, local_weight=values.local_weight) | {
            "views/border": values.teacher_temperature / student,
            "views/border_largest": largest / student,
        }

    def step_done(self, step: int, result: StepResult, values: StepValues, model: StudentTeacher) -> dict[str, float]:
        """Record a step, counted from 0. Returns what was logged; nothing for most steps."""
        settings, done = self.settings, step + 1
        if not result.applied:
            self.log.event(step, "skipped", "The loss or a gradient was not finite: the weights were not changed.")
        metrics: dict[str, float] = {}
        if done % settings.log_every == 0 or done == self.config.engine.steps:
            metrics = self._averaged({"loss": result.total, **_named("loss", result.terms)})
            metrics |= {name: float(norm) for name, norm in _named("gradient_norm", result.gradient_norms).items()}
            metrics |= _named("schedule", vars(values))
            metrics |= self.throughput.values(self.config.engine.steps - done)
        if result.measures:
            metrics |= self._averaged(result.measures)
        with self.throughput.paused():
            metrics |= self._looked_at(done, model)
        if metrics:
            self.log.write(step, metrics)
            for alarm in self.alarms.check(step, metrics):
                self.log.event(step, "alarm", alarm.message)
                logger.warning("step %d: %s", step, alarm.message)
        return metrics

    def _averaged(self, values: Mapping[str, torch.Tensor]) -> dict[str, float]:
        means = mean_over_ranks(torch.stack([value.float() for value in values.values()]))
        return dict(zip(values, means.tolist(), strict=True))

    def _looked_at(self, done: int, model: StudentTeacher) -> dict[str, float]:
        """Compute what needs the teacher's features: similarity of patches, pictures, the probe."""
        settings = self.settings
        probe_every = () if settings.probe_dataset is None else (settings.probe_every,)
        if not any(self._due(done, every) for every in (settings.check_every, settings.picture_every, *probe_every)):
            return {}
        vit = self._teacher_backbone(model)
        return {} if vit is None else self._features(done, vit)

    def _features(self, done: int, vit: VisionTransformer) -> dict[str, float]:
        with torch.no_grad():
            features = patch_features(vit, self.slices, self.ranks.device)
        similarities = [patch_similarity(grid.flatten(0, 1)[None]).mean() for grid in features]
        metrics = {PATCH_SIMILARITY: float(torch.stack(similarities).mean())}
        if self._due(done, self.settings.picture_every):
            save_pictures(self.slices, features, self.folder / "pictures", done, self.config.views.intensity)
        if self.probe_data is not None and self._due(done, self.settings.probe_every):
            metrics |= linear_probe(vit, self.probe_data, self.ranks.device).values()
        return metrics

    def _teacher_backbone(self, model: StudentTeacher) -> VisionTransformer | None:
        """Return the whole teacher backbone on the first process, None on the others."""
        backbone = model.teacher.backbone
        if self.config.engine.strategy != "fsdp" or self.ranks.world_size == 1:
            return backbone if self.ranks.is_main else None
        state = whole_state(backbone)
        if not self.ranks.is_main:
            return None
        plain = VisionTransformer(backbone.config, backbone.in_channels)
        plain.load_state_dict({name: state[name] for name in plain.state_dict()})
        return plain.eval().to(self.ranks.device)

    def state_dict(self) -> dict[str, Any]:
        """Return JSON values from which another process goes on."""
        return {"alarms": self.alarms.state_dict()}

    def close(self) -> None:
        """Close the files."""
        self.log.close()


def _named(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{section}/{name}": value for name, value in values.items()}
