"""Random numbers as a pure function of a seed and of counters: any one of them can be drawn again alone."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from nnunetv2_meddino.errors import ConfigurationError

MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
LOW = np.uint64(0xFFFFFFFF)
HALF = np.uint64(32)


class Stream(IntEnum):
    """What a number is drawn for; numbers of different streams are independent under one seed."""

    SLICE_ORDER = 1
    SOURCE_ORDER = 2
    VIEWS = 3
    MASKS = 4
    MODEL = 5


def check_seed(seed: int) -> None:
    """Refuse a seed that does not fit the 32 bits that the generator has for it.

    Raises:
        ConfigurationError: The seed is negative or 2**32 or more.
    """
    if not 0 <= seed < 2**32:
        raise ConfigurationError(f"seed {seed} is out of range: choose a whole number from 0 to {2**32 - 1}")


def philox(seed: int, stream: int, *counters: ArrayLike) -> NDArray[np.uint64]:
    """Return four random 32-bit words for every element of up to four counters.

    Philox4x32-10: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011; ten rounds and all constants
    from there. The key is (seed, stream).

    Args:
        seed: 32 bits.
        stream: 32 bits.
        counters: Whole numbers below 2**32, broadcast against each other; missing ones are 0.

    Returns:
        ``(*broadcast shape, 4)`` words below 2**32, in 64-bit elements.
    """
    words = np.broadcast_arrays(*(np.asarray(c, np.uint64) & LOW for c in (*counters, *(0,) * (4 - len(counters)))))
    a, b, c, d = words
    for step in range(ROUNDS):
        left, right = (np.uint64((k + step * s) & 0xFFFFFFFF) for k, s in zip((seed, stream), KEY_STEPS, strict=True))
        first, second = a * MULTIPLIERS[0], c * MULTIPLIERS[1]
        a, b, c, d = (second >> HALF) ^ b ^ left, second & LOW, (first >> HALF) ^ d ^ right, first & LOW
    return np.stack((a, b, c, d), axis=-1)


def uniform(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Return 32-bit words as numbers evenly spread over the open interval (0, 1)."""
    return (words.astype(np.float64) + 0.5) * 2.0**-32


def torch_generator(seed: int, stream: int, *counters: int) -> torch.Generator:
    """Return a generator on the CPU that is in the same state whenever seed, stream and counters are the same."""
    high, low = (int(word) for word in philox(seed, stream, *counters)[:2])
    return torch.Generator().manual_seed(high << 32 | low)
