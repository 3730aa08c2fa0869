"""Training steps on a GPU: the same losses, checkpoints for any device. Each runs on the CPU, too, to keep it sound."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from pretraining.config import RunConfig
from pretraining.config.recipes import recipe
from pretraining.corpus.dataset import Slices
from pretraining.counter_random import Stream, torch_generator
from pretraining.engine.checkpointing.checkpoint import Checkpoints
from pretraining.engine.loop import _compile_blocks
from pretraining.engine.step import StepResult, TrainingStep
from pretraining.model.config import HeadConfig
from pretraining.model.student_teacher import StudentTeacher
from pretraining.optim import build_optimizer
from pretraining.views import make_views
from pretraining.views.pipeline import Views

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled", "ignore:Detected an existing")

BATCH, SIDE = 4, 96
NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NEEDS_CUDA])])


def small_config() -> RunConfig:
    """The second stage, which has all losses, with a head of few prototypes."""
    config = recipe("smoke", "stage2")
    head = HeadConfig(prototypes=64, bottleneck=32, hidden=64)
    return replace(config, model=replace(config.model, drop_path=0.3, dino_head=head, ibot_head=head))


def views_on(device: str) -> Views:
    noise = torch.rand(BATCH, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    hu = torch.nn.functional.interpolate(noise, (SIDE, SIDE), mode="bilinear")[:, 0] * 2000 - 1000
    places = torch.arange(BATCH)
    slices = Slices(hu.short(), torch.full((BATCH, 2), SIDE), torch.ones(BATCH, 2), places, places)
    return make_views(slices.to(device), small_config().views, seed=0, step=0)


def networks(seed: int = 0) -> StudentTeacher:
    torch.manual_seed(seed)
    model = StudentTeacher(small_config().model, gram=True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("student"):
                parameter += 0.02 * torch.randn_like(parameter)
            if "gamma" in name:
                parameter.fill_(0.3)  # LayerScale as initialised would hide what the blocks do
            if "last_layer" in name:
                parameter *= 10  # and scores as initialised are nearly equal for all prototypes
    return model


def training_step(device: str, model: StudentTeacher, **settings) -> TrainingStep:
    config = small_config()
    model.to(device)
    optimizer = build_optimizer(model.student, config.optim, torch.device(device))
    clip_norm = config.optim.clip_norm
    return TrainingStep(model, model.student, optimizer, losses=config.losses, clip_norm=clip_norm, **settings)


def take(step: TrainingStep, views: Views) -> StepResult:
    """Take the last step of the stage, with stochastic depth and rescaled positions."""
    config = small_config()
    values = config.schedules().at(config.engine.steps - 1)
    return step([views], values, [torch_generator(0, Stream.MODEL, 0, 0)], measure=True)


def losses(result: StepResult) -> dict[str, float]:
    return {"total": result.total.item()} | {name: term.item() for name, term in result.terms.items()}


def state(step: TrainingStep) -> dict[str, dict]:
    return {
        "model": get_model_state_dict(step.model),
        "optimizer": get_optimizer_state_dict(step.model.student, step.optimizer),
    }


@pytest.fixture(scope="module")
def expected() -> StepResult:
    """The step in float32 on the CPU."""
    return take(training_step("cpu", networks()), views_on("cpu"))


@DEVICES
def test_views_are_those_of_the_cpu(device):
    ours, theirs = views_on(device), views_on("cpu")
    for name in ("global_crops", "local_crops", "gram_crops"):
        assert getattr(ours, name).device.type == device
        torch.testing.assert_close(getattr(ours, name).cpu(), getattr(theirs, name), atol=1e-3, rtol=0)
    for name in ("masks", "indices", "weights"):
        assert torch.equal(getattr(ours.masks, name).cpu(), getattr(theirs.masks, name))


@DEVICES
def test_compiled_bfloat16_steps_have_the_losses_of_float32(device, expected):
    model = networks()
    if device == "cuda":
        _compile_blocks(model)  # on the CPU it would take a minute and a C++ compiler
    step = training_step(device, model, autocast=torch.bfloat16)
    before = [parameter.detach().clone() for parameter in model.student.parameters()]
    result = take(step, views_on(device))
    assert result.applied
    assert losses(result) == pytest.approx(losses(expected), rel=0.02)
    assert losses(result) != losses(expected)  # it was not float32
    for part, norm in result.gradient_norms.items():
        assert norm.item() == pytest.approx(expected.gradient_norms[part].item(), rel=0.1)
    assert result.measures.keys() == expected.measures.keys()
    changed = [not torch.equal(a, b) for a, b in zip(before, model.student.parameters(), strict=True)]
    assert all(changed)


@DEVICES
def test_float32_steps_are_those_of_the_cpu(device, expected):
    result = take(training_step(device, networks()), views_on(device))  # a GPU embeds patches in TF32 by default
    assert losses(result) == pytest.approx(losses(expected), rel=5e-3)


@DEVICES
def test_a_checkpoint_goes_on_without_the_device(device, expected, tmp_path):
    step = training_step(device, networks())
    take(step, views_on(device))
    saved = state(step)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, saved, {"scaler": step.scaler.state_dict()})
    checkpoints.wait()

    resumed = training_step("cpu", networks(seed=1))
    loaded = state(resumed)
    Checkpoints(tmp_path).load(1, loaded)
    set_model_state_dict(resumed.model, loaded["model"])
    set_optimizer_state_dict(resumed.model.student, resumed.optimizer, loaded["optimizer"])
    for name, tensor in resumed.model.state_dict().items():
        assert tensor.device.type == "cpu"
        assert torch.equal(tensor, saved["model"][name].cpu()), name
    moments = step.optimizer.state_dict()["state"]
    for number, moment in resumed.optimizer.state_dict()["state"].items():
        for name, value in moment.items():
            assert torch.equal(value.cpu(), moments[number][name].cpu()), name
    assert moments
    result = take(resumed, views_on("cpu"))
    assert result.applied
    assert losses(result) == pytest.approx(losses(take(step, views_on(device))), rel=5e-3)
    assert result.total.item() != expected.total.item()


@DEVICES
def test_float16_steps_are_scaled(device, expected):
    scaler = torch.amp.GradScaler(device, init_scale=2.0**4)
    step = training_step(device, networks(), autocast=torch.float16, scaler=scaler)
    result = take(step, views_on(device))
    assert result.applied
    assert scaler.get_scale() == 2**4
    assert losses(result) == pytest.approx(losses(expected), rel=0.02)
    assert losses(result) != losses(expected)  # it was not float32
    for part, norm in result.gradient_norms.items():
        assert norm.item() == pytest.approx(expected.gradient_norms[part].item(), rel=0.1)


@DEVICES
def test_float16_gradients_that_overflow_change_nothing_but_the_scale(device):
    model = networks()
    scaler = torch.amp.GradScaler(device, init_scale=2.0**100)
    step = training_step(device, model, autocast=torch.float16, scaler=scaler)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = take(step, views_on(device))
    assert not result.applied
    assert scaler.get_scale() == 2**99
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
