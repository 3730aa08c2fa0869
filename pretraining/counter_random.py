"""What a pretraining draws random numbers for, and the version of all these draws."""

from __future__ import annotations

from enum import IntEnum

import torch

from nnunetv2_meddino.counter_random import numpy_generator

DRAWS_VERSION = 2
"""Of everything that a training draws from its seed; a run that was begun with another version cannot be resumed.

1: order of slices, views and stochastic depth by a Feistel network and a Philox4x32 of our own. 2: all by numpy.
"""


class Stream(IntEnum):
    """What a number is drawn for; numbers of different streams are independent under one seed."""

    SLICE_ORDER = 1
    SOURCE_ORDER = 2
    VIEWS = 3
    MASKS = 4
    MODEL = 5


def torch_generator(seed: int, stream: Stream, *counters: int) -> torch.Generator:
    """Return a generator on the CPU; see ``numpy_generator``."""
    state = numpy_generator(seed, stream, *counters).bit_generator.random_raw()
    return torch.Generator().manual_seed(state)
