import numpy as np
import pytest
import torch
from scipy import stats

from nnunetv2_meddino.errors import ConfigurationError
from pretraining.counter_random import Stream, check_seed, philox, torch_generator, uniform

# the known answers that Random123, the authors' library, is tested with: key, counter -> four words
KNOWN = [
    ((0, 0), (0, 0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((2**32 - 1,) * 2, (2**32 - 1,) * 4, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0xA4093822, 0x299F31D0),
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("key", "counter", "words"), KNOWN)
def test_gives_the_published_known_answers(key, counter, words):
    assert tuple(int(word) for word in philox(*key, *counter)) == words


def test_an_element_of_a_batch_equals_the_element_drawn_alone():
    together = philox(5, 1, np.arange(7)[:, None], np.arange(3), 9)
    assert together.shape == (7, 3, 4)
    np.testing.assert_array_equal(together[4, 2], philox(5, 1, 4, 2, 9))


def test_numbers_are_uniform_and_uncorrelated_between_neighbouring_counters():
    values = uniform(philox(1, 2, np.arange(20000)))
    assert stats.kstest(values.ravel(), "uniform").pvalue > 0.01
    assert abs(np.corrcoef(values[:-1, 0], values[1:, 0])[0, 1]) < 0.02
    assert values.min() > 0
    assert values.max() < 1


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_refuses_seeds_it_would_have_to_cut(seed):
    with pytest.raises(ConfigurationError, match="out of range"):
        check_seed(seed)


def test_generator_depends_on_seed_stream_and_counters_alone():
    def draw(*key: int) -> list[float]:
        return torch.rand(4, generator=torch_generator(*key)).tolist()

    first = draw(0, Stream.MODEL, 7, 64)
    torch.rand(3)
    assert draw(0, Stream.MODEL, 7, 64) == first
    others = [draw(1, Stream.MODEL, 7, 64), draw(0, Stream.MASKS, 7, 64), draw(0, Stream.MODEL, 8, 64)]
    assert len({tuple(values) for values in [first, *others, draw(0, Stream.MODEL, 7, 65)]}) == 5
