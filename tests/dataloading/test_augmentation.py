from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.utils.seg_to_regions import ConvertSegmentationToRegionsTransform
from scipy import stats

from nnunetv2_meddino.dataloading.augmentation import (
    Augmentation,
    augment,
    change_intensities,
    to_regions,
)

from . import stock
from .pictures import slice_of

SIZE = (128, 111)
IMAGE, LABELS = slice_of(SIZE, channels=2, seed=1)
ONES = (1.0, 1.0)
NOTHING = Augmentation(
    rotation_rad=0.0,
    scaling=1.0,
    mirrored=(False, False),
    noise_std=0.0,
    noise_seed=7,
    blur_sigma_px=((0.0, 0.0),) * 2,
    brightness=ONES,
    contrast=ONES,
    low_resolution=ONES,
    gamma_of_inverted=ONES,
    gamma=ONES,
)
SECOND = torch.tensor([1])


def changed(augmentation: Augmentation, image: np.ndarray = IMAGE) -> np.ndarray:
    image = image.copy()
    change_intensities(image, augmentation)
    return image


def assert_alike(image: np.ndarray, expected: np.ndarray) -> None:
    """Compare to 1e-4 of the range; the first channel to the bit with the one that went in."""
    assert np.abs(image - expected).max() < 1e-4 * np.ptp(expected)
    assert np.abs(expected[1] - IMAGE[1]).max() > 1e-2 * np.ptp(expected), "nothing was changed"
    np.testing.assert_array_equal(image[0], IMAGE[0])


def test_nothing_happens_to_a_sample_that_draws_nothing() -> None:
    np.testing.assert_array_equal(changed(NOTHING), IMAGE)


@pytest.mark.parametrize("sigma_px", [(0.5, 1.0), (0.58, 0.59), (0.75, 0.76), (0.91, 0.92), (1.0, 0.5)])
def test_blur_is_nnunets(sigma_px: tuple[float, float]) -> None:
    image = changed(replace(NOTHING, blur_sigma_px=((0.0, 0.0), sigma_px)))
    applied = {"apply_to_channel": torch.tensor([False, True]), "sigmas": [sigma_px]}
    assert_alike(image, stock.apply(SIZE, "blur", IMAGE, **applied))


@pytest.mark.parametrize("name", ["brightness", "contrast"])
@pytest.mark.parametrize("factor", [0.75, 1.25])
def test_brightness_and_contrast_are_nnunets(name: str, factor: float) -> None:
    image = changed(replace(NOTHING, **{name: (1.0, factor)}))
    applied = {"apply_to_channel": SECOND, "multipliers": torch.tensor([factor])}
    assert_alike(image, stock.apply(SIZE, name, IMAGE, **applied))


@pytest.mark.parametrize("share", [0.5, 0.613, 0.75, 0.99])
def test_low_resolution_is_nnunets(share: float) -> None:
    image = changed(replace(NOTHING, low_resolution=(1.0, share)))
    applied = {"apply_to_channel": SECOND, "scales": torch.tensor([[share, share]])}
    assert_alike(image, stock.apply(SIZE, "low_resolution", IMAGE, **applied))


@pytest.mark.parametrize("name", ["gamma", "gamma_of_inverted"])
@pytest.mark.parametrize("gamma", [0.7, 1.5])
def test_gamma_is_nnunets(name: str, gamma: float) -> None:
    image = changed(replace(NOTHING, **{name: (1.0, gamma)}))
    yes, inverted = torch.tensor([True]), torch.tensor([name == "gamma_of_inverted"])
    applied = {"apply_to_channel": SECOND, "gamma": torch.tensor([gamma])}
    assert_alike(image, stock.apply(SIZE, name, IMAGE, retain_stats=yes, invert_image=inverted, **applied))


@pytest.mark.parametrize("name", ["contrast", "gamma", "gamma_of_inverted"])
def test_a_channel_of_one_value_stays_as_it_is(name: str) -> None:
    flat = np.full((2, 40, 40), 2.5, np.float32)
    np.testing.assert_allclose(changed(replace(NOTHING, **{name: (0.8, 1.2)}), flat), flat)


def test_noise_is_gaussian_of_its_own_in_every_channel_and_the_same_whenever_replayed() -> None:
    flat = np.zeros((2, 400, 400), np.float32)
    noisy = replace(NOTHING, noise_std=0.05)
    first, again, other = (changed(a, flat) for a in (noisy, noisy, replace(noisy, noise_seed=8)))
    np.testing.assert_array_equal(first, again)
    assert abs(np.corrcoef(first[0].ravel(), first[1].ravel())[0, 1]) < 0.01
    assert abs(np.corrcoef(first[0].ravel(), other[0].ravel())[0, 1]) < 0.01
    for channel in first:
        assert stats.kstest(channel.ravel() / 0.05, "norm").pvalue > 1e-3
        assert abs(np.corrcoef(channel[:, 1:].ravel(), channel[:, :-1].ravel())[0, 1]) < 0.01


def test_a_sample_with_everything_is_that_of_nnunets_transforms_one_after_the_other() -> None:
    everything = Augmentation(
        rotation_rad=0.5,
        scaling=0.9,
        mirrored=(True, False),
        noise_std=0.0,
        noise_seed=0,
        blur_sigma_px=((0.6, 0.9), (0.9, 0.7)),
        brightness=(1.2, 0.8),
        contrast=(0.8, 1.2),
        low_resolution=(1.0, 0.613),
        gamma_of_inverted=(1.3, 0.8),
        gamma=(0.75, 1.4),
    )
    size = (101, 90)
    corner = ((SIZE[0] - size[0]) / 2, (SIZE[1] - size[1]) / 2)
    image, labels = augment(IMAGE, LABELS, everything, everything.matrix(corner, size), size, masked=(True, False))
    expected = {"image": torch.from_numpy(IMAGE.copy()), "segmentation": torch.from_numpy(LABELS.copy())[None]}
    both, yes = torch.tensor([0, 1]), torch.tensor([True, True])
    for name, transform in stock.transforms(size, masked=(True, False)).items():
        if name == "spatial":
            expected = stock.spatial(size, 0.5, 0.9)(**expected)
        elif name == "mirror":
            expected = transform.apply(expected, axes=[0])
        elif name in ("mask", "padding_label"):
            expected = transform.apply(expected)
        elif name != "noise":
            values = torch.tensor(getattr(everything, "blur_sigma_px" if name == "blur" else name))
            parameters = {
                "apply_to_channel": yes if name == "blur" else both,
                "sigmas": everything.blur_sigma_px,
                "multipliers": values,
                "scales": torch.stack([values, values], 1) if name == "low_resolution" else None,
                "gamma": values,
                "retain_stats": yes,
                "invert_image": torch.tensor([name == "gamma_of_inverted"] * 2),
            }
            expected = transform.transform.apply(expected, **parameters)
    np.testing.assert_array_equal(labels, expected["segmentation"][0])
    assert np.abs(image - expected["image"].numpy()).max() < 1e-3 * np.ptp(image)
    assert (image[0] == 0).mean() > 0.05


def test_regions_are_nnunets() -> None:
    labels = np.maximum(LABELS, 0)
    regions = [(1, 2, 3), (2, 3), 4]
    expected = ConvertSegmentationToRegionsTransform(regions)._apply_to_segmentation(torch.from_numpy(labels)[None])
    np.testing.assert_array_equal(to_regions(labels, regions), expected)
