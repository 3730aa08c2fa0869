"""The order in which slices are seen: a function of seed and step alone, for any number of ranks and workers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nnunetv2_meddino.counter_random import check_seed, numpy_generator
from nnunetv2_meddino.errors import ConfigurationError
from pretraining.counter_random import Stream

CYCLE = 2**16
"""Samples after which each source has had its exact share; the smallest share is one in this many."""


def shares_of(weights: Mapping[str, float], slices: Mapping[str, int]) -> dict[str, float]:
    """Return the share of each source in the samples, adding up to 1; empty where all slices count alike.

    Args:
        weights: Relative weights of the sources; sources that are not named are left out. Empty for all slices alike.
        slices: Number of usable slices of every source in the corpus.

    Raises:
        ConfigurationError: A weight is not a positive number, is below one part in 65,536, or names a source that has
            no slices in this corpus.
    """
    for source, weight in weights.items():
        if not slices.get(source):
            known = ", ".join(sorted(name for name, count in slices.items() if count))
            raise ConfigurationError(f"sampling weight for {source!r}: no usable slices; the corpus has: {known}")
        if not (math.isfinite(weight) and weight > 0):
            raise ConfigurationError(f"sampling weight {weight} of {source!r}: give a positive number, or leave it out")
    total = sum(weights.values())
    shares = {source: weight / total for source, weight in sorted(weights.items())}
    for source, share in shares.items():
        if share * CYCLE < 1:
            raise ConfigurationError(
                f"{source!r} would be {share:.2g} of the samples, less than one in {CYCLE}: raise its weight, or leave "
                "it out"
            )
    return shares


class SampleOrder:
    """The endless sequence of slices: the n-th sample of a run, for any n, without drawing those before it.

    Sources are mixed in cycles of 65,536 samples: each has its exact share of a cycle (largest remainders), in random
    order. Each source has epochs of its own, a random permutation of its slices each, so that every slice is seen once
    before any is seen again. The permutation of the current epoch is kept, 4 bytes a slice.
    """

    def __init__(self, groups: Sequence[NDArray[np.int32]], shares: Sequence[float], *, seed: int) -> None:
        """Set up the sequence.

        Args:
            groups: Rows of the manifest, one non-empty array for each source.
            shares: Share of each source, adding up to 1.
            seed: 0 to 2**32 - 1.

        Raises:
            ConfigurationError: The seed is out of range.
        """
        check_seed(seed)
        self.groups, self.seed = list(groups), seed
        exact = np.asarray(shares, np.float64) * CYCLE
        self.quota = np.floor(exact).astype(np.int64)
        largest = np.argsort(self.quota - exact, kind="stable")[: CYCLE - int(self.quota.sum())]
        self.quota[largest] += 1
        self._epochs = [(-1, group) for group in self.groups]
        self._cycle = (-1, np.empty(0, np.int64), np.empty(0, np.int64))

    def rows(self, first: int, count: int) -> NDArray[np.int64]:
        """Return the rows of samples ``first`` to ``first + count - 1``, ``(count,)`` int64."""
        cycles, inside = np.divmod(np.arange(first, first + count), CYCLE)
        source, turn = np.empty(count, np.int64), np.empty(count, np.int64)
        for cycle in np.unique(cycles):
            here = cycles == cycle
            source[here], turn[here] = (values[inside[here]] for values in self._mixture(int(cycle)))
        rows = np.empty(count, np.int64)
        for index in np.unique(source):
            of_source = np.flatnonzero(source == index)
            epochs, places = np.divmod(turn[of_source], len(self.groups[index]))
            for epoch in np.unique(epochs):
                here = epochs == epoch
                rows[of_source[here]] = self._permutation(int(index), int(epoch))[places[here]]
        return rows

    def _permutation(self, source: int, epoch: int) -> NDArray[np.int32]:
        """Return the rows of a source in the order of an epoch; the last one of each source is kept."""
        if self._epochs[source][0] != epoch:
            generator = numpy_generator(self.seed, Stream.SLICE_ORDER, epoch, source)
            self._epochs[source] = epoch, generator.permutation(self.groups[source])
        return self._epochs[source][1]

    def _mixture(self, cycle: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return source and running number within the source of every sample of a cycle; the last cycle is kept."""
        if self._cycle[0] != cycle:
            generator = numpy_generator(self.seed, Stream.SOURCE_ORDER, cycle)
            source = generator.permutation(np.repeat(np.arange(len(self.quota)), self.quota))
            turn = np.empty(CYCLE, np.int64)
            for index, quota in enumerate(self.quota):
                turn[source == index] = cycle * quota + np.arange(quota)
            self._cycle = (cycle, source, turn)
        return self._cycle[1:]


@dataclass(frozen=True)
class Draw:
    """One batch of one rank."""

    step: int
    """Training step."""
    rows: NDArray[np.int64]
    """``(B,)`` rows of the manifest."""
    global_index: NDArray[np.int64]
    """``(B,)`` positions in the step's global batch."""
    slot: int
    """Where in the loader's ring the pixels go."""


class StepSampler:
    """The batches of one rank, from any step on.

    A step's global batch is the same for every number of ranks: rank r takes its positions ``r * B`` to
    ``(r + 1) * B - 1``.
    """

    def __init__(
        self, order: SampleOrder, *, batch_size: int, rank: int, world_size: int, start_step: int, slots: int
    ) -> None:
        """Set up the batches of a rank.

        Args:
            order: The sequence.
            batch_size: Slices a rank and step, B.
            rank: This process, from 0.
            world_size: Number of processes.
            start_step: First step, 0 or the one to resume at.
            slots: Batches in the loader's ring.

        Raises:
            ConfigurationError: A number is out of range.
        """
        if batch_size < 1 or world_size < 1 or not 0 <= rank < world_size or start_step < 0:
            raise ConfigurationError(
                f"batch size {batch_size}, rank {rank} of {world_size}, start step {start_step}: batch size and number "
                "of ranks must be at least 1, ranks count from 0, steps from 0"
            )
        self.order, self.start_step, self.slots = order, start_step, slots
        self.global_index = np.arange(rank * batch_size, (rank + 1) * batch_size)
        self.global_batch = batch_size * world_size

    def __iter__(self) -> Iterator[Draw]:
        step = self.start_step
        while True:
            first = step * self.global_batch + int(self.global_index[0])
            rows = self.order.rows(first, len(self.global_index))
            yield Draw(step, rows, self.global_index, (step - self.start_step) % self.slots)
            step += 1
