import pytest
import torch
from safetensors.torch import load_file

from pretraining.losses import rows, sinkhorn_scaling, sinkhorn_targets
from tests.conftest import shared_path
from tests.pretraining.processes import in_processes

RANKS = 4


def golden(name):
    return load_file(shared_path(f"golden/losses/{name}.safetensors"))


def targets_of(micro_batches, temperature, iterations=3):
    log_u = sinkhorn_scaling([lambda x=x: x for x in micro_batches], temperature, iterations)
    return [sinkhorn_targets(x, log_u, temperature) for x in micro_batches]


def by_definition(logits, temperature, iterations=3):
    """Prototypes, then samples divided by their sums, in turn, in the logarithm and in float64."""
    log_q = logits.double() / temperature
    for _ in range(iterations):
        log_q = log_q - log_q.logsumexp(0)
        log_q = log_q - log_q.logsumexp(1, keepdim=True)
    return log_q.exp()


def drawn(rows, prototypes=12, *, seed=0, scale=1.0):
    return torch.randn(rows, prototypes, generator=torch.Generator().manual_seed(seed)) * scale


@pytest.mark.parametrize(
    ("file", "logits", "probabilities", "temperature", "iterations"),
    [
        ("dino_cls", "sk/teacher_logits", "sk/0.04/probs", 0.04, 3),
        ("dino_cls", "sk/teacher_logits", "sk/0.07/probs", 0.07, 3),
        ("dino_cls", "sk/teacher_logits", "sk/0.07_iter1/probs", 0.07, 1),
        ("ibot_patch", "teacher_logits", "sk/0.04/probs", 0.04, 3),
        ("ibot_patch", "teacher_logits", "sk/0.07/probs", 0.07, 3),
    ],
)
@pytest.mark.parametrize("chunk", [1, 90, 2**18])
def test_targets_are_those_of_the_reference(file, logits, probabilities, temperature, iterations, chunk, monkeypatch):
    monkeypatch.setitem(rows.CHUNK_ELEMENTS, "cpu", chunk)
    tensors = golden(file)
    (ours,) = targets_of([tensors[logits]], temperature, iterations)
    torch.testing.assert_close(ours, tensors[probabilities], atol=1e-6, rtol=0)


def golden_ranks(kind):
    tensors = golden("distributed_ws4")
    if kind == "dino":
        return list(tensors["dino_sk/teacher_logits"]), list(tensors["dino_sk/probs"])
    return tuple([tensors[f"ibot_sk/{what}/{rank}"] for rank in range(RANKS)] for what in ("teacher_logits", "probs"))


@pytest.mark.parametrize("kind", ["dino", "ibot"])
def test_micro_batches_count_as_the_processes_of_the_reference(kind):
    logits, expected = golden_ranks(kind)
    ours = targets_of(logits, 0.07)
    for mine, theirs in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=0)


UNEVEN = [[3, 0], [0, 0], [5, 2], [0, 1]]
"""Samples of each micro-batch of each process: a crop of iBOT may have no masked patch."""


def uneven():
    counts = [count for process in UNEVEN for count in process]
    parts = drawn(sum(counts), seed=5).split(counts)
    return [list(parts[2 * rank : 2 * rank + 2]) for rank in range(RANKS)]


def on_each_process(cases):
    rank = torch.distributed.get_rank()
    return {name: targets_of(processes[rank], temperature) for name, (processes, temperature) in cases.items()}


def test_processes_are_one_population(tmp_path):
    cases = {kind: ([[x] for x in golden_ranks(kind)[0]], 0.07) for kind in ("dino", "ibot")}
    cases["uneven"] = (uneven(), 0.07)
    cases["far apart"] = ([[x * 3**rank for x in parts] for rank, parts in enumerate(uneven())], 0.07)
    results = in_processes(RANKS, tmp_path, on_each_process, cases)
    for name, (processes, temperature) in cases.items():
        ours = torch.cat([x for result in results for x in result[name]])
        together = torch.cat([x for parts in processes for x in parts])
        precision = max(1e-6, together.abs().max().item() / temperature * 2**-23)
        torch.testing.assert_close(ours, by_definition(together, temperature).float(), atol=2 * precision, rtol=0)
        torch.testing.assert_close(ours, targets_of([together], temperature)[0], atol=2 * precision, rtol=0)
    for kind in ("dino", "ibot"):
        for result, expected in zip(results, golden_ranks(kind)[1], strict=True):
            torch.testing.assert_close(result[kind][0], expected, atol=1e-6, rtol=0)


def test_micro_batches_equal_their_concatenation():
    parts = drawn(17).split([4, 0, 1, 12])
    torch.testing.assert_close(torch.cat(targets_of(parts, 0.07)), targets_of([torch.cat(parts)], 0.07)[0])


@pytest.mark.parametrize("scale", [1, 30, 1e3, 1e4])
@pytest.mark.parametrize("several", [False, True])
def test_no_size_of_logits_overflows(scale, several):
    """Integers and a temperature of a power of two are exact in float32, so that only the sums may differ."""
    logits = (drawn(40, 24) * scale).round()
    ours = torch.cat(targets_of(logits.split(13) if several else [logits], 0.0625))
    # what float32 leaves behind the point of the largest logarithm
    precision = max(1e-6, logits.abs().max().item() / 0.0625 * 2**-23)
    assert ours.isfinite().all()
    torch.testing.assert_close(ours, by_definition(logits, 0.0625).float(), atol=4 * precision, rtol=0)


@pytest.mark.parametrize("gap", [1e2, 1e4])
def test_samples_and_prototypes_far_below_the_others_still_get_their_share(gap):
    """Raw exponentials of a sample or of a prototype that underflow as a whole are no division by zero."""
    logits = (drawn(12, 8) * 2).round() / 16
    logits[3] -= gap
    logits[:, 5] -= gap
    (ours,) = targets_of([logits], 0.0625)
    torch.testing.assert_close(ours, by_definition(logits, 0.0625).float(), atol=gap * 1e-6, rtol=0)


def test_samples_count_by_their_raw_exponentials_at_first():
    """One sample whose logits are all higher dominates the first sum; it would not if samples were softmaxed first."""
    logits = drawn(6, 5)
    logits[0] += 1
    (ours,) = targets_of([logits], 0.07, 1)
    torch.testing.assert_close(ours, by_definition(logits, 0.07, 1).float())
    softmaxed_first = by_definition((logits / 0.07).log_softmax(1), 1.0, 1).float()
    assert (ours - softmaxed_first).abs().max() > 0.05


def test_many_iterations_give_every_prototype_the_same_mass():
    (targets,) = targets_of([drawn(60, 10)], 0.5, 50)
    torch.testing.assert_close(targets.sum(0), torch.full((10,), 6.0))
    torch.testing.assert_close(targets.sum(1), torch.ones(60))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("autocast", [False, True])
def test_computes_in_single_precision_whatever_comes_in(dtype, autocast):
    logits = drawn(16).to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        log_u = sinkhorn_scaling([lambda: logits], 0.07)
        targets = sinkhorn_targets(logits, log_u, 0.07)
    assert log_u.dtype == targets.dtype == torch.float32
    torch.testing.assert_close(targets, by_definition(logits, 0.07).float(), atol=1e-6, rtol=1e-5)


def test_no_sample_at_all_gives_no_target():
    (targets,) = targets_of([drawn(0)], 0.07)
    assert targets.shape == (0, 12)


@pytest.mark.parametrize(("micro_batches", "calls"), [(1, 1), (2, 4)])
def test_several_micro_batches_are_asked_for_again_one_is_kept(micro_batches, calls):
    asked = []
    logits = drawn(5).requires_grad_()
    log_u = sinkhorn_scaling([lambda: asked.append(1) or logits] * micro_batches, 0.07, 3)
    assert len(asked) == micro_batches * calls
    assert not log_u.requires_grad
    assert not sinkhorn_targets(logits, log_u, 0.07).requires_grad
