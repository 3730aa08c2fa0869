"""The optimizer's settings and clipping, against closed forms; in two processes against one."""

from __future__ import annotations

import math

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, init_device_mesh

from pretraining.optim import OptimConfig, build_optimizer, clip_gradients, set_step
from pretraining.optim.param_groups import parameters_by_module
from pretraining.schedules import StepValues
from tests.pretraining.optim.students import student
from tests.pretraining.processes import in_processes

CPU = torch.device("cpu")
PARTS = ("backbone", "dino_head", "ibot_head")
SCALES = {"backbone": 1.0, "dino_head": 1e-3, "ibot_head": 0.1}
"""Gradients are of different sizes, so that one norm for all of them is none of theirs."""


def values(**changes) -> StepValues:
    defaults = {
        "lr": 1e-3,
        "last_layer_lr": 1e-4,
        "weight_decay": 0.1,
        "momentum": 0.99,
        "teacher_temperature": 0.07,
        "local_weight": 1.0,
        "gram_weight": 0.0,
    }
    return StepValues(**defaults | changes)


def with_gradients(seed: int = 0):
    """A student, and the float64 norm of each part's gradients."""
    torch.manual_seed(seed)
    module = student()
    norms = {}
    for part in PARTS:
        total = 0.0
        for parameter in getattr(module, part).parameters():
            parameter.grad = SCALES[part] * torch.randn_like(parameter)
            total += parameter.grad.double().square().sum().item()
        norms[part] = math.sqrt(total)
    return module, norms


def test_adamw_with_the_configured_settings():
    optimizer = build_optimizer(student(), OptimConfig(betas=(0.8, 0.95)), CPU)
    assert isinstance(optimizer, torch.optim.AdamW)
    for group in optimizer.param_groups:
        assert (group["betas"], group["eps"], group["fused"]) == ((0.8, 0.95), 1e-8, True)


def test_nothing_moves_before_the_first_set_step():
    module, _ = with_gradients()
    before = {name: p.clone() for name, p in module.named_parameters()}
    build_optimizer(module, OptimConfig(), CPU).step()
    assert all(torch.equal(p, before[name]) for name, p in module.named_parameters())


def test_set_step_writes_the_step_into_every_group():
    module = student(depth=2)
    optimizer = build_optimizer(module, OptimConfig(layer_decay=0.5, patch_embed_lr_multiplier=0.2), CPU)
    set_step(optimizer, values(lr=7.0, last_layer_lr=7.0, weight_decay=3.0))
    set_step(optimizer, values())  # the second step must not build on the first
    rows = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    expected = {
        "backbone.patch_embed.proj.weight": (1e-3 * 0.125 * 0.2, 0.1),
        "backbone.patch_embed.proj.bias": (1e-3 * 0.125 * 0.2, 0.0),
        "backbone.cls_token": (1e-3 * 0.125, 0.1),
        "backbone.blocks.0.attn.qkv.weight": (1e-3 * 0.25, 0.1),
        "backbone.blocks.1.gamma_1": (1e-3 * 0.5, 0.0),
        "backbone.norm.weight": (1e-3, 0.0),
        "dino_head.mlp.0.weight": (1e-3, 0.1),
        "dino_head.mlp.0.bias": (1e-3, 0.0),
        "dino_head.last_layer.weight": (1e-4, 0.1),
        "ibot_head.last_layer.weight": (1e-4, 0.1),
    }
    parameters = dict(module.named_parameters())
    assert {name: rows[id(parameters[name])] for name in expected} == {
        name: pytest.approx(row, rel=1e-12) for name, row in expected.items()
    }


def test_one_step_equals_adamw_written_out():
    """First step of AdamW: p (1 - lr wd) - lr g / (|g| + eps), since its moments are g and g squared."""
    module, _ = with_gradients()
    before = {name: p.detach().double() for name, p in module.named_parameters()}
    config = OptimConfig(layer_decay=0.5)
    optimizer = build_optimizer(module, config, CPU)
    set_step(optimizer, values(last_layer_lr=0.0))
    optimizer.step()
    rates = {  # lr multiplier, weight decay multiplier
        "backbone.blocks.0.mlp.fc1.weight": (0.25, 1),
        "backbone.blocks.0.mlp.fc1.bias": (0.25, 0),
        "backbone.reg_token": (0.125, 1),
        "dino_head.last_layer.weight": (0, 1),
        "ibot_head.last_layer.weight": (0, 1),
        "ibot_head.mlp.2.weight": (1, 1),
    }
    for name, (lr_multiplier, wd_multiplier) in rates.items():
        parameter = dict(module.named_parameters())[name]
        lr, gradient = 1e-3 * lr_multiplier, parameter.grad.double()
        expected = before[name] * (1 - lr * 0.1 * wd_multiplier) - lr * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(parameter.double(), expected, rtol=0, atol=3e-7, msg=name)


def test_each_part_is_clipped_by_its_own_norm():
    module, norms = with_gradients()
    before = {name: p.grad.clone() for name, p in module.named_parameters()}
    limit = norms["ibot_head"] / 2
    found = clip_gradients(module, limit)
    assert {part: found[part].item() for part in PARTS} == pytest.approx(norms, rel=1e-6)
    for name, parameter in module.named_parameters():
        norm = norms[name.split(".")[0]]
        torch.testing.assert_close(parameter.grad, before[name] * min(1.0, limit / norm), rtol=2e-6, atol=0)
    assert norms["dino_head"] < limit < norms["ibot_head"] < norms["backbone"]


def test_an_infinite_norm_only_measures():
    module, norms = with_gradients()
    before = {name: p.grad.clone() for name, p in module.named_parameters()}
    found = clip_gradients(module, math.inf)
    assert {part: found[part].item() for part in PARTS} == pytest.approx(norms, rel=1e-6)
    assert all(torch.equal(p.grad, before[name]) for name, p in module.named_parameters())


def test_parameters_without_gradient_do_not_count():
    module, norms = with_gradients()
    module.ibot_head.zero_grad()
    found = clip_gradients(module, 1.0)
    assert found["ibot_head"].item() == 0.0
    assert found["backbone"].item() == pytest.approx(norms["backbone"], rel=1e-6)


def step_of_shards():
    """Norms, and parameters after a step, of a sharded student whose gradients are those of ``with_gradients``."""
    module, _ = with_gradients()
    gradients = [p.grad for p in module.parameters()]
    module.zero_grad()
    mesh = init_device_mesh("cpu", (2,))
    for part in (*module.backbone.blocks, module.backbone, module.dino_head, module.ibot_head):
        fully_shard(part, mesh=mesh)
    for parameter, gradient in zip(module.parameters(), gradients, strict=True):
        assert isinstance(parameter, DTensor)
        rank = dist.get_rank()
        rows = gradient.chunk(2)  # as FSDP2 does; a class token has rows for one process only
        local = rows[rank] if rank < len(rows) else gradient[:0]
        parameter.grad = DTensor.from_local(
            local.contiguous(), mesh, parameter.placements, shape=gradient.shape, stride=gradient.stride()
        )
    norms = clip_gradients(module, 1.0)
    assert not any(isinstance(norm, DTensor) for norm in norms.values())
    optimizer = build_optimizer(module, OptimConfig(), CPU)
    set_step(optimizer, values())
    optimizer.step()
    state = {name: p.full_tensor().detach() for name, p in module.named_parameters()}
    # how much was clipped shows in the gradients: Adam's first step has the same size without it
    clipped = {name: p.grad.full_tensor() for name, p in module.named_parameters()}
    return norms, state, clipped


def test_two_processes_with_shards_equal_one(tmp_path):
    results = in_processes(2, tmp_path, step_of_shards)
    module, norms = with_gradients()
    clip_gradients(module, 1.0)
    optimizer = build_optimizer(module, OptimConfig(), CPU)
    set_step(optimizer, values())
    optimizer.step()
    for found, state, clipped in results:
        assert {part: found[part].item() for part in PARTS} == pytest.approx(norms, rel=1e-6)
        for name, parameter in module.named_parameters():
            torch.testing.assert_close(state[name], parameter.detach(), rtol=0, atol=1e-6)
            torch.testing.assert_close(clipped[name], parameter.grad, rtol=1e-5, atol=1e-9)


def test_parts_of_the_student():
    assert set(parameters_by_module(student())) == set(PARTS)
