"""The teacher's average against the formula in float64; shard by shard in two processes."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import init_device_mesh

from nnunetv2_meddino.errors import ConfigurationError
from pretraining.optim import copy_parameters, update_ema
from tests.pretraining.processes import in_processes

MOMENTUM = 0.97


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
    for tensor in (*module.parameters(), module[1].running_mean):
        nn.init.normal_(tensor)
    return module


def average(teacher, student, momentum=MOMENTUM):
    return [
        momentum * t.detach().double() + (1 - momentum) * s.detach().double()
        for t, s in zip(teacher.parameters(), student.parameters(), strict=True)
    ]


def test_parameters_are_averaged_and_buffers_stay():
    teacher, student = network(0), network(1)
    expected, mean = average(teacher, student), teacher[1].running_mean.clone()
    before = [s.clone() for s in student.parameters()]
    update_ema(teacher, student, MOMENTUM)
    for found, value in zip(teacher.parameters(), expected, strict=True):
        torch.testing.assert_close(found.double(), value, rtol=0, atol=1e-6)
    assert all(torch.equal(s, b) for s, b in zip(student.parameters(), before, strict=True))
    assert torch.equal(teacher[1].running_mean, mean)
    assert not torch.equal(mean, student[1].running_mean)


@pytest.mark.parametrize("momentum", [0.0, 1.0])
def test_ends_of_the_momentum(momentum):
    teacher, student = network(0), network(1)
    expected = [p.clone() for p in (teacher if momentum else student).parameters()]
    update_ema(teacher, student, momentum)
    assert all(torch.equal(t, e) for t, e in zip(teacher.parameters(), expected, strict=True))


def test_no_gradient_flows_and_frozen_teachers_are_updated():
    teacher, student = network(0).requires_grad_(False), network(1)
    update_ema(teacher, student, MOMENTUM)
    assert not any(t.requires_grad for t in teacher.parameters())


def test_copy():
    source, target = network(0), network(1)
    mean = target[1].running_mean.clone()
    copy_parameters(source, target)
    for found in (source, target):
        assert all(torch.equal(f, s) for f, s in zip(found.parameters(), network(0).parameters(), strict=True))
    assert torch.equal(target[1].running_mean, mean)
    source[0].weight.data.zero_()
    assert target[0].weight.abs().sum() > 0


@pytest.mark.parametrize("other", [nn.Linear(6, 5), nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 3))])
def test_refuses_another_network(other):
    for carry in (lambda: update_ema(network(0), other, 0.9), lambda: copy_parameters(other, network(0))):
        with pytest.raises(ConfigurationError, match="number, shapes or shards"):
            carry()


def sharded(seed: int, mesh):
    module = network(seed)
    module[1].running_mean.zero_()
    return fully_shard(module, mesh=mesh)


def average_of_shards():
    mesh = init_device_mesh("cpu", (2,))
    teacher, student, copied = (sharded(seed, mesh) for seed in (0, 1, 2))
    copy_parameters(teacher, copied)
    update_ema(teacher, student, MOMENTUM)
    with pytest.raises(ConfigurationError, match="shards"):
        update_ema(teacher, network(1), MOMENTUM)
    teacher(torch.ones(2, 6))  # leaves the root gathered
    with pytest.raises(ConfigurationError, match="reshard"):
        update_ema(teacher, student, MOMENTUM)
    teacher.reshard()
    return [[p.full_tensor().detach() for p in module.parameters()] for module in (teacher, copied)]


def test_shards_equal_the_whole(tmp_path):
    expected = average(network(0), network(1))
    for averaged, copied in in_processes(2, tmp_path, average_of_shards):
        for found, value in zip(averaged, expected, strict=True):
            torch.testing.assert_close(found.double(), value, rtol=0, atol=1e-6)
        assert all(torch.equal(c, p) for c, p in zip(copied, network(0).parameters(), strict=True))
