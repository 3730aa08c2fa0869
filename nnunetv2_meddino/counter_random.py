"""Random numbers as a pure function of a seed and of counters: any one of them can be drawn again alone."""

from __future__ import annotations

import numpy as np

from nnunetv2_meddino.errors import ConfigurationError


def numpy_generator(seed: int, stream: int, *counters: int) -> np.random.Generator:
    """Return a generator that draws the same whenever seed, stream and counters are the same.

    Args:
        seed: 0 to 2**32 - 1.
        stream: What for; numbers of different streams are independent under one seed.
        counters: One or two whole numbers, such as a step and a slice.

    Raises:
        ConfigurationError: The seed is out of range.
    """
    check_seed(seed)
    # the generator itself counts in the two lowest words, so that no two sequences ever overlap
    counter = [0, 0, *counters, *[0] * (2 - len(counters))]
    key = np.array([seed, stream], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=np.array(counter, np.uint64)))


def check_seed(seed: int) -> None:
    """Refuse a seed that is not a whole number of 32 bits.

    Raises:
        ConfigurationError: The seed is negative or 2**32 or more.
    """
    if not 0 <= seed < 2**32:
        raise ConfigurationError(f"seed {seed} is out of range: choose a whole number from 0 to {2**32 - 1}")
