import json
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pretraining.losses import GramConfig, KoLeoConfig, LossConfig, Targets, objective
from pretraining.losses.objective import weighted_sum
from pretraining.schedules import StepValues
from tests.conftest import shared_path

RUNS = ["stage1", "stage2_gram"]
STEPS = range(3)
NAMES = {
    "dino_local": "dino_local_crops_loss",
    "dino_global": "dino_global_crops_loss",
    "koleo": "koleo_loss",
    "ibot": "ibot_loss",
    "gram": "gram_loss",
}


class Outputs(NamedTuple):
    global_cls: Tensor
    patches: Tensor
    dino_global: Tensor
    dino_local: Tensor
    ibot: Tensor


def golden(run, name):
    return load_file(shared_path(f"golden/ssl/{run}/{name}.safetensors"))


def golden_step(run, step):
    record = json.loads(shared_path(f"golden/ssl/{run}/steps.json").read_text())[step]
    losses = record["losses"]
    terms = {ours: torch.tensor(losses[theirs]) for ours, theirs in NAMES.items() if theirs in losses}
    weights = StepValues(
        local_weight=losses.get("dino_local_loss_weight", 1.0), gram_weight=losses.get("gram_loss_weight", 0.0)
    )
    return terms, weights, torch.tensor(record["total_loss"])


def arguments(run):
    """The objective's arguments in the first golden step."""
    tensors, batch = golden(run, "intermediates_step0"), golden(run, "batches")
    crops = {name: tensor.flatten(0, 1) for name, tensor in tensors.items() if tensor.ndim > 2}
    student = Outputs(
        crops["student_global.cls_pre_head"],
        crops["student_global.patch_pre_head"],
        crops["student_global.cls_after_head"],
        crops["student_local.cls_after_head"],
        tensors["student_global.masked_patch_after_head"],
    )
    targets = Targets(crops["teacher.cls_centered"], tensors["teacher.masked_patch_centered"])
    return {
        "student": Outputs(*[x.clone().requires_grad_() for x in student]),
        "targets": targets,
        "patch_weights": batch["step0/masks_weight"],
        "config": LossConfig(),
        "values": golden_step(run, 0)[1],
        "gram_patches": tensors.get("gram.teacher_patches"),
        "masks": batch["step0/collated_masks"],
    }


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("step", STEPS)
def test_terms_add_up_to_the_total_of_the_reference(run, step):
    terms, weights, total = golden_step(run, step)
    num_local = json.loads(shared_path(f"golden/ssl/{run}/config.json").read_text())["config"]["crops"][
        "local_crops_number"
    ]
    torch.testing.assert_close(weighted_sum(terms, num_local, LossConfig(), weights), total, rtol=1e-5, atol=0)


def test_every_weight_is_that_of_its_term():
    terms = {name: torch.tensor(10.0**place) for place, name in enumerate(NAMES)}
    config = LossConfig(dino_weight=2.0, koleo_weight=3.0, ibot_weight=4.0)
    total = weighted_sum(terms, 8, config, StepValues(local_weight=0.5, gram_weight=5.0))
    assert total.item() == pytest.approx(2 * (8 / 9 * 0.5 * 1 + 1 / 9 * 10) + 3 * 2 * 100 + 4 * 1000 + 5 * 10000)


@pytest.mark.parametrize("run", RUNS)
def test_a_step_has_the_terms_and_the_total_of_the_reference(run):
    terms, _, total = golden_step(run, 0)
    given = arguments(run)
    losses = objective(**given)
    assert losses.terms.keys() == terms.keys()
    for name, term in terms.items():
        torch.testing.assert_close(losses.terms[name], term, rtol=1e-5, atol=0)
        assert not losses.terms[name].requires_grad
    torch.testing.assert_close(losses.total.detach(), total, rtol=1e-5, atol=0)
    losses.total.backward()
    for name, output in given["student"]._asdict().items():
        needed = name != "patches" or "gram" in terms
        assert (output.grad is not None and bool(output.grad.any())) == needed, name


def test_gradients_carry_the_weights_of_their_terms():
    given = arguments("stage2_gram") | {"values": StepValues(local_weight=0.5, gram_weight=3.0)}
    config = LossConfig(dino_weight=2.0, ibot_weight=3.0, koleo_weight=0.7)
    plain, weighted = (objective(**given | {"config": c}) for c in (LossConfig(koleo_weight=1.0), config))
    before = torch.autograd.grad(plain.total, given["student"])
    after = torch.autograd.grad(weighted.total, given["student"])
    for factor, old, new in zip((0.7, 1.0, 2.0, 2.0, 3.0), before, after, strict=True):
        torch.testing.assert_close(new, factor * old)


def test_bfloat16_under_autocast_is_finite_and_close():
    given = arguments("stage2_gram")
    exact = objective(**given)
    half = {"student": Outputs(*[x.detach().bfloat16().requires_grad_() for x in given["student"]])}
    with torch.autocast("cpu", torch.bfloat16):
        losses = objective(**given | half)
    losses.total.backward()
    torch.testing.assert_close(losses.total.detach(), exact.total.detach(), rtol=1e-2, atol=0)
    assert all(x.grad.isfinite().all() and x.grad.dtype == torch.bfloat16 for x in half["student"])


def test_options_reach_their_terms():
    given = arguments("stage2_gram")
    changed = LossConfig(
        student_temperature=0.2,
        global_ignore_diagonal=False,
        koleo=KoLeoConfig(top_k=2),
        gram=GramConfig(level="batch", tokens="masked"),
    )
    before, after = objective(**given).terms, objective(**given | {"config": changed}).terms
    assert all((before[name] - after[name]).abs() > 1e-3 for name in before)
