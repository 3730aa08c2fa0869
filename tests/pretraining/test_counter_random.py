import itertools

import numpy as np
import pytest
import torch

from nnunetv2_meddino.counter_random import numpy_generator
from nnunetv2_meddino.errors import ConfigurationError
from pretraining.corpus.sampler import SampleOrder
from pretraining.counter_random import Stream, torch_generator
from pretraining.views import MaskConfig, ViewConfig
from pretraining.views.crops import draw_parameters
from pretraining.views.masks import draw_masks

KEYS = [
    (0, Stream.MODEL, 7, 64),
    (1, Stream.MODEL, 7, 64),
    (0, Stream.MASKS, 7, 64),
    (0, Stream.MODEL, 8, 64),
    (0, Stream.MODEL, 7, 65),
    (0, Stream.MODEL, 64, 7),
    (0, Stream.MODEL, 7),
]


def test_a_training_draws_what_it_always_drew():
    """If this fails, runs that were begun before cannot be resumed exactly: raise DRAWS_VERSION."""
    order = SampleOrder([np.arange(5), np.arange(5, 20)], [0.25, 0.75], seed=5)
    assert order.rows(0, 8).tolist() == [8, 18, 6, 9, 10, 4, 15, 16]
    views = draw_parameters(torch.tensor([[512, 400]]), torch.tensor([3]), ViewConfig(), seed=5, step=2)
    assert views.boxes[0, [0, 9]].tolist() == [[15, 1, 337, 388], [148, 212, 154, 153]]
    assert views.contrast[0, 1].item() == pytest.approx(1.007811)
    masks = draw_masks(4, 4, MaskConfig(), seed=5, step=2, first=3)
    assert masks.indices.tolist() == [
        20,
        21,
        24,
        25,
        36,
        37,
        38,
        40,
        41,
        42,
        44,
        45,
    ]
    model = torch.randint(2**31, (2,), generator=torch_generator(5, Stream.MODEL, 2, 3))
    assert model.tolist() == [1788245167, 1259249163]


@pytest.mark.parametrize("make", [numpy_generator, torch_generator])
def test_generators_depend_on_seed_stream_and_counters_alone(make):
    def draw(key):
        generator = make(*key)
        return tuple(generator.random(4) if make is numpy_generator else torch.rand(4, generator=generator).tolist())

    first = draw(KEYS[0])
    torch.rand(3)
    assert draw(KEYS[0]) == first
    assert len({draw(key) for key in KEYS}) == len(KEYS)


def test_the_numbers_of_neighbouring_steps_and_slices_do_not_overlap():
    drawn = [set(numpy_generator(*key).random(5000).tolist()) for key in KEYS]
    assert all(a.isdisjoint(b) for a, b in itertools.combinations(drawn, 2))


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seeds_out_of_range_are_refused(seed):
    with pytest.raises(ConfigurationError, match="out of range"):
        torch_generator(seed, Stream.MODEL, 0)
