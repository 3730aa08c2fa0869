"""A training step on a device that is not the CPU, without one: nothing is left behind, and nothing waits for it."""

from __future__ import annotations

import pytest
import torch

from pretraining.corpus.dataset import Slices
from pretraining.counter_random import Stream, torch_generator
from pretraining.engine import step
from pretraining.losses.config import GramConfig
from pretraining.losses.gram import gram_loss
from pretraining.model.student_teacher import StudentTeacher
from pretraining.optim import build_optimizer
from pretraining.views import make_views
from tests.pretended_cuda import PretendedCuda, pretended_backward, pretended_cuda, to_cuda
from tests.pretraining.training import small_config

BATCH, SIDE = 4, 96


def slices() -> Slices:
    places = torch.arange(BATCH)
    pixels = torch.zeros(BATCH, SIDE, SIDE, dtype=torch.int16)
    return Slices(pixels, torch.full((BATCH, 2), SIDE), torch.ones(BATCH, 2), places, places)


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("stage", ["stage1", "stage2", "stage3"])
def test_step_stays_on_its_device_and_waits_for_it_once(monkeypatch, stage, autocast, micro_batches):
    config = small_config(stage, "--model.untied-local-norm", "true")
    asked = []
    monkeypatch.setattr(step, "all_ranks_true", lambda flag: asked.append(flag.device.type) or True)
    with pretended_cuda():
        model = to_cuda(StudentTeacher(config.model, gram=config.gram_teacher.enabled))
        take = step.TrainingStep(
            model,
            model.student,
            build_optimizer(model.student, config.optim, torch.device("cuda")),
            losses=config.losses,
            clip_norm=config.optim.clip_norm,
            autocast=autocast,
        )
        for number, view in enumerate(config.all_views()):
            views = [make_views(slices().to("cuda"), view, seed=0, step=number) for _ in range(micro_batches)]
            values = config.schedules().at(number)
            generators = [torch_generator(0, Stream.MODEL, number, place) for place in range(micro_batches)]
            with pretended_backward(model.student):
                result = take(views, values, generators, measure=True)
            logged = [result.total, *result.terms.values(), *result.gradient_norms.values(), *result.measures.values()]
            assert {value.device.type for value in logged} == {"cuda"}
    assert asked == ["cuda"] * len(config.all_views())


class WatchedProducts(PretendedCuda):
    """Notes in which precision CUDA would multiply float32 matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.bmm.default, torch.ops.aten.bmm.out) and args[0].dtype == torch.float32:
            self.seen.add(torch.backends.cuda.matmul.fp32_precision)
        return super().__torch_dispatch__(func, types, args, kwargs)


def test_only_the_gram_loss_multiplies_in_tf32():
    with pretended_cuda(WatchedProducts) as products:
        patches = torch.zeros(2, 9, 8, device="cuda", requires_grad=True)
        gram_loss(patches, patches, GramConfig())
        assert products.seen == {"tf32"}
        products.seen.clear()
        make_views(slices().to("cuda"), small_config("stage2").views, seed=0, step=0)
        assert products.seen == {"none"}
