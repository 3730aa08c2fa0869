"""One training step: teacher, student, losses, gradients, optimizer, moving average."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import cast

import torch
import torch.distributed as dist
from torch import Generator, Tensor, nn

from pretraining.engine.distributed import all_ranks_true, no_sync
from pretraining.engine.monitoring.collapse import class_rank, target_measures
from pretraining.groups import Share
from pretraining.losses import (
    LossConfig,
    Losses,
    Targets,
    koleo_term,
    objective,
    sinkhorn_scaling,
    sinkhorn_targets,
)
from pretraining.losses.dino import GLOBAL_CROPS
from pretraining.model.heads import ProjectionHead
from pretraining.model.student_teacher import Network, StudentOutputs, StudentTeacher
from pretraining.optim.ema import update_ema
from pretraining.optim.optimizer import clip_gradients, set_step
from pretraining.schedules import StepValues
from pretraining.views.pipeline import Views

PRECISIONS = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": None}


@dataclass(frozen=True)
class StepResult:
    """What came of a step."""

    applied: bool
    """Whether the weights were changed; they are not if a loss or a gradient was not finite anywhere."""
    total: Tensor
    """Mean objective of this process' micro-batches, a scalar on the device."""
    terms: dict[str, Tensor]
    """Its terms, likewise."""
    gradient_norms: dict[str, Tensor]
    """Before clipping, of the backbone and of each head."""
    measures: dict[str, Tensor]
    """What ``collapse`` says of the first micro-batch, where it was asked for and the step applied."""


class TrainingStep:
    """Takes micro-batches of views and changes the weights.

    Args:
        model: All networks, sharded if they are to be.
        student: What to call for the student: ``model.student``, or what data parallelism made of it.
        optimizer: Of the student's parameters.
        losses: Constant weights and options of the losses.
        clip_norm: Largest gradient norm of each part of the student.
        autocast: Type in which the networks compute, or None. With FSDP sharding decides, and there is none.
        scaler: Of the loss, for float16.
        group: Processes that share a group of slices; None where each has whole ones.
        parts: Consecutive micro-batches of a process that are of one group.
    """

    def __init__(
        self,
        model: StudentTeacher,
        student: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        losses: LossConfig,
        clip_norm: float,
        autocast: torch.dtype | None = None,
        scaler: torch.amp.GradScaler | None = None,
        group: dist.ProcessGroup | None = None,
        parts: int = 1,
    ) -> None:
        self.model, self.student, self.optimizer, self.losses = model, student, optimizer, losses
        self.group, self.parts = group, parts
        self.clip_norm, self.autocast = clip_norm, autocast
        self.scaler = scaler or torch.amp.GradScaler(enabled=False)

    def __call__(
        self,
        batches: Sequence[Views],
        values: StepValues,
        generators: Sequence[Generator | None],
        shares: Sequence[Share | None] | None = None,
        *,
        measure: bool = False,
    ) -> StepResult:
        """Run one step.

        Args:
            batches: Micro-batches of this process; each is asked for twice, and may be made anew each time.
            values: What the schedules say.
            generators: For each micro-batch the source of what is random in the student.
            shares: What each micro-batch is of its group; by default all of it.
            measure: Look for a collapse.
        """
        targets = self._targets(batches, values.teacher_temperature)
        shares = shares or [None] * len(batches)
        koleo: list[GroupKoLeo | None] = [None] * self.parts
        results: list[Losses] = []
        for number, (views, generator, share) in enumerate(zip(batches, generators, shares, strict=True)):
            target = targets(number)
            if self.parts > 1 and number % self.parts == 0:
                own = range(number, number + self.parts)
                koleo = [*self._group_koleo([(batches[i], generators[i], shares[i]) for i in own])]
            with no_sync(self.student, number + 1 < len(batches)):
                of_group = koleo[number % self.parts]
                outputs, losses = self._losses(views, target, values, generator, share, of_group)
                self.scaler.scale(losses.total / len(batches)).backward()
            if number == 0:
                seen = target.dino, outputs.global_cls.detach()
            results.append(Losses(losses.total.detach(), losses.terms))
        total = torch.stack([losses.total for losses in results]).mean()
        if self.scaler.is_enabled():
            self.scaler.unscale_(self.optimizer)
        norms = clip_gradients(self.model.student, self.clip_norm)
        applied = all_ranks_true(torch.isfinite(torch.stack([total, *norms.values()])).all())
        if applied:
            set_step(self.optimizer, values)
            self.scaler.step(self.optimizer)
            update_ema(self.model.teacher, self.model.student, values.momentum)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        means = {name: torch.stack([losses.terms[name] for losses in results]).mean() for name in results[0].terms}
        measures = _measures(*seen) if measure and applied else {}
        return StepResult(applied, total, means, norms, measures)

    @torch.no_grad()
    def measures(
        self, batches: Sequence[Views], temperature: float, generator: Generator | None, share: Share | None
    ) -> dict[str, Tensor]:
        """Return what ``collapse`` says of the first micro-batch as the networks are; changes nothing.

        Args:
            batches: Micro-batches of this process.
            temperature: The teacher's.
            generator: Of the first micro-batch.
            share: What the first micro-batch is of its group.
        """
        targets, views = self._targets(batches, temperature)(0), batches[0]
        return _measures(targets.dino, self._student_tokens(views, generator, share))

    def _student_tokens(self, views: Views, generator: Generator | None, share: Share | None) -> Tensor:
        """Return the student's class tokens of the global crops, ``(2B, D)``."""
        student, masks = cast(Network, self.model.student), views.masks.masks
        with torch.no_grad(), self._autocast(views.global_crops.device.type):
            return cast(Tensor, student.backbone(views.global_crops, masks, generator=generator, share=share).cls)

    def _losses(
        self,
        views: Views,
        targets: Targets,
        values: StepValues,
        generator: Generator | None,
        share: Share | None = None,
        koleo: GroupKoLeo | None = None,
    ) -> tuple[StudentOutputs, Losses]:
        masks = views.masks
        with self._autocast(views.global_crops.device.type):
            outputs = self.student(views.global_crops, views.local_crops, masks.masks, masks.indices, generator, share)
            gram = None
            if self.model.gram_teacher is not None and views.gram_crops is not None:
                with torch.no_grad():
                    gram = self.model.gram_teacher(views.gram_crops).patches
        losses = objective(
            outputs,
            targets,
            masks.weights,
            config=self.losses,
            values=values,
            gram_patches=gram,
            masks=masks.masks,
            group=self.group,
            koleo=None if koleo is None else koleo.term(outputs.global_cls),
        )
        return outputs, losses

    def _group_koleo(
        self, micro_batches: Sequence[tuple[Views, Generator | None, Share | None]]
    ) -> Iterator[GroupKoLeo]:
        """Return what KoLeo of a group says about each of its micro-batches, whose activations do not fit together.

        Their class tokens do: they are computed without a graph, with the random numbers that come again.
        """
        tokens = []
        for views, generator, share in micro_batches:
            state = None if generator is None else generator.get_state()
            seen = self._student_tokens(views, generator, share)
            if generator is not None and state is not None:
                generator.set_state(state)
            tokens.append(seen.float().unflatten(0, (GLOBAL_CROPS, -1)))
        together = torch.cat(tokens, dim=1).requires_grad_()
        value = koleo_term(together.flatten(0, 1), self.losses, self.group)
        (gradient,) = torch.autograd.grad(value, together)
        for part in (len(tokens) * gradient).chunk(len(tokens), dim=1):
            yield GroupKoLeo(value.detach(), part.flatten(0, 1))

    def _targets(self, batches: Sequence[Views], temperature: float) -> Callable[[int], Targets]:
        """Return what gives the teacher's probabilities of a micro-batch, centred over all of all processes.

        Logits to all prototypes are the largest tensors of a step. With one micro-batch they are kept; with more,
        the narrow vectors before the last layer are, and the logits computed again where they are needed.
        """
        teacher = self.model.teacher
        with self._autocast(next(teacher.parameters()).device.type):
            taught = [teacher.teacher_forward(views.global_crops, views.masks.indices) for views in batches]
        dino = [self._scores(teacher.dino_head, outputs.dino, keep=len(batches) == 1) for outputs in taught]
        ibot = [self._scores(teacher.ibot_head, outputs.ibot, keep=len(batches) == 1) for outputs in taught]
        iterations = self.losses.sinkhorn_iterations
        dino_scaling = sinkhorn_scaling(dino, temperature, iterations)
        ibot_scaling = sinkhorn_scaling(ibot, temperature, iterations)

        def of(number: int) -> Targets:
            return Targets(
                sinkhorn_targets(dino[number](), dino_scaling, temperature),
                sinkhorn_targets(ibot[number](), ibot_scaling, temperature),
            )

        return of

    def _scores(self, head: ProjectionHead, bottleneck: Tensor, *, keep: bool) -> Callable[[], Tensor]:
        def scores() -> Tensor:
            with torch.no_grad(), self._autocast(bottleneck.device.type):
                return head.scores(bottleneck)

        if not keep:
            return scores
        kept = scores()
        return lambda: kept

    def _autocast(self, device_type: str) -> AbstractContextManager:
        return nullcontext() if self.autocast is None else torch.autocast(device_type, self.autocast)


@dataclass(frozen=True)
class GroupKoLeo:
    """KoLeo of a group for one of its micro-batches."""

    value: Tensor
    """Of the process' tokens in the group."""
    gradient: Tensor
    """``(2B, D)`` of the micro-batch' class tokens, times the number of micro-batches in the group."""

    def term(self, global_cls: Tensor) -> Tensor:
        """Return a scalar of this value and this gradient."""
        linear = (global_cls.float() * self.gradient).sum()
        return self.value + linear - linear.detach()


def _measures(targets: Tensor, tokens: Tensor) -> dict[str, Tensor]:
    return target_measures(targets) | {"collapse/class_rank": class_rank(tokens)}
