import pytest
import torch

from pretraining.losses import rows
from pretraining.losses.cross_entropy import soft_cross_entropy


def case(count=7, prototypes=11, dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(count, prototypes, generator=generator).to(dtype)
    targets = torch.rand(count, prototypes, generator=generator)  # rows sum to anything
    return logits, targets, torch.rand(count, generator=generator)


def by_definition(logits, targets, weights, temperature):
    logits = logits.detach().double().requires_grad_()
    per_row = -(targets.double() * (logits / temperature).log_softmax(1)).sum(1)
    loss = (per_row if weights is None else per_row * weights.double()).sum()
    return loss.detach(), torch.autograd.grad(loss, logits)[0]


@pytest.mark.parametrize("chunk", [1, 25, 2**18])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-5), (torch.bfloat16, 2**-7), (torch.float16, 2**-9)])
@pytest.mark.parametrize("autocast", [False, True])
def test_value_and_gradient_are_those_of_the_definition(chunk, weighted, dtype, rtol, autocast, monkeypatch):
    monkeypatch.setitem(rows.CHUNK_ELEMENTS, "cpu", chunk)
    logits, targets, weights = case(dtype=dtype)
    expected, gradient = by_definition(logits, targets, weights if weighted else None, 0.1)
    logits.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = soft_cross_entropy(logits, targets, weights if weighted else None, 0.1)
    (3 * loss).backward()
    assert loss.dtype == torch.float32
    assert logits.grad.dtype == dtype
    torch.testing.assert_close(loss.detach(), expected.float(), rtol=1e-5, atol=0)
    torch.testing.assert_close(logits.grad.double(), 3 * gradient, rtol=rtol, atol=1e-5)


@pytest.mark.parametrize("size", [1e2, 1e4])
def test_large_logits_stay_finite(size):
    logits, targets, _ = case()
    logits = (logits * size).requires_grad_()
    loss = soft_cross_entropy(logits, targets, None, 0.1)
    loss.backward()
    expected, gradient = by_definition(logits, targets, None, 0.1)
    torch.testing.assert_close(loss.detach().double(), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(logits.grad.double(), gradient, rtol=1e-5, atol=1e-4)


def test_no_rows_give_zero_and_an_empty_gradient():
    logits, targets, weights = case(0)
    logits.requires_grad_()
    loss = soft_cross_entropy(logits, targets, weights, 0.1)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.shape == (0, 11)


def test_keeps_one_tensor_of_the_logits_size_and_dtype():
    saved = []
    logits, targets, weights = case(dtype=torch.bfloat16)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        soft_cross_entropy(logits.requires_grad_(), targets, weights, 0.1)
    assert sorted((tuple(x.shape), x.dtype) for x in saved) == [((7,), torch.float32), ((7, 11), torch.bfloat16)]


def test_without_a_gradient_nothing_is_kept():
    logits, targets, weights = case()
    assert soft_cross_entropy(logits, targets, weights, 0.1).grad_fn is None
    with torch.no_grad():
        assert soft_cross_entropy(logits.requires_grad_(), targets, weights, 0.1).grad_fn is None


def test_a_second_backward_pass_is_refused_instead_of_wrong():
    logits, targets, weights = case()
    loss = soft_cross_entropy(logits.requires_grad_(), targets, weights, 0.1)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="inplace"):
        loss.backward()


def test_targets_of_another_shape_are_refused():
    logits, targets, _ = case()
    with pytest.raises(ValueError, match=r"\(6, 11\) and targets \(7, 11\)"):
        soft_cross_entropy(logits[:6], targets, None, 0.1)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_works_inside_a_compiled_function(backend):
    logits, targets, weights = case()
    logits.requires_grad_()
    compiled = torch.compile(lambda x: soft_cross_entropy(x * 2, targets, weights, 0.1) + 1, backend=backend)
    compiled(logits).backward()
    expected, gradient = by_definition(2 * logits, targets, weights, 0.1)
    torch.testing.assert_close(logits.grad.double(), 2 * gradient, rtol=1e-5, atol=1e-5)
