import itertools

import pytest
import torch

from nnunetv2_meddino.errors import ConfigurationError
from pretraining.counter_random import Stream, numpy_generator, torch_generator

KEYS = [
    (0, Stream.MODEL, 7, 64),
    (1, Stream.MODEL, 7, 64),
    (0, Stream.MASKS, 7, 64),
    (0, Stream.MODEL, 8, 64),
    (0, Stream.MODEL, 7, 65),
    (0, Stream.MODEL, 64, 7),
    (0, Stream.MODEL, 7),
]


def test_a_seed_draws_what_it_always_drew():
    """If this fails, runs that were begun before cannot be resumed: raise DRAWS_VERSION."""
    assert numpy_generator(5, Stream.VIEWS, 2, 3).random(2).tolist() == [0.534923392859697, 0.46990185201561474]
    assert numpy_generator(5, Stream.SLICE_ORDER, 2, 3).permutation(10).tolist() == [6, 3, 4, 1, 7, 0, 9, 8, 2, 5]
    drawn = torch.randint(2**31, (2,), generator=torch_generator(5, Stream.MODEL, 2, 3))
    assert drawn.tolist() == [
        1788245167,
        1259249163,
    ]


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
