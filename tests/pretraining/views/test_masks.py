import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy import ndimage

from pretraining.views import MaskConfig
from pretraining.views.masks import draw_masks, mask_counts
from tests.conftest import shared_path


def drawn(crops=128, grid=16, config=None, *, seed=0, step=0, first=0):
    return draw_masks(crops, grid, config or MaskConfig(), seed=seed, step=step, first=first)


@pytest.mark.parametrize("name", ["a", "b"])
@pytest.mark.parametrize("seed", [0, 1])
def test_counts_indices_and_weights_are_those_of_the_reference(name, seed):
    settings = json.loads(shared_path("golden/masking/collate.json").read_text())[name]
    golden = load_file(shared_path("golden/masking/collate.safetensors"))
    config = MaskConfig(settings["patch"], settings["mask_probability"], tuple(settings["mask_ratio"]))
    ours = drawn(settings["n_images"], settings["grid"], config, seed=seed)
    theirs = golden[f"{name}/masks"]
    assert ours.masks.shape == theirs.shape
    assert ours.masks.dtype == torch.bool
    assert sorted(ours.masks.sum(1).tolist()) == sorted(theirs.sum(1).tolist())
    assert len(ours.indices) == int(golden[f"{name}/n_masked_patches"])
    assert ours.indices.dtype == golden[f"{name}/mask_indices_list"].dtype
    torch.testing.assert_close(ours.weights.sort().values, golden[f"{name}/masks_weight"].sort().values)
    # and the golden indices and weights follow from the golden masks as ours do from ours
    for masks, indices, weights in (
        (ours.masks, ours.indices, ours.weights),
        (theirs, golden[f"{name}/mask_indices_list"], golden[f"{name}/masks_weight"]),
    ):
        assert torch.equal(masks.flatten().nonzero().flatten(), indices)
        torch.testing.assert_close(weights, 1 / masks.sum(1)[indices // masks.shape[1]])


def test_counts_are_worked_out_in_single_precision():
    in_double = [int(196 * share) for share in np.linspace(0.1, 0.5, 50)[1:]]
    ours = mask_counts(98, 196, MaskConfig())
    assert len(ours) == 49
    assert sum(a != b for a, b in zip(ours, in_double, strict=True)) == 1


def test_masks_are_made_of_blocks():
    """Hidden patches touch others far more often than at random: at least three of four neighbours on average."""
    masks = drawn().masks.view(-1, 16, 16).numpy()
    masks = masks[masks.any((1, 2))]
    kernel = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]])
    neighbours = np.mean([ndimage.convolve(m.astype(int), kernel, mode="constant")[m].mean() for m in masks])
    assert neighbours > 2.7
    shuffled = np.random.default_rng(0).permuted(masks.reshape(len(masks), -1), axis=1).reshape(masks.shape)
    at_random = np.mean([ndimage.convolve(m.astype(int), kernel, mode="constant")[m].mean() for m in shuffled])
    assert at_random < 1.5


def test_masks_cover_the_whole_grid_and_any_crop_may_be_masked():
    all_masks = torch.stack([drawn(8, 16, step=step).masks for step in range(200)]).float()
    where = all_masks.mean((0, 1)).view(16, 16)
    assert (where > 0.02).all()
    # a process' masks must not favour a crop: each is masked in half of the steps
    assert (abs(all_masks.any(-1).float().mean(0) - 0.5) < 0.12).all()


def test_masks_repeat_with_the_seed_and_differ_between_steps_and_processes():
    first = drawn()
    assert torch.equal(first.masks, drawn().masks)
    for changes in ({"seed": 1}, {"step": 1}, {"first": 64}):
        assert not torch.equal(first.masks, drawn(**changes).masks)


@pytest.mark.parametrize(
    "config", [MaskConfig(probability=0.0), MaskConfig(probability=1.0, ratio=(1.0, 1.0)), MaskConfig(min_patches=64)]
)
def test_extremes_reach_their_counts_too(config):
    ours = drawn(10, 4, config)
    expected = mask_counts(10, 16, config)
    assert sorted(ours.masks.sum(1).tolist()) == [0] * (10 - len(expected)) + sorted(expected)


def test_a_batch_too_small_for_a_mask_has_none():
    ours = drawn(1)
    assert len(ours.indices) == len(ours.weights) == 0
    assert not ours.masks.any()
