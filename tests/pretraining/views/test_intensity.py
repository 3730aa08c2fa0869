import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torchvision.transforms.v2 import functional as TF

from pretraining.views import IntensityConfig
from pretraining.views.intensity import augment, intensity_scale, to_input, to_unit
from tests.conftest import shared_path
from tests.pretraining.views.batches import noise

SIZES = [(48, 48), (30, 48), (40, 33)]


def inputs(batch, config, window=(0, 0, 0)):
    scale = intensity_scale(batch.pixels, batch.sizes, torch.tensor(window), config)
    return to_input(to_unit(batch.pixels, scale)[:, None], scale)


def regions(batch, values):
    return [v[0, :h, :w].numpy() for v, (h, w) in zip(values, batch.sizes.tolist(), strict=True)]


def test_the_ct_rule_equals_the_golden_normalisation():
    golden = load_file(shared_path("golden/ops/ct_normalize.safetensors"))
    hu = golden["hu"].float().flatten()
    whole = hu == hu.round()
    pixels = hu[whole].clamp(-(2**15), 2**15 - 1).to(torch.int16)
    count = int(np.sqrt(len(pixels))) ** 2
    assert count > 0
    pixels = pixels[:count].view(1, int(np.sqrt(count)), -1)
    scale = intensity_scale(pixels, torch.tensor([pixels.shape[1:]]), torch.tensor([0]), IntensityConfig())
    ours = to_input(to_unit(pixels, scale)[:, None], scale).flatten()
    torch.testing.assert_close(ours, golden["normalized"].float().flatten()[whole][:count], atol=2e-6, rtol=0)


def test_the_ct_rule_puts_air_and_bone_where_the_given_statistics_do():
    batch = noise(3, 48)
    batch.pixels[:, 0, :3] = torch.tensor([-1000, -3024, 3000], dtype=torch.int16)
    values = inputs(batch, IntensityConfig())
    expected = (np.array([-1000, -1000, 1000]) - 65.1084213256836) / 178.01663208007812
    torch.testing.assert_close(values[:, 0, 0, :3].double(), torch.tensor(expected).expand(3, 3), atol=1e-5, rtol=0)


def test_windows_clip_and_scale_to_one():
    batch = noise(3, 48)
    config = IntensityConfig(rule="window", windows_hu=((40, 400), (-600, 1500)))
    values = inputs(batch, config, window=(0, 1, 0))
    pixels = batch.pixels.float()
    torch.testing.assert_close(values[0, 0], ((pixels[0].clamp(-160, 240) - 40) / 200), atol=1e-5, rtol=0)
    torch.testing.assert_close(values[1, 0], ((pixels[1].clamp(-1350, 150) + 600) / 750), atol=1e-5, rtol=0)


def test_zscores_count_the_slice_and_not_its_padding():
    batch = noise(3, 48, SIZES)
    for values, (height, width), pixels in zip(
        regions(batch, inputs(batch, IntensityConfig(rule="zscore"))), SIZES, batch.pixels, strict=True
    ):
        of_slice = pixels[:height, :width].numpy().astype(np.float64)
        np.testing.assert_allclose(values, (of_slice - of_slice.mean()) / of_slice.std(), atol=1e-5)


def test_percentiles_are_those_of_the_body():
    batch = noise(3, 48, SIZES)
    batch.pixels[:, :10] = -1300  # the background, lower than everything else
    batch = batch.padded_with(-1024)
    config = IntensityConfig(rule="percentile", percentiles=(2.0, 97.3))
    for values, (height, width), pixels in zip(regions(batch, inputs(batch, config)), SIZES, batch.pixels, strict=True):
        of_slice = pixels[:height, :width].numpy().astype(np.float64)
        body = of_slice > -1300
        clipped = of_slice.clip(*np.percentile(of_slice[body], (2.0, 97.3)))
        np.testing.assert_allclose(values, (clipped - clipped[body].mean()) / clipped[body].std(), atol=1e-5)


@pytest.mark.parametrize("rule", ["ct", "window", "zscore", "percentile"])
def test_padding_changes_nothing_and_slices_of_one_value_stay_finite(rule):
    batch = noise(3, 48, SIZES)
    batch.pixels[2] = 77
    config = IntensityConfig(rule=rule)
    first = regions(batch, inputs(batch, config))
    second = regions(batch, inputs(batch.padded_with(30000), config))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)
        assert np.isfinite(a).all()
        assert np.abs(a).max() < 100


def crops(count=6, size=40):
    return torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(3))


def augmented(images, **changes):
    count = len(images)
    neutral = {
        "brightness": torch.ones(count),
        "contrast": torch.ones(count),
        "contrast_first": torch.zeros(count, dtype=torch.bool),
        "blur_sigma": torch.zeros(count),
        "blur_kernel": 9,
        "solarise_threshold": torch.full((count,), 2.0),
    }
    return augment(images, **neutral | changes)


def test_neutral_parameters_change_nothing():
    assert torch.equal(augmented(crops()), crops())


FACTORS = torch.tensor([0.6, 0.8, 1.0, 1.1, 1.3, 1.4])


@pytest.mark.parametrize("first", [False, True])
def test_brightness_and_contrast_are_torchvisions_in_either_order(first):
    ours = augmented(crops(), brightness=FACTORS, contrast=FACTORS.flip(0), contrast_first=torch.full((6,), first))
    for image, result, brightness, contrast in zip(crops(), ours, FACTORS, FACTORS.flip(0), strict=True):
        steps = [(TF.adjust_brightness, brightness.item()), (TF.adjust_contrast, contrast.item())]
        for step, factor in reversed(steps) if first else steps:
            image = step(image, factor)
        torch.testing.assert_close(result, image, atol=1e-6, rtol=0)


def test_blur_is_torchvisions_with_a_sigma_for_each_crop():
    sigma = torch.tensor([0.0, 0.1, 0.5, 1.0, 2.0, 0.0])
    ours = augmented(crops(), blur_sigma=sigma)
    for image, result, s in zip(crops(), ours, sigma.tolist(), strict=True):
        expected = TF.gaussian_blur(image, [9, 9], [s, s]) if s else image
        torch.testing.assert_close(result, expected, atol=1e-6, rtol=0)


def test_solarising_is_torchvisions():
    threshold = torch.tensor([2.0, 0.5, 0.25, 0.5, 2.0, 1.0])
    ours = augmented(crops(), solarise_threshold=threshold)
    for image, result, t in zip(crops(), ours, threshold.tolist(), strict=True):
        expected = TF.solarize(image, t) if t <= 1 else image
        torch.testing.assert_close(result, expected, atol=1e-6, rtol=0)


def test_blur_comes_after_jitter_and_before_solarising():
    image = crops(1)
    ours = augmented(
        image,
        brightness=torch.tensor([1.4]),
        blur_sigma=torch.tensor([1.5]),
        solarise_threshold=torch.tensor([0.5]),
    )
    expected = TF.solarize(TF.gaussian_blur(TF.adjust_brightness(image, 1.4), [9, 9], [1.5, 1.5]), 0.5)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
