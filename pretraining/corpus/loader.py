"""Batches of slices in exact order, decompressed by worker processes into a ring of shared memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from nnunetv2_meddino.errors import DataError
from nnunetv2_meddino.shared_memory import check_shared_memory
from pretraining.corpus.dataset import SliceDataset, Slices
from pretraining.corpus.sampler import Draw, SampleOrder, StepSampler, shares_of

AHEAD = 2
"""Batches that each worker reads ahead; the default of torch's loader."""


def slice_loader(
    corpus: str | Path | SliceDataset,
    *,
    batch_size: int,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    start_step: int = 0,
    weights: Mapping[str, float] | None = None,
    timeout_s: float = 600.0,
) -> Iterator[tuple[int, Slices]]:
    """Yield (step, batch) without end, the same batches for any number of workers.

    The pixels of a batch lie in a ring of buffers and are overwritten when the next batch but one is requested: copy
    what must last longer.

    Args:
        corpus: Folder of a corpus, or one already opened.
        batch_size: Slices of a rank in a step, B.
        seed: 0 to 2**32 - 1. Seed, step and ``batch_size * world_size`` determine the global batch.
        rank: This process, from 0.
        world_size: Number of processes.
        workers: Processes that decompress; 0 does it in this one.
        start_step: First step; the batches are those that an undisturbed run yields from there on.
        weights: Relative sampling weights of the sources; those not named are left out. None: all slices count alike.
        timeout_s: How long to wait for a batch of the workers.

    Raises:
        ConfigurationError: A number or a weight is out of range.
        DataError: The corpus cannot be read or has no usable slices, a worker died or is too slow, or shared memory is
            too small.
    """
    dataset = corpus if isinstance(corpus, SliceDataset) else SliceDataset(corpus)
    slots = workers * AHEAD + 2
    sampler = StepSampler(
        sample_order(dataset, seed=seed, weights=weights),
        batch_size=batch_size,
        rank=rank,
        world_size=world_size,
        start_step=start_step,
        slots=slots,
    )
    ring = _ring((slots, batch_size, dataset.side, dataset.side), shared=workers > 0)
    return _batches(sampler, _RingReader(dataset, ring), workers, timeout_s)


def sample_order(dataset: SliceDataset, *, seed: int, weights: Mapping[str, float] | None = None) -> SampleOrder:
    """Return the sequence of slices that the batches are consecutive pieces of.

    Args:
        dataset: An opened corpus.
        seed: 0 to 2**32 - 1.
        weights: Relative sampling weights of the sources; see ``slice_loader``.

    Raises:
        ConfigurationError: The seed or a weight is out of range.
        DataError: The corpus has no usable slices.
    """
    rows = dataset.rows_by_source()
    shares = shares_of(weights or {}, {source: len(group) for source, group in rows.items()})
    groups = [rows[source] for source in shares] if shares else [dataset.usable_rows()]
    if not len(groups[0]):
        raise DataError(f"{dataset.corpus} has no usable slices: all of them hold nothing but air")
    return SampleOrder(groups, list(shares.values()) or [1.0], seed=seed)


def _batches(sampler: StepSampler, reader: _RingReader, workers: int, timeout_s: float) -> Iterator[tuple[int, Slices]]:
    loader = DataLoader(
        reader,
        batch_sampler=sampler,  # type: ignore[arg-type]  # a batch's indices are one Draw
        collate_fn=_unchanged,
        num_workers=workers,
        prefetch_factor=AHEAD if workers else None,
        timeout=timeout_s if workers else 0,
    )
    try:
        for draw, problem in loader:
            if problem:
                raise DataError(problem)
            yield draw.step, reader.dataset.described(draw.rows, draw.global_index, reader.ring[draw.slot])
    except RuntimeError as error:
        advice = (
            "If it was killed, memory ran out: use fewer workers or a smaller batch. If it timed out, the disk is too "
            "slow or gone: check the corpus' file system, or raise --engine.timeout-s."
        )
        raise DataError(f"reading slices of {reader.dataset.corpus} stopped: {error}. {advice}") from error


class _RingReader(Dataset):
    """Reads batches into the slots of a ring; returns nothing but the draw, and the message of an error."""

    def __init__(self, dataset: SliceDataset, ring: Tensor) -> None:
        self.dataset, self.ring = dataset, ring

    def __getitems__(self, draw: Draw) -> tuple[Draw, str]:
        try:
            self.dataset.decode(draw.rows, self.ring[draw.slot])
        except DataError as error:
            return draw, str(error)  # torch would bury the message under the worker's traceback
        return draw, ""


def _unchanged(batch: object) -> object:
    return batch


def _ring(shape: tuple[int, ...], *, shared: bool) -> Tensor:
    if not shared:
        return torch.empty(shape, dtype=torch.int16)
    check_shared_memory(int(np.prod(shape)) * 2)
    return torch.empty(shape, dtype=torch.int16).share_memory_()
