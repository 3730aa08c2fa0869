import dataclasses

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from pretraining.engine.monitoring.fixed_slices import whole_slice
from pretraining.engine.monitoring.linear_probe import dice, fit_classifier, linear_probe, patch_fractions
from pretraining.engine.monitoring.linear_probe_data import IGNORED, LabelledSlice, read_probe_data
from pretraining.views import IntensityConfig
from tests.pretraining.engine.monitoring.labelled import write_balls
from tests.pretraining.engine.monitoring.networks import random_vit


def labelled(classes):
    pixels = torch.zeros(classes.shape, dtype=torch.int16)
    return LabelledSlice("case", whole_slice("case", pixels, IntensityConfig(), size=32, patch_size=8), classes)


@pytest.fixture(scope="module")
def balls(tmp_path_factory):
    folder = write_balls(tmp_path_factory.mktemp("probe") / "Dataset001_Balls", cases=8, slices=4)
    return read_probe_data(folder, slices=24, seed=0, intensity=IntensityConfig(), size=96, patch_size=8)


def test_the_fit_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(300, 6)) * [1, 5, 0.1, 2, 1, 1] + 3
    labels = (features @ rng.normal(size=(6, 3)) + rng.gumbel(size=(300, 3))).argmax(1)
    l2 = 0.01
    found = fit_classifier(torch.tensor(features), torch.eye(3, dtype=torch.float64)[labels], l2=l2)
    standardised = (features - features.mean(0)) / features.std(0, ddof=1)
    reference = LogisticRegression(C=1 / (300 * l2), tol=1e-10, max_iter=2000).fit(standardised, labels)
    np.testing.assert_allclose(
        torch.softmax(found(torch.tensor(features)), -1), reference.predict_proba(standardised), atol=1e-4
    )


def test_a_shared_patch_counts_for_both_classes():
    classes = torch.zeros(8, 8, dtype=torch.uint8)
    classes[:4, :2] = 1
    classes[4:, 4:] = 2
    classes[:4, 4:] = IGNORED
    expected = torch.tensor([[[0.5, 0.5, 0], [0, 0, 0]], [[1, 0, 0], [0, 0, 1]]], dtype=torch.float32)
    torch.testing.assert_close(patch_fractions(classes, (2, 2), 3), expected)


def blocks(rng, count, side=8, classes=3):
    """Label maps in which every 4 x 4 patch is of one class, and these classes as indices."""
    patches = torch.tensor(rng.integers(0, classes, (count, side, side)))
    return patches, [labelled(p.repeat_interleave(4, 0).repeat_interleave(4, 1).to(torch.uint8)) for p in patches]


@pytest.mark.parametrize("shuffled", [False, True])
def test_features_that_hold_the_label_are_found_and_shuffled_labels_give_chance(shuffled):
    rng = np.random.default_rng(0)
    patches, slices = blocks(rng, 12)
    features = (
        0.1 * torch.tensor(rng.normal(size=(*patches.shape, 16))) + torch.eye(3, 16, dtype=torch.float64)[patches]
    )
    targets = torch.eye(3, dtype=torch.float64)[patches]
    if shuffled:
        targets = targets.flatten(0, 2)[torch.tensor(rng.permutation(patches.numel()))].view_as(targets)
    classifier = fit_classifier(features[:8].flatten(0, 2), targets[:8].flatten(0, 2))
    result = dice(classifier, list(features[8:]), slices[8:], ("one", "two"))
    if shuffled:
        assert result.mean < 0.45  # guessing one of three classes: 1 / 3
    else:
        # bilinear logits round the corners of the blocks
        assert result.mean > 0.85


def test_dice_counts_all_pixels_of_all_slices_and_leaves_out_what_is_ignored_or_absent():
    reference = [torch.tensor(rows, dtype=torch.uint8) for rows in ([[1, 1], [0, IGNORED]], [[1, 0], [0, 0]])]
    predicted = [torch.tensor(rows) for rows in ([[1, 0], [1, 1]], [[1, 0], [0, 2]])]
    features = [torch.eye(4)[p] for p in predicted]
    found = dice(lambda grid: 10 * grid, features, [labelled(r) for r in reference], ("one", "two", "three"))
    assert found.dice == {"one": pytest.approx(2 * 2 / (3 + 3))}
    assert found.mean == found.dice["one"]
    assert found.values() == {"probe/dice": found.mean, "probe/dice/one": found.mean}


def test_a_random_network_finds_bright_balls_and_with_shuffled_labels_does_not(balls):
    found = linear_probe(random_vit(), balls)
    assert set(found.dice) == {"ball", "box"}
    order = np.random.default_rng(0).permutation(balls.train[0].classes.numel())
    mixed = [
        dataclasses.replace(s, classes=s.classes.flatten()[torch.tensor(order)].view_as(s.classes)) for s in balls.train
    ]
    shuffled = linear_probe(random_vit(), dataclasses.replace(balls, train=tuple(mixed)))
    assert found.mean > 0.7
    assert shuffled.mean < 0.2


def test_the_result_is_the_same_every_time_and_no_random_number_is_drawn(balls):
    first = linear_probe(random_vit(), balls)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    with torch.no_grad():
        assert linear_probe(random_vit(), balls) == first
    assert torch.equal(torch.get_rng_state(), state)


def test_what_is_judged_is_not_fitted(balls):
    """Other labels in validation change the score and not the classifier: a perfect memory would not help."""
    empty = tuple(dataclasses.replace(s, classes=torch.ones_like(s.classes)) for s in balls.validation)
    everything = linear_probe(random_vit(), dataclasses.replace(balls, validation=empty))
    assert everything.dice["ball"] < 0.6  # had it been fitted, all would be ball


def test_the_network_is_left_as_it_was(balls):
    vit = random_vit()
    linear_probe(vit, balls)
    assert all(parameter.grad is None for parameter in vit.parameters())
