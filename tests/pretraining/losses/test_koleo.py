import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from nnunetv2_meddino.errors import ConfigurationError
from pretraining.engine.distributed import Ranks, neighbours
from pretraining.losses.koleo import koleo_loss
from tests.conftest import shared_path
from tests.pretraining.processes import in_processes

RUNS = {"gs4_top1": (4, 1), "gs8_top1": (8, 1), "gs8_top2": (8, 2), "gsNone_top1": (16, 1)}
"""Images of a group, 4 on each of four processes, and neighbours."""


def golden(name):
    return load_file(shared_path(f"golden/losses/{name}.safetensors"))


@pytest.mark.parametrize("name", ["local", "duplicate"])
def test_loss_and_gradient_are_those_of_the_reference(name):
    tensors = golden("koleo")
    x = tensors[f"{name}/x"].requires_grad_()
    loss = koleo_loss(x)
    loss.backward()
    torch.testing.assert_close(loss.detach().reshape(1), tensors[f"{name}/loss"], rtol=1e-5, atol=0)
    largest = tensors[f"{name}/d_x"].abs().max().item()
    torch.testing.assert_close(x.grad, tensors[f"{name}/d_x"], rtol=1e-4, atol=1e-5 * largest)


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_several_neighbours_are_those_of_the_reference(top_k):
    tensors = golden("koleo")
    x = tensors[f"dist_ws1_topk{top_k}/x"].requires_grad_()
    loss = koleo_loss(x, top_k=top_k)
    loss.backward()
    torch.testing.assert_close(loss.detach().reshape(1), tensors[f"dist_ws1_topk{top_k}/loss"], rtol=1e-5, atol=0)
    torch.testing.assert_close(x.grad, tensors[f"dist_ws1_topk{top_k}/d_x"], rtol=1e-4, atol=1e-6)


def on_each_process(tokens):
    x = tokens[dist.get_rank()]
    ranks = Ranks(dist.get_rank(), dist.get_world_size(), torch.device("cpu"))
    results = {}
    for name, (group_size, top_k) in RUNS.items():
        leaf = x.clone().requires_grad_()
        loss = koleo_loss(leaf, top_k=top_k, group=neighbours(ranks, group_size // len(x), timeout_s=60))
        loss.backward()
        results[name] = (loss.detach(), leaf.grad)
    return results


def test_processes_agree_with_those_of_the_reference(tmp_path):
    tensors = golden("distributed_ws4")
    results = in_processes(4, tmp_path, on_each_process, tensors["koleo/x"])
    for name in RUNS:
        losses = torch.stack([result[name][0] for result in results])
        gradients = torch.stack([result[name][1] for result in results])
        torch.testing.assert_close(losses, tensors[f"koleo/{name}/loss_per_rank"], rtol=1e-5, atol=0)
        expected = tensors[f"koleo/{name}/d_x_of_sum_over_ranks"]
        torch.testing.assert_close(gradients, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bfloat16_and_autocast_leave_single_precision(dtype):
    """Three tokens on an arc whose cosines are all 1 in bfloat16: the last is the first's nearest, not the second."""
    angles = torch.tensor([0.0, 0.05, 0.02])
    x = torch.stack((angles.cos(), angles.sin()), dim=1).to(dtype)
    unit = x.double() / x.double().norm(dim=1, keepdim=True)
    nearest = torch.tensor([2, 2, 0])
    expected = -(unit - unit[nearest]).norm(dim=1).log().mean()
    with torch.autocast("cpu", torch.bfloat16):
        loss = koleo_loss(x.requires_grad_())
        loss.backward()
    assert loss.dtype == torch.float32
    assert x.grad.isfinite().all()
    torch.testing.assert_close(loss.detach().double(), expected, rtol=1e-4, atol=0)


def test_refuses_more_neighbours_than_there_are():
    with pytest.raises(ConfigurationError, match="2 nearest of 1 other images"):
        koleo_loss(torch.ones(2, 3), top_k=2)
    with pytest.raises(ConfigurationError, match="1 nearest of 0 other images"):
        koleo_loss(torch.ones(1, 3))
