"""Batches of whole slices for training, made by worker processes, in the same order whatever their number."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate
from torch.utils.data._utils import signal_handling

from nnunetv2_meddino.counter_random import numpy_generator
from nnunetv2_meddino.dataloading.augmentation import (
    Augmentation,
    AugmentationSettings,
    augment,
    draw_augmentation,
    to_regions,
)
from nnunetv2_meddino.dataloading.cases import PreprocessedCases
from nnunetv2_meddino.dataloading.draws import Draw, Draws, Stream
from nnunetv2_meddino.dataloading.warp import source_box, warp
from nnunetv2_meddino.environment import NNUNET_N_PROC_DA
from nnunetv2_meddino.errors import MedDINOError, TrainingError
from nnunetv2_meddino.shared_memory import check_shared_memory

AHEAD = 2
"""Batches that each worker makes ahead; the default of torch's loader."""

Batch = dict[str, Any]
"""``data`` ``(B, C, rows, columns)`` float32, ``target`` ``(B, 1 or regions, rows, columns)``, ``keys``: the cases."""


@dataclass(frozen=True)
class SampleSettings:
    """What becomes of a slice on its way to the network."""

    augmentation: AugmentationSettings | None
    """None: a sample is its box as it is."""
    masked: tuple[bool, ...]
    """For each channel whether it is 0 outside of what nnU-Net normalised (``use_mask_for_norm``)."""
    regions: tuple[int | tuple[int, ...], ...] | None
    """The labels of each region, the ignore label as one more; None: the target is the label map."""


@dataclass(frozen=True)
class Box:
    """The part of a slice that the warp of one sample looks at, and what is to happen to it."""

    case: str
    """Where it is from."""
    image: NDArray[np.float32]
    """``(C, H, W)``."""
    labels: NDArray[np.int16]
    """``(H, W)``."""
    matrix: NDArray[np.float64]
    """As for ``warp``."""
    augmentation: Augmentation | None
    """None: nothing."""


class SliceBatches(Dataset):
    """The batch of one rank at any step."""

    def __init__(self, cases: PreprocessedCases, draws: Draws, settings: SampleSettings, places: range) -> None:
        """Set up the batches.

        Args:
            cases: Where slices are read.
            draws: Which slices and boxes.
            settings: What becomes of them.
            places: Those of the global batch that this rank makes.
        """
        self.cases, self.draws, self.settings, self.places = cases, draws, settings, places

    def batch(self, step: int) -> Batch:
        """Make the batch of a step.

        Raises:
            DataError: A case cannot be read.
        """
        cases, images, targets = [], [], []
        for box in self.boxes(step):
            image, target = self._sample(box)
            cases.append(box.case)
            images.append(torch.from_numpy(image))
            targets.append(torch.from_numpy(target))
        # in a worker, torch stacks them in shared memory
        return {"data": default_collate(images), "target": default_collate(targets), "keys": cases}

    def boxes(self, step: int) -> Iterator[Box]:
        """Read what the samples of a step are made of; raises as ``batch``."""
        for place in self.places:
            draw = self.draws.draw(step, place)
            if self.settings.augmentation is None:
                augmentation, matrix = None, _shift(draw.corner)
            else:
                rng = numpy_generator(self.draws.seed, Stream.AUGMENTATION, step, place)
                augmentation = draw_augmentation(rng, self.settings.augmentation)
                matrix = augmentation.matrix(draw.corner, self.draws.size)
            yield Box(draw.case, *self._read(draw, matrix), augmentation)

    def hand_over(self, step: int) -> Any:
        """Return what a worker gives to the training process for a step: here the batch; raises as ``batch``."""
        return self.batch(step)

    def most_bytes(self) -> int:
        """Return how much of shared memory a step takes at most; raises as ``batch``."""
        return sum(value.nbytes for value in self.batch(0).values() if isinstance(value, Tensor))

    def __getitem__(self, step: int) -> Any:
        """Run in a worker; torch would bury the message of an error under the worker's traceback."""
        try:
            return self.hand_over(step)
        except MedDINOError as error:
            return error

    def _sample(self, box: Box) -> tuple[NDArray[np.float32], NDArray[Any]]:
        """Return image ``(C, rows, columns)`` and target ``(1 or regions, rows, columns)``."""
        size, settings = self.draws.size, self.settings
        if box.augmentation is None:
            image, labels = warp(box.image, box.labels, box.matrix, size)
            np.maximum(labels, 0, out=labels)
        else:
            image, labels = augment(box.image, box.labels, box.augmentation, box.matrix, size, settings.masked)
        return image, labels[None] if settings.regions is None else to_regions(labels, settings.regions)

    def _read(
        self, draw: Draw, matrix: NDArray[np.float64]
    ) -> tuple[NDArray[np.float32], NDArray[np.int16], NDArray[np.float64]]:
        """Read what a warp looks at, and return it with the matrix that begins there."""
        shape = self.cases.shape(draw.case)[1:]
        box = source_box(matrix, self.draws.size)
        rows, columns = ((max(0, start), min(length, end)) for (start, end), length in zip(box, shape, strict=True))
        image, labels = self.cases.read(draw.case, draw.slice_index, rows, columns)
        return image, labels, matrix - [[0, 0, rows[0]], [0, 0, columns[0]]]


def _shift(corner: tuple[int, int]) -> NDArray[np.float64]:
    """Return the matrix of a box as it is."""
    return np.array([[1.0, 0.0, corner[0]], [0.0, 1.0, corner[1]]])


class BatchLoader(Iterator[Batch]):
    """The batches of a rank from a step on, without end; workers start with the first one that is asked for."""

    def __init__(
        self,
        batches: SliceBatches,
        *,
        first_step: int,
        workers: int,
        pin_memory: bool,
        finish: Callable[[Any], Batch] | None = None,
    ) -> None:
        """Set up the iteration.

        Args:
            batches: What to iterate over.
            first_step: Step of the first batch; those from there on are those of an undisturbed training.
            workers: Processes that make batches; 0 makes them in this one.
            pin_memory: Put them into page-locked memory, for a GPU.
            finish: What this process makes a batch with of what ``batches`` hand over; None where that is the batch.
        """
        self.batches, self.first_step, self.workers, self.pin_memory = batches, first_step, workers, pin_memory
        self.finish = _unchanged if finish is None else finish
        self._iterator: Iterator[Any] | None = None

    def __next__(self) -> Batch:
        """Return the next batch.

        Raises:
            DataError: A case cannot be read, or shared memory is too small.
            TrainingError: A worker was killed; this takes seconds to be seen.
        """
        if self._iterator is None:
            self._iterator = self._start()
        try:
            made = next(self._iterator)
        except (RuntimeError, OSError, EOFError) as error:
            if not self.workers or str(error).startswith("Caught "):  # how torch hands on what a worker has raised
                raise
            msg = (
                f"A process that makes training batches is gone ({str(error).strip()}). Most likely memory ran out: "
                f"use fewer of them ({NNUNET_N_PROC_DA.name}). Continue from the last checkpoint with --c."
            )
            raise TrainingError(msg) from error
        if isinstance(made, MedDINOError):
            raise made
        return self.finish(made)

    def close(self) -> None:
        """End the workers."""
        self._iterator = None

    def _start(self) -> Iterator[Any]:
        if self.workers:
            check_shared_memory((self.workers * AHEAD + 1) * self.batches.most_bytes())
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
        iterator: Any = iter(loader)
        if self.workers:  # torch's handler of dead processes would raise in the middle of anything: it forgets them
            signal_handling._remove_worker_pids(id(iterator))
            iterator._worker_pids_set = False
        return iterator


def _unchanged(made: Any) -> Any:
    return made
