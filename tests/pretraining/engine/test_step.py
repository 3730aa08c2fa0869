"""Full training steps against the golden ones: losses, gradients, and all networks afterwards."""

from __future__ import annotations

import pytest
import torch

from pretraining.config import GramTeacherConfig
from pretraining.engine.step import TrainingStep
from pretraining.losses import LossConfig
from pretraining.optim import build_optimizer, copy_parameters
from tests.pretraining.golden import native_backbone, under
from tests.pretraining.golden_training import STEPS, GoldenTraining, require_close

RUNS = ["stage1", "stage2_gram"]
TERMS = {"dino_local": "dino_local_crops_loss", "dino_global": "dino_global_crops_loss", "koleo": "koleo_loss"}
TERMS |= {"ibot": "ibot_loss", "gram": "gram_loss"}


def training_step(training: GoldenTraining, **settings) -> TrainingStep:
    model = training.model()
    optimizer = build_optimizer(model.student, training.optim, torch.device("cpu"))
    settings = {"losses": LossConfig(), "clip_norm": training.optim.clip_norm} | settings
    return TrainingStep(model, model.student, optimizer, **settings)


@pytest.mark.parametrize("run", RUNS)
def test_three_steps_equal_golden(run):
    training = GoldenTraining(run)
    step = training_step(training)
    refresh = GramTeacherConfig(True, refresh_every=2, first_refresh=2, max_refreshes=1)
    for number in range(STEPS):
        logged = training.steps[number]
        result = step([training.views(number)], training.values(number), [None])
        assert result.applied
        assert result.total.item() == pytest.approx(logged["total_loss"], rel=1e-5)
        for ours, theirs in TERMS.items():
            if theirs in logged["losses"]:
                assert result.terms[ours].item() == pytest.approx(logged["losses"][theirs], rel=1e-5), ours
        for part, norm in logged["grad_norm_before_clip"].items():
            assert result.gradient_norms[part].item() == pytest.approx(norm, rel=1e-4)
        if run == "stage2_gram" and refresh.refreshes_after(number):
            copy_parameters(step.model.teacher.backbone, step.model.gram_teacher)
            assert logged["gram_teacher_updated_after_step"]
    final = training.tensors["final_state"]
    require_close(step.model.student, under(final, "student."), 1e-5)
    require_close(step.model.teacher, under(final, "teacher."), 1e-5)
    if run == "stage2_gram":
        ours = step.model.gram_teacher.state_dict()
        for name, expected in native_backbone(under(final, "gram_teacher.backbone."))[0].items():
            torch.testing.assert_close(ours[name], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("run", RUNS)
def test_first_gradients_equal_golden(run):
    training = GoldenTraining(run)
    step = training_step(training)
    views, values = training.views(0), training.values(0)
    _, losses = step._losses(views, step._targets([views], values.teacher_temperature)(0), values, None)
    losses.total.backward()
    ours = {name: p.grad for name, p in step.model.student.named_parameters()}
    expected = under(training.tensors["grads_step0"], "grad_step0.")
    checked = 0
    for name, gradient in expected.items():
        native = name.replace("storage_tokens", "reg_token").replace("ls1.gamma", "gamma_1")
        native = native.replace("ls2.gamma", "gamma_2")
        if native.endswith("attn.qkv.bias"):
            q, _, v = gradient.chunk(3)
            pairs = [(native.replace("qkv.bias", f"{n}_bias"), g) for n, g in (("q", q), ("v", v))]
        else:
            pairs = [(native, gradient)]
        for key, value in pairs:
            torch.testing.assert_close(ours[key], value, atol=2e-5, rtol=0, msg=key)
            checked += 1
    assert checked == len(ours)
