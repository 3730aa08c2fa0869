"""Batches of whole slices for training, made by worker processes, in the same order whatever their number."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from nnunetv2_meddino.dataloading.cases import PreprocessedCases
from nnunetv2_meddino.dataloading.draws import Draw, Draws
from nnunetv2_meddino.errors import MedDINOError, TrainingError
from nnunetv2_meddino.shared_memory import check_shared_memory

AHEAD = 2
"""Batches that each worker makes ahead; the default of torch's loader."""

OUTSIDE = -1
"""Label of pixels outside the slice, as nnU-Net pads; its transforms make background of it."""

LabelTransform = Callable[..., dict[str, Any]]
"""nnU-Net's transforms of a validation sample: ``segmentation`` ``(1, rows, columns)`` -> what the loss takes."""

Batch = dict[str, Any]
"""``data`` ``(B, C, rows, columns)`` float32, ``target`` ``(B, 1 or regions, rows, columns)``, ``keys``: the cases."""


class SliceBatches(Dataset):
    """The batch of one rank at any step."""

    def __init__(self, cases: PreprocessedCases, draws: Draws, places: range, labels: LabelTransform) -> None:
        """Set up the batches.

        Args:
            cases: Where slices are read.
            draws: Which slices and boxes.
            places: Those of the global batch that this rank makes.
            labels: Applied to the labels of each sample.
        """
        self.cases, self.draws, self.places, self.labels = cases, draws, places, labels

    def batch(self, step: int) -> Batch:
        """Make the batch of a step.

        Raises:
            DataError: A case cannot be read.
        """
        drawn = [self.draws.draw(step, place) for place in self.places]
        samples = [crop(self.cases, draw, self.draws.size) for draw in drawn]
        targets = [self.labels(segmentation=torch.from_numpy(labels)[None])["segmentation"] for _, labels in samples]
        return {
            "data": torch.from_numpy(np.stack([image for image, _ in samples])),
            "target": torch.stack(targets),
            "keys": [draw.case for draw in drawn],
        }

    def __getitem__(self, step: int) -> Batch | MedDINOError:
        """Make a batch in a worker; torch would bury the message of an error under the worker's traceback."""
        try:
            return self.batch(step)
        except MedDINOError as error:
            return error


def crop(cases: PreprocessedCases, draw: Draw, size: tuple[int, int]) -> tuple[NDArray[np.float32], NDArray[np.int16]]:
    """Return the box of a sample: image ``(C, rows, columns)`` and labels ``(rows, columns)``.

    Outside the slice, where that is smaller, the image is 0 and the labels are ``OUTSIDE``.

    Raises:
        DataError: The case cannot be read.
    """
    inside = [
        (max(0, start), min(length, start + n))
        for start, n, length in zip(draw.corner, size, cases.shape(draw.case)[1:], strict=True)
    ]
    image, labels = cases.read(draw.case, draw.slice_index, *inside)
    if labels.shape == size:
        return image, labels
    padding = [
        (begin - start, start + n - end) for (begin, end), start, n in zip(inside, draw.corner, size, strict=True)
    ]
    return np.pad(image, [(0, 0), *padding]), np.pad(labels, padding, constant_values=OUTSIDE)


class BatchLoader(Iterator[Batch]):
    """The batches of a rank from a step on, without end; workers start with the first one that is asked for."""

    def __init__(self, batches: SliceBatches, *, first_step: int, workers: int, pin_memory: bool) -> None:
        """Set up the iteration.

        Args:
            batches: What to iterate over.
            first_step: Step of the first batch; those from there on are those of an undisturbed training.
            workers: Processes that make batches; 0 makes them in this one.
            pin_memory: Put them into page-locked memory, for a GPU.
        """
        self.batches, self.first_step, self.workers, self.pin_memory = batches, first_step, workers, pin_memory
        self._iterator: Iterator[Batch | MedDINOError] | None = None

    def __next__(self) -> Batch:
        """Return the next batch.

        Raises:
            DataError: A case cannot be read, or shared memory is too small.
        """
        if self._iterator is None:
            self._iterator = self._start()
        made = next(self._iterator)
        if isinstance(made, MedDINOError):
            raise made
        return made

    def close(self) -> None:
        """End the workers."""
        self._iterator = None

    def _start(self) -> Iterator[Batch | MedDINOError]:
        if self.workers:
            check_shared_memory((self.workers * AHEAD + 1) * _bytes(self.batches.batch(self.first_step)))
        loader = DataLoader(
            self.batches,
            sampler=itertools.count(self.first_step),
            batch_size=None,
            collate_fn=_unchanged,
            num_workers=self.workers,
            prefetch_factor=AHEAD if self.workers else None,
            pin_memory=self.pin_memory,
            generator=torch.Generator(),  # else it would draw from the one that the training draws from
        )
        return iter(loader)


@contextmanager
def worker_errors() -> Iterator[None]:
    """Say what to do when a worker was killed; torch raises that wherever the training is at that moment.

    Raises:
        TrainingError: A worker was killed.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        msg = (
            f"A process that makes training batches ended: {str(error).strip()} If it was killed, memory most likely "
            "ran out: use fewer of them (nnUNet_n_proc_DA). Continue from the last checkpoint with --c."
        )
        raise TrainingError(msg) from error


def _unchanged(batch: object) -> object:
    return batch


def _bytes(batch: Batch) -> int:
    return sum(value.nbytes for value in batch.values() if isinstance(value, Tensor))
