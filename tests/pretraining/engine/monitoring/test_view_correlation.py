"""The correlation of views: recovered where it is known, and the border that it decides, simulated with the losses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from pretraining.engine.monitoring.view_correlation import class_tokens, correlation_warning, view_correlation
from pretraining.losses.dino import dino_loss, pair_shares
from pretraining.losses.sinkhorn import sinkhorn_scaling, sinkhorn_targets
from pretraining.views import MaskConfig, ViewConfig, make_views
from tests.pretraining.engine.monitoring.networks import random_vit
from tests.pretraining.views.batches import noise

RNG = np.random.default_rng(5)
TEACHER, STUDENT = 0.04, 0.1
BORDER = TEACHER / STUDENT
PROTOTYPES = 8


def gaussian_views(slices: int, shared: list[float], own: list[list[float]], dim: int = 32) -> Tensor:
    """Return class tokens ``(V, N, D)`` with a shared part and one of each view's own, independent over slices.

    Args:
        slices: N.
        shared: Variances of the shared part in the first directions; 0 in the others.
        own: Of each view, variances of its own part in the first directions; 1 in the others.
        dim: D.
    """
    rotation, _ = np.linalg.qr(RNG.normal(size=(dim, dim)))
    common = np.sqrt([*shared, *[0] * (dim - len(shared))]) * RNG.normal(size=(slices, dim))
    views = [
        common + np.sqrt([*variances, *[1] * (dim - len(variances))]) * RNG.normal(size=(slices, dim))
        for variances in own
    ]
    return torch.tensor((np.stack(views) + 7) @ rotation)


def measured(tokens: Tensor, **settings) -> dict[str, float]:
    found = view_correlation(torch.arange(tokens.shape[1]), tokens, **{"local_weight": 1.0} | settings)
    return {name.removeprefix("views/"): value for name, value in found.items()}


@pytest.mark.parametrize("correlation", [0.2, 0.4, 0.7])
def test_known_correlation_is_recovered_and_the_trace_ratio_is_far_below(correlation):
    shared = 12.0
    own = [[shared / correlation - shared]] * 3
    values = [measured(gaussian_views(1024, [shared], own)) for _ in range(8)]
    for name in ("correlation", "correlation_global", "correlation_local"):  # small ones come out a little low
        assert np.mean([value[name] for value in values]) == pytest.approx(correlation, abs=0.04), name
    expected = shared / (shared / correlation + 31)
    assert np.mean([value["trace_ratio"] for value in values]) == pytest.approx(expected, abs=0.03)


def test_best_of_several_directions_counts_even_where_another_is_shared_more_strongly():
    """Shared variance 9 of 36, and 4 of 5."""
    tokens = gaussian_views(1024, [9.0, 4.0], [[27.0, 1.0]] * 3)
    assert measured(tokens)["correlation_global"] == pytest.approx(0.8, abs=0.08)


def test_of_unrelated_views_nothing_is_said_to_agree_and_few_slices_say_too_little():
    unrelated = [measured(gaussian_views(256, [], [[]] * 4))["correlation"] for _ in range(10)]
    assert np.mean(unrelated) == pytest.approx(0, abs=0.04)
    few, many = (
        np.mean([measured(gaussian_views(count, [2.0], [[1.0]] * 4))["correlation_global"] for _ in range(20)])
        for count in (32, 1024)
    )
    assert few < many - 0.05
    assert many == pytest.approx(2 / 3, abs=0.03)


def test_local_crops_count_by_their_own_variance_and_as_the_loss_weighs_their_pairs():
    """Shared 4; variances 5 of a global and 20 of a local crop; 6 local crops."""
    tokens = gaussian_views(4096, [4.0], [[1.0]] * 2 + [[16.0]] * 6)
    found = measured(tokens, local_weight=0.05)
    assert found["correlation_global"] == pytest.approx(4 / 5, abs=0.03)
    assert found["correlation_local"] == pytest.approx(4 / 20, abs=0.03)
    local, global_ = pair_shares(6)
    expected = (0.05 * local * 4 + global_ * 4) / (0.05 * local * 20 + global_ * 5)
    assert found["correlation"] == pytest.approx(expected, abs=0.03)


def test_direction_of_small_variance_counts_where_its_views_agree_most():
    """Shared variance 0.5 of 0.6; three others share more, but 2 of 12."""
    tokens = gaussian_views(1024, [2.0] * 3 + [0.5], [[10.0] * 3 + [0.1]] * 4, dim=8)
    assert measured(tokens)["correlation"] == pytest.approx(0.5 / 0.6, abs=0.04)


def test_slice_that_comes_again_or_is_not_finite_does_not_count():
    tokens = gaussian_views(64, [4.0], [[1.0]] * 3)
    expected = measured(tokens)
    rows = torch.cat([torch.arange(64), torch.arange(64), torch.tensor([64])])
    more = torch.cat([tokens, torch.randn_like(tokens), torch.full_like(tokens[:, :1], torch.nan)], dim=1)
    found = view_correlation(rows, more, local_weight=1.0)
    assert {f"views/{name}": value for name, value in expected.items()} == found
    assert found["views/slices"] == 64


@pytest.mark.parametrize("tokens", [torch.randn(3, 9, 4), torch.ones(3, 40, 4)], ids=["few", "alike"])
def test_nothing_is_said_where_there_is_nothing_to_say(tokens):
    assert math.isnan(measured(tokens)["correlation"])
    assert (
        correlation_warning({"views/correlation": math.nan, "views/border": 0.4, "views/border_largest": 0.7}, 0.1)
        is None
    )


def exact_views(slices: int, shared: list[float], own: list[list[float]]) -> Tensor:
    """Return ``(V, N, D)`` as ``gaussian_views`` does, in D given directions and with exactly these covariances."""
    dim, count = len(shared), len(own)
    drawn = np.concatenate([np.ones((slices, 1)), RNG.normal(size=(slices, dim * (count + 1)))], axis=1)
    parts = np.linalg.qr(drawn)[0][:, 1:].reshape(slices, count + 1, dim) * np.sqrt(slices)
    return torch.tensor(np.sqrt(shared) * parts[:, 0] + np.sqrt(np.array(own)[:, None]) * parts.swapaxes(0, 1)[1:])


def growth(tokens: Tensor, local_weight: float) -> list[float]:
    """Return the relative growth of what heads say along each direction, in a step of the training's own DINO loss.

    Student and teacher have one linear head ``(K, D)`` with small weights, so that all targets are nearly uniform.
    """
    weight = 1e-3 * torch.randn(PROTOTYPES, tokens.shape[2], generator=torch.Generator().manual_seed(0))
    weight = (weight - weight.mean(0)).double().requires_grad_()
    logits = tokens.flatten(0, 1) @ weight.T
    count = 2 * tokens.shape[1]
    teacher = logits[:count].detach()
    targets = sinkhorn_targets(teacher, sinkhorn_scaling([lambda: teacher], TEACHER), TEACHER)
    terms = dino_loss(logits[:count], logits[count:], targets, temperature=STUDENT)
    local, global_ = pair_shares(len(tokens) - 2)
    (gradient,) = torch.autograd.grad(local_weight * local * terms.local + global_ * terms.global_, weight)
    return (-(gradient * weight).sum(0) / weight.detach().square().sum(0)).tolist()


@pytest.mark.parametrize(
    ("own_global", "own_local", "local_weight"),
    [
        ([1.7, 1.56, 1.44, 1.3], [1.7, 1.56, 1.44, 1.3], 1.0),  # correlations 0.37, 0.39, 0.41, 0.43
        ([0.1, 0.1, 9.0, 9.0], [1.7, 1.55, 1.3, 1.2], 1.0),  # the local crops decide where they weigh most
        ([0.1, 0.1, 9.0, 9.0], [1.7, 1.55, 1.3, 1.2], 0.1),
    ],
)
def test_heads_near_the_uniform_point_grow_where_the_ratio_exceeds_that_of_the_temperatures(
    own_global, own_local, local_weight
):
    shared, locals_ = [1.0] * 4, 3
    tokens = exact_views(512, shared, [own_global] * 2 + [own_local] * locals_)
    local, global_ = (weight * share for weight, share in zip((local_weight, 1), pair_shares(locals_), strict=True))
    between = (local + global_) * np.array(shared)
    within = local * (1 + np.array(own_local)) + global_ * (1 + np.array(own_global))
    expected = (between / TEACHER - within / STUDENT) / (PROTOTYPES * STUDENT)
    found = np.array(growth(tokens, local_weight))
    assert found == pytest.approx(expected, abs=0.02 * np.abs(within / STUDENT / (PROTOTYPES * STUDENT)).max())
    assert ((found > 0) == (between / within > BORDER)).all()
    assert 0 < (found > 0).sum() < 4


def test_class_tokens_are_those_of_unmasked_whole_patches_crop_by_crop():
    masks = MaskConfig(patch_size=8, probability=1.0)
    config = ViewConfig(global_size=32, local_size=20, num_local=3, masks=masks, blur_kernel=3)
    views = make_views(noise(4, 48), config, seed=0, step=0)
    vit = random_vit()
    found = class_tokens(vit, views)
    assert found.shape == (5, 4, vit.config.embed_dim)
    assert found.dtype == torch.float64
    with torch.no_grad():
        for crop, expected in ((1, views.global_crops[6:7]), (4, views.local_crops[10:11, :, :16, :16])):
            torch.testing.assert_close(found[crop, 2], vit.forward_features(expected)[0, 0].double())


def test_warning_names_the_numbers_and_what_to_do_and_comes_below_the_border_alone():
    found = {"views/correlation": 0.234, "views/border": 0.4, "views/border_largest": 0.7}
    message = correlation_warning(found, 0.1)
    for part in ("agree too little", "by 0.23", "0.40 (up to 0.70", "temperature of 0.023", "--views.brightness"):
        assert part in message, message
    assert "up to" not in correlation_warning(found | {"views/border_largest": 0.4}, 0.1)
    assert "would be" not in correlation_warning(found | {"views/correlation": -0.01}, 0.1)
    assert correlation_warning(found | {"views/correlation": 0.41}, 0.1) is None
