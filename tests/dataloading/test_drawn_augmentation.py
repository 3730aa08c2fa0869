"""What is drawn against what batchgeneratorsv2 draws: two-sample tests over 10,000 of its samples of two channels."""

from __future__ import annotations

import functools
from itertools import combinations

import numpy as np
import pytest
import torch
from scipy import stats

from nnunetv2_meddino.dataloading.augmentation import Augmentation, AugmentationSettings, draw_augmentation

from . import stock

NNUNETS, OURS = 10_000, 50_000
"""Samples. Ours cost a fiftieth; that they are more leaves the noise to nnU-Net's."""

LEAST_P = 1e-3
"""Of any one test. Seeds are fixed; a probability or range that is a tenth off is far below."""

NUMBERS = ("rotation_rad", "scaling", "noise_std")
AXES = ("mirrored 0", "mirrored 1")
PAIRS = tuple(
    tuple(f"{kind} {channel}" for channel in (0, 1))
    for kind in ("brightness", "contrast", "low_resolution", "gamma_of_inverted", "gamma")
) + tuple(
    combinations([f"blur_sigma_px {channel} {axis}" for channel in (0, 1) for axis in (0, 1)], 2),
)
"""What is drawn for each channel, or axis of a channel."""
VALUES = (*NUMBERS, *dict.fromkeys(name for pair in PAIRS for name in pair))

Draws = dict[str, np.ndarray]


def table(augmentations: list[Augmentation]) -> Draws:
    """Return a column for each number that is drawn, nan where it changes nothing."""
    rows = []
    for drawn in augmentations:
        row = {name: getattr(drawn, name) for name in NUMBERS}
        row |= {f"mirrored {axis}": float(drawn.mirrored[axis]) for axis in (0, 1)}
        for channel in (0, 1):
            for name in ("brightness", "contrast", "low_resolution", "gamma_of_inverted", "gamma"):
                row[f"{name} {channel}"] = getattr(drawn, name)[channel]
            for axis in (0, 1):
                row[f"blur_sigma_px {channel} {axis}"] = drawn.blur_sigma_px[channel][axis]
        rows.append(row)
    columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    neutral = {"rotation_rad": 0, "noise_std": 0, "mirrored": 0, "blur_sigma_px": 0}
    return {name: np.where(c == neutral.get(name.split()[0], 1), np.nan, c) for name, c in columns.items()}


@functools.cache
def ours() -> Draws:
    settings = AugmentationSettings(channels=2, rotation_rad=stock.HALF_TURN)
    rng = np.random.default_rng(2)
    return table([draw_augmentation(rng, settings) for _ in range(OURS)])


@functools.cache
def nnunets() -> Draws:
    np.random.seed(1)
    torch.manual_seed(1)
    return table([stock.drawn(channels=2) for _ in range(NNUNETS)])


def p_of_counts(*conditions: np.ndarray) -> float:
    """Return the p of a chi-squared test that both samples have each value of a condition equally often."""
    values = np.unique(np.concatenate(conditions))
    counts = [[(condition == value).sum() for value in values] for condition in conditions]
    return stats.chi2_contingency(counts).pvalue


def together(draws: Draws, first: str, second: str) -> np.ndarray:
    """Return 0 to 3: which of two things happen to a sample."""
    return 2 * ~np.isnan(draws[first]) + ~np.isnan(draws[second])


@pytest.mark.parametrize("name", [*VALUES, *AXES])
def test_a_transform_is_as_frequent_as_nnunets(name: str) -> None:
    assert p_of_counts(np.isnan(ours()[name]), np.isnan(nnunets()[name])) > LEAST_P


@pytest.mark.parametrize("name", VALUES)
def test_values_are_spread_as_nnunets(name: str) -> None:
    drawn, expected = (draws[name][~np.isnan(draws[name])] for draws in (ours(), nnunets()))
    assert stats.ks_2samp(drawn, expected).pvalue > LEAST_P


@pytest.mark.parametrize("pair", PAIRS, ids=" and ".join)
def test_channels_and_axes_share_what_they_share_in_nnunet(pair: tuple[str, str]) -> None:
    assert p_of_counts(together(ours(), *pair), together(nnunets(), *pair)) > LEAST_P
    apart, expected = (np.abs(draws[pair[0]] - draws[pair[1]]) for draws in (ours(), nnunets()))
    assert stats.ks_2samp(apart, expected, nan_policy="omit").pvalue > LEAST_P


def test_transforms_come_together_as_often_as_in_nnunet() -> None:
    pairs = list(combinations([*VALUES, *AXES], 2))
    p = [p_of_counts(together(ours(), *pair), together(nnunets(), *pair)) for pair in pairs]
    assert min(p) * len(pairs) > 1e-2, pairs[int(np.argmin(p))]


def test_only_axes_that_may_be_are_mirrored() -> None:
    rng = np.random.default_rng(0)
    for axes, seen in {(): {(False, False)}, (1,): {(False, False), (False, True)}}.items():
        settings = AugmentationSettings(channels=1, rotation_rad=(0.0, 0.0), mirror_axes=axes)
        assert {draw_augmentation(rng, settings).mirrored for _ in range(100)} == seen


def test_the_same_generator_draws_the_same_augmentations() -> None:
    settings = AugmentationSettings(channels=3, rotation_rad=(-0.2, 0.2))
    first, second = np.random.default_rng(5), np.random.default_rng(5)
    drawn = [draw_augmentation(first, settings) for _ in range(50)]
    assert drawn == [draw_augmentation(second, settings) for _ in range(50)]
    assert len({augmentation.noise_seed for augmentation in drawn}) == 50
