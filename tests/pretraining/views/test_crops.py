import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import RandomResizedCrop

from nnunetv2_meddino.errors import ConfigurationError
from pretraining.views import IntensityConfig, ViewConfig
from pretraining.views.crops import NO_SOLARISE, draw_boxes, draw_parameters

RATIO = (3 / 4, 4 / 3)
CONFIG = ViewConfig(flip_probability=0.5, global_2_solarise_probability=0.2)


def parameters(count=4, size=(512, 512), config=CONFIG, *, seed=0, step=0, first=0):
    sizes = torch.tensor([size] * count)
    return draw_parameters(sizes, torch.arange(first, first + count), config, seed=seed, step=step)


@pytest.mark.parametrize("size", [(512, 512), (300, 512), (40, 33)])
@pytest.mark.parametrize("scale", [(0.32, 1.0), (0.05, 0.32)])
def test_regions_follow_the_law_of_torchvision(size, scale):
    count = 4000
    draws = np.random.default_rng(0).random((count, 22))
    ours = draw_boxes(draws, np.array(size), np.array(scale), RATIO)
    torch.manual_seed(0)
    image = torch.empty(1, *size)
    theirs = np.array([RandomResizedCrop.get_params(image, scale, RATIO) for _ in range(count)])
    quantities = {
        "top": lambda b: b[:, 0],
        "left": lambda b: b[:, 1],
        "height": lambda b: b[:, 2],
        "width": lambda b: b[:, 3],
        "area": lambda b: b[:, 2] * b[:, 3],
        "aspect": lambda b: b[:, 3] / b[:, 2],
    }
    for name, quantity in quantities.items():
        assert stats.ks_2samp(quantity(ours), quantity(theirs)).pvalue > 0.005, name
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, :2] + ours[:, 2:] <= np.array(size)).all()


@pytest.mark.parametrize(("size", "box"), [((100, 900), None), ((900, 100), None), ((100, 101), (0, 0, 100, 101))])
def test_where_no_try_fits_the_region_is_the_central_one_of_torchvision(size, box):
    scale = (3.0, 3.0)  # no region three times the image fits
    expected = RandomResizedCrop.get_params(torch.empty(1, *size), scale, RATIO)
    ours = draw_boxes(np.full((1, 22), 0.5), np.array(size), np.array(scale), RATIO)
    assert tuple(ours[0].tolist()) == tuple(expected)
    assert box is None or tuple(expected) == box


def test_the_first_fitting_try_is_taken():
    draws = np.full((1, 22), 0.5)
    draws[0, 0:2] = 0.999, 0.999  # nearly the whole area at 4 : 3 does not fit a square
    draws[0, 2:4] = 0.0, 0.5
    draws[0, 4:6] = 0.9, 0.5
    box = draw_boxes(draws, np.array((100, 100)), np.array((0.25, 1.0)), RATIO)
    assert box[0, 2:].tolist() == [50, 50]
    assert box[0, :2].tolist() == [25, 25]


def test_a_sample_gets_the_same_parameters_in_any_batch():
    whole = parameters(8)
    part = parameters(3, first=4)
    for name, values in vars(whole).items():
        assert torch.equal(values[4:7], getattr(part, name)), name


@pytest.mark.parametrize("changes", [{"seed": 1}, {"step": 1}, {"first": 100}])
def test_other_seeds_steps_and_slices_give_other_parameters(changes):
    ours, other = parameters(), parameters(**changes)
    assert (ours.boxes != other.boxes).any(-1).all()
    assert (ours.brightness != other.brightness).any()


def test_augmentation_comes_as_often_as_the_reference_made_them():
    drawn = parameters(4000)
    blurred = (drawn.blur_sigma > 0).double().mean(0)
    assert blurred[0] == 0  # the reference: 0 of 400
    assert abs(blurred[1] - 0.9) < 0.02
    assert (abs(blurred[2:] - 0.5) < 0.03).all()
    for factor in (drawn.brightness, drawn.contrast):
        assert (abs((factor != 1).double().mean(0) - 0.8) < 0.025).all()
        assert stats.kstest(factor[factor != 1].numpy(), stats.uniform(0.6, 0.8).cdf).pvalue > 0.005
    assert ((drawn.brightness != 1) == (drawn.contrast != 1)).all()
    sigma = drawn.blur_sigma[drawn.blur_sigma > 0].numpy()
    assert stats.kstest(sigma, stats.uniform(0.1, 1.9).cdf).pvalue > 0.005
    assert (abs(drawn.contrast_first.double().mean(0) - 0.5) < 0.03).all()
    assert (abs(drawn.flips.double().mean(0) - 0.5) < 0.03).all()
    solarised = (drawn.solarise_threshold != NO_SOLARISE).double().mean(0)
    assert abs(solarised[1] - 0.2) < 0.02
    assert solarised.sum() == solarised[1]


def test_defaults_neither_flip_nor_solarise():
    drawn = parameters(500, config=ViewConfig())
    assert not drawn.flips.any()
    assert (drawn.solarise_threshold == NO_SOLARISE).all()


def test_windows_are_drawn_evenly_for_each_slice():
    config = ViewConfig(intensity=IntensityConfig(rule="window", windows_hu=((40, 400), (-600, 1500), (400, 1800))))
    counts = torch.bincount(parameters(3000, config=config).window)
    assert len(counts) == 3
    assert stats.chisquare(counts).pvalue > 0.01


def test_refuses_a_seed_out_of_range():
    with pytest.raises(ConfigurationError, match="seed"):
        parameters(seed=-1)
