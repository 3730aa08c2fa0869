"""One stage of a training: from its configuration to its last teacher, however often it is interrupted."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from nnunetv2_meddino.errors import TrainingError
from pretraining.config import RunConfig
from pretraining.corpus.dataset import SliceDataset, Slices
from pretraining.corpus.loader import sample_order, slice_loader
from pretraining.corpus.sampler import SampleOrder
from pretraining.counter_random import DRAWS_VERSION, Stream, torch_generator
from pretraining.engine.checkpointing.checkpoint import Checkpoints
from pretraining.engine.distributed import Ranks, neighbours, parallelize
from pretraining.engine.monitoring.flops import step_flops
from pretraining.engine.monitoring.monitor import Monitor
from pretraining.engine.step import PRECISIONS, StepResult, TrainingStep
from pretraining.engine.stop import StopRequest
from pretraining.engine.teachers import save_teacher, teacher_path
from pretraining.groups import Share
from pretraining.model.backbone import SubsetBlock
from pretraining.model.student_teacher import StudentTeacher
from pretraining.optim import build_optimizer, copy_parameters
from pretraining.schedules import StepValues
from pretraining.views import ViewConfig, Views, make_views
from pretraining.views.resolutions import resolution_sequence

logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"

Progress = Callable[[int, int, dict[str, float]], None]
"""Told (finished steps, steps in all, what was logged) after every step."""


@dataclass(frozen=True)
class Stage:
    """A stage that is about to run."""

    config: RunConfig
    """All of its settings."""
    folder: Path
    """For its checkpoints, teachers, metrics and pictures."""
    corpus: Path
    """slices."""
    provenance: dict[str, Any]
    """What its teachers say of themselves besides step and architecture."""


class StageTraining:
    """The networks, optimizer and files of a stage while it runs.

    Args:
        stage: What to run.
        model: Built and filled with what the stage starts from, on the CPU, the same in all processes.
        ranks: This process.
    """

    def __init__(self, stage: Stage, model: StudentTeacher, ranks: Ranks) -> None:
        config = stage.config
        self.stage, self.config, self.ranks = stage, config, ranks
        self.division = config.division(ranks.world_size)
        self.schedules = config.schedules()
        self.model = model.to(ranks.device)
        self.vit = model.student.backbone.config
        for block in model.student.backbone.blocks:
            cast(SubsetBlock, block).checkpointed = config.engine.checkpoint_activations
        if config.engine.compile:
            _compile_blocks(model)
        dtype = PRECISIONS[config.engine.precision]
        sharded = config.engine.strategy == "fsdp" and torch.distributed.is_initialized()
        student = parallelize(model, ranks, config.engine.strategy, dtype)
        self.optimizer = build_optimizer(model.student, config.optim, ranks.device)
        self.step = TrainingStep(
            model,
            student,
            self.optimizer,
            losses=config.losses,
            clip_norm=config.optim.clip_norm,
            autocast=None if sharded else dtype,
            scaler=torch.amp.GradScaler(ranks.device.type, enabled=dtype == torch.float16),
            group=neighbours(ranks, self.division.processes, config.engine.timeout_s),
            parts=self.division.parts,
        )
        self.views = config.all_views()
        shares = config.resolutions or None
        seed = config.data.resolution_seed
        self.resolutions = None if shares is None else resolution_sequence(shares, config.engine.steps, seed)
        self.flops = [self._flops(views) for views in self.views]
        self.checkpoints = Checkpoints(
            stage.folder / CHECKPOINTS,
            keep_last=config.engine.keep_checkpoints,
            timeout_s=config.engine.timeout_s,
        )

    def run(self, stop: StopRequest, progress: Progress) -> bool:
        """Train to the end, or until asked to stop; goes on from the newest checkpoint.

        Returns:
            Whether the stage is finished; if not, its state is saved.

        Raises:
            TrainingError: Losses or gradients were not finite for too many steps in a row.
            MedDINOError: A file could not be read or written.
        """
        start, state = self._resume()
        dataset = SliceDataset(self.stage.corpus)
        monitor = Monitor(
            self.config, self.stage.folder, dataset, self.ranks, start_step=start, state=state and state["monitor"]
        )
        bad = 0 if state is None else state["bad_steps"]
        try:
            if state is None:
                self._measure_start(dataset, monitor)
            for step, slices in self._batches(dataset, start):
                values = self.schedules.at(step)
                index = self._resolution(step)
                result = self._train(step, slices, self.views[index], values, monitor.measures(step))
                monitor.throughput.step(self.config.data.batch_size, self.flops[index])
                bad = 0 if result.applied else bad + 1
                done = step + 1
                if self.config.gram_teacher.refreshes_after(step) and self.model.gram_teacher is not None:
                    copy_parameters(self.model.teacher.backbone, self.model.gram_teacher)
                    monitor.log.event(step, "gram_teacher", "The Gram teacher is now the EMA teacher of this step.")
                progress(done, self.config.engine.steps, monitor.step_done(step, result, values, self.model))
                if bad >= self.config.engine.max_bad_steps:
                    self.checkpoints.wait()  # one that is still being written must not appear in a run that goes on
                    raise TrainingError(self._diagnosis(step, slices, result, dataset))
                stopping = stop.agreed(self.ranks.is_main)
                with monitor.throughput.paused():
                    self._save(done, stopping, {"monitor": monitor.state_dict(), "bad_steps": bad})
                if stopping and done < self.config.engine.steps:
                    monitor.log.event(step, "stopped", f"Stopped after step {done} on request; the state is saved.")
                    return False
        finally:
            monitor.close()
        return True

    def _batches(self, dataset: SliceDataset, start: int) -> Iterator[tuple[int, Slices]]:
        data, total = self.config.data, self.config.engine.steps
        loader = slice_loader(
            dataset,
            batch_size=data.batch_size // self.ranks.world_size,
            seed=data.seed,
            rank=self.ranks.rank,
            world_size=self.ranks.world_size,
            workers=data.workers,
            start_step=start,
            weights=dict(data.source_weights),
            timeout_s=self.config.engine.timeout_s,
        )
        if start < total:
            for step, slices in loader:
                yield step, slices
                if step + 1 == total:
                    return

    def _resolution(self, step: int) -> int:
        return 0 if self.resolutions is None else int(self.resolutions[step])

    def _measure_start(self, dataset: SliceDataset, monitor: Monitor) -> None:
        """Record what all curves begin with; no random number of the training is drawn or moved."""
        data, values = self.config.data, self.schedules.at(0)
        count = data.batch_size // self.ranks.world_size
        order = sample_order(dataset, seed=data.seed, weights=dict(data.source_weights))
        with monitor.throughput.paused():
            slices = _read(dataset, order, 0, self.ranks.rank * count, count)
            views, generators, shares = self._divided(0, slices, self.views[self._resolution(0)])
            measures = self.step.measures(views, values.teacher_temperature, generators[0], shares[0])
            monitor.baseline(self.model, measures, self._first_views(dataset, order), values)

    def _first_views(self, dataset: SliceDataset, order: SampleOrder) -> Iterator[tuple[torch.Tensor, Views]]:
        """Yield the manifest's rows and the views of the first groups of slices, as the first steps draw them."""
        data = self.config.data
        wanted = min(self.config.monitor.correlation_slices, len(dataset.usable_rows()))
        for start in range(0, min(wanted, self.config.engine.steps * data.batch_size), data.group_size):
            step, first = divmod(start, data.batch_size)
            slices = _read(dataset, order, step * data.batch_size, first, data.group_size)
            share = Share.whole(data.group_size)
            yield slices.indices, self._views(slices, share, self.views[self._resolution(step)], step)

    def _train(self, step: int, slices: Slices, config: ViewConfig, values: StepValues, measure: bool) -> StepResult:
        views, generators, shares = self._divided(step, slices, config)
        return self.step(views, values, generators, shares, measure=measure)

    def _divided(
        self, step: int, slices: Slices, config: ViewConfig
    ) -> tuple[Sequence[Views], list[torch.Generator], list[Share]]:
        """Return the micro-batches of this process, what is random in them, and what they are of their groups."""
        size, seed = self.division.micro_batch, self.config.data.seed
        parts = [_part(slices, i * size, (i + 1) * size) for i in range(self.division.micro_batches)]
        firsts = [int(part.global_index[0]) for part in parts]
        shares = [self.division.share(first) for first in firsts]
        pairs = zip(parts, shares, strict=True)
        views = _MicroBatches([partial(self._views, part, share, config, step) for part, share in pairs])
        starts = [first - share.start for first, share in zip(firsts, shares, strict=True)]
        generators = [torch_generator(seed, Stream.MODEL, step, start) for start in starts]
        return views, generators, shares

    def _views(self, part: Slices, share: Share, config: ViewConfig, step: int) -> Views:
        return make_views(part.to(self.ranks.device), config, seed=self.config.data.seed, step=step, share=share)

    def _save(self, done: int, stopping: bool, state: dict[str, Any]) -> None:
        engine, last = self.config.engine, done == self.config.engine.steps
        if done % engine.teacher_every == 0 or last:
            path = teacher_path(self.stage.folder, done)
            provenance = self.stage.provenance | {"step": done}
            save_teacher(path, self.model.teacher, self.vit, provenance, self.ranks)
        if done % engine.checkpoint_every == 0 or last or stopping:
            metadata = state | {"scaler": self.step.scaler.state_dict(), "draws_version": DRAWS_VERSION}
            self.checkpoints.save(done, self._state(), metadata)
        if last or stopping:
            self.checkpoints.wait()

    def _state(self) -> dict[str, Any]:
        if not self.optimizer.state:
            # no step was applied yet: torch makes what there is to read by a step of its own, which Adam would count
            get_optimizer_state_dict(self.model.student, self.optimizer)
            for moments in self.optimizer.state.values():
                moments["step"].zero_()
        return {
            "model": get_model_state_dict(self.model),
            "optimizer": get_optimizer_state_dict(self.model.student, self.optimizer),
        }

    def _resume(self) -> tuple[int, dict[str, Any] | None]:
        """Load the newest checkpoint; returns the first step to take and what was saved beside the tensors."""
        latest = self.checkpoints.latest()
        if latest is None:
            return 0, None
        state = self._state()
        metadata = self.checkpoints.load(latest, state)
        set_model_state_dict(self.model, state["model"])
        set_optimizer_state_dict(self.model.student, self.optimizer, state["optimizer"])
        self.step.scaler.load_state_dict(metadata["scaler"])
        logger.info("going on after step %d of %s", latest, self.stage.folder)
        return latest, metadata

    def _flops(self, views: ViewConfig) -> float:
        patches = (views.global_size // views.masks.patch_size) ** 2
        masked = 2 * patches * views.masks.probability * sum(views.masks.ratio) / 2
        model = self.config.model
        return step_flops(
            self.vit,
            global_size=views.global_size,
            local_size=views.local_size,
            num_local=views.num_local,
            masked_patches=masked,
            dino_head=model.dino_head,
            ibot_head=model.ibot_head,
            gram_size=views.gram_size,
            drop_path=model.drop_path,
        ).total

    def _diagnosis(self, step: int, slices: Slices, result: StepResult, dataset: SliceDataset) -> str:
        terms = ", ".join(f"{name} {value.item():.4g}" for name, value in result.terms.items())
        norms = ", ".join(f"{name} {value.item():.4g}" for name, value in result.gradient_norms.items())
        volumes = sorted({dataset.paths[dataset.volume[row]] for row in slices.indices.tolist()})
        named = ", ".join(volumes[:8]) + (f" and {len(volumes) - 8} more" if len(volumes) > 8 else "")
        broken = [name for name, p in self.model.student.named_parameters() if not torch.isfinite(_own(p)).all()]
        weights = f"weights that are not finite: {', '.join(broken[:4])}" if broken else "all weights are finite"
        return (
            f"The loss or a gradient was not finite for {self.config.engine.max_bad_steps} steps in a row, the last of "
            f"them step {step}. Losses: {terms}. Gradient norms: {norms}; {weights}. The slices of this process came "
            f"from {named}. No such step changed the weights: the checkpoints in {self.stage.folder} are sound. Look "
            "at metrics.jsonl for the first sign; a lower learning rate (--optim.lr) or --engine.precision float32 "
            "tells an unstable training from a fault in the data."
        )


class _MicroBatches(Sequence[Views]):
    """Views that are made when they are asked for, and kept if there is one micro-batch.

    Those of a large batch at a high resolution would take as much memory as the networks; making them twice costs a
    few percent.
    """

    def __init__(self, makers: Sequence[Callable[[], Views]]) -> None:
        kept = makers[0]() if len(makers) == 1 else None
        self._makers = makers if kept is None else [lambda: kept]

    def __len__(self) -> int:
        return len(self._makers)

    def __getitem__(self, number: Any) -> Any:
        return self._makers[number]()


def _read(dataset: SliceDataset, order: SampleOrder, batch: int, first: int, count: int) -> Slices:
    """Read slices from place ``first`` of the batch that begins at sample ``batch``."""
    rows = order.rows(batch + first, count)
    slices = dataset.__getitems__(rows.tolist())
    return replace(slices, global_index=slices.global_index + first)


def _part(slices: Slices, start: int, stop: int) -> Slices:
    return Slices(*(getattr(slices, field.name)[start:stop] for field in fields(slices)))


def _own(parameter: torch.Tensor) -> torch.Tensor:
    return parameter.to_local() if isinstance(parameter, torch.distributed.tensor.DTensor) else parameter


def _compile_blocks(model: StudentTeacher) -> None:
    """Compile each block of all networks: one graph serves all blocks of one kind of crop."""
    torch._dynamo.config.cache_size_limit = 64  # crop sizes times networks; without it stage 3 falls back to eager
    backbones = [model.student.backbone, model.teacher.backbone, model.gram_teacher]
    for backbone in backbones:
        for block in () if backbone is None else backbone.blocks:
            block.compile(dynamic=False)
