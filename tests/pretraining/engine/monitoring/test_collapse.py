import math

import numpy as np
import pytest
import torch
from scipy.stats import entropy

from pretraining.engine.monitoring.collapse import class_rank, effective_rank, patch_similarity, target_measures

RNG = np.random.default_rng(3)


def measured(targets):
    return {name.removeprefix("collapse/"): float(value) for name, value in target_measures(targets).items()}


def test_entropies_are_those_of_scipy_in_nats():
    targets = RNG.dirichlet(np.full(50, 0.2), size=20)
    found = measured(torch.tensor(targets))
    of_each, of_mean = entropy(targets, axis=1).mean(), entropy(targets.mean(axis=0))
    assert found["target_entropy"] == pytest.approx(of_each, rel=1e-5)
    assert found["mean_target_entropy"] == pytest.approx(of_mean, rel=1e-5)
    uniform = np.full(50, 1 / 50)
    assert found["target_kl_to_uniform"] == pytest.approx(entropy(targets, uniform, axis=1).mean(), rel=1e-5)
    about_mean = np.mean([entropy(row, targets.mean(axis=0)) for row in targets])
    assert found["target_information"] == pytest.approx(about_mean / math.log(20), rel=1e-4)


def test_information_is_one_if_every_image_has_a_prototype_of_its_own():
    found = measured(torch.eye(16)[:, torch.randperm(16)])
    assert found["target_information"] == pytest.approx(1)
    assert found["target_entropy"] == 0


@pytest.mark.parametrize("row", [torch.full((32,), 1 / 32), torch.eye(32)[5], torch.linspace(0, 1, 32).softmax(0)])
def test_information_is_zero_in_both_collapses(row):
    assert measured(row.expand(24, -1))["target_information"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_effective_rank_is_that_of_roy_and_vetterli(scale):
    u, _ = np.linalg.qr(RNG.normal(size=(40, 12)))
    v, _ = np.linalg.qr(RNG.normal(size=(12, 12)))
    singular = np.geomspace(1, 0.02, 12)
    expected = np.exp(entropy(singular / singular.sum()))
    matrix = torch.tensor(scale * u @ np.diag(singular) @ v.T)
    assert float(effective_rank(matrix)) == pytest.approx(expected, rel=1e-4)
    assert float(class_rank(matrix)) == pytest.approx((expected - 1) / 11, rel=1e-4)


def test_class_rank_is_zero_if_all_tokens_are_one_and_one_if_all_directions_are_used_alike():
    assert float(class_rank(torch.randn(9).expand(20, -1))) == pytest.approx(0, abs=1e-4)
    assert float(class_rank(3 * torch.eye(9))) == pytest.approx(1, abs=1e-5)
    assert float(class_rank(torch.zeros(5, 9))) == pytest.approx(0, abs=1)  # nothing to measure, and no NaN


def test_patch_similarity_is_the_mean_over_all_pairs():
    patches = torch.tensor(RNG.normal(size=(3, 17, 8)) + np.array([0, 1, 5])[:, None, None])
    expected = []
    for image in patches.numpy():
        unit = image / np.linalg.norm(image, axis=1, keepdims=True)
        cosines = unit @ unit.T
        expected.append(cosines[~np.eye(17, dtype=bool)].mean())
    torch.testing.assert_close(patch_similarity(patches).double(), torch.tensor(expected), atol=1e-5, rtol=0)


def test_bfloat16_is_measured_in_float32():
    patches = torch.randn(2, 500, 64).bfloat16()
    torch.testing.assert_close(patch_similarity(patches), patch_similarity(patches.double()))
    assert target_measures(patches[0].softmax(-1))["collapse/target_entropy"].dtype == torch.float32
