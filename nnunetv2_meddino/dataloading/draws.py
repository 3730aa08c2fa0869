"""Which case, slice and box a sample is: a function of the seed and the sample's place, for any number of workers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from nnunetv2_meddino.counter_random import numpy_generator
from nnunetv2_meddino.errors import ConfigurationError, DataError

Label = int | tuple[int, ...]
"""A class, or the labels of a region."""


class Stream(IntEnum):
    """What a number is drawn for; numbers of different streams are independent under one seed."""

    TRAINING = 101
    VALIDATION = 102
    AUGMENTATION = 103


class Cases(Protocol):
    """What the draws must know of the cases."""

    names: Sequence[str]

    def shape(self, case: str) -> tuple[int, int, int]:
        """Return ``(slices, rows, columns)``."""

    def foreground(self, case: str) -> Mapping[Label, NDArray[np.unsignedinteger]]:
        """Return voxels of each class or region, each as an index into the flattened volume."""


@dataclass(frozen=True)
class Draw:
    """One sample before augmentation."""

    case: str
    slice_index: int
    corner: tuple[int, int]
    """First row and column of the box in the slice; negative by half of what a smaller slice lacks."""
    label: Label | None
    """The class that the box was drawn to hold; None where it was drawn anywhere."""


class Draws:
    """The endless sequence of samples: the one at any step and place in the batch, without drawing those before it.

    Distributions are nnU-Net's (``nnUNetDataLoader`` of 2.8.1): all cases alike, with replacement; where foreground is
    forced, all classes of the case alike, then all voxels that its preprocessing kept of the class alike; else all
    slices and all boxes inside the slice alike. With an ignore label, a box that is not forced holds an annotated
    voxel. Two things are ours. The box that must hold a voxel is drawn evenly among those inside the slice that do;
    nnU-Net centres it, and beyond the lower and right border it reads padding. And the share of forced samples is
    exact: they are spread over the sequence as evenly as whole samples can be, so that every batch has it to within
    one sample and a training as a whole, for any batch size; nnU-Net rounds it in each batch.
    """

    def __init__(
        self,
        cases: Cases,
        size: tuple[int, int],
        *,
        batch_size: int,
        forced: float,
        seed: int,
        stream: Stream,
        annotated: tuple[int, ...] | None = None,
    ) -> None:
        """Set up the sequence.

        Args:
            cases: What is drawn from.
            size: Rows and columns of the box.
            batch_size: Samples in a step, of all ranks together.
            forced: Share of the samples that must hold foreground, 0 to 1.
            seed: 0 to 2**32 - 1.
            stream: Training or validation.
            annotated: With an ignore label, the key of the voxels that have any other.

        Raises:
            ConfigurationError: The share is no share.
            DataError: There are no cases.
        """
        if not 0 <= forced <= 1:
            raise ConfigurationError(f"oversample_foreground_percent is {forced}; it must be from 0 to 1.")
        if not cases.names:
            raise DataError("There is no case to draw from: the split of this fold is empty.")
        self.cases, self.size, self.batch_size, self.forced = cases, size, batch_size, forced
        self.seed, self.stream, self.annotated = seed, stream, annotated

    def is_forced(self, step: int, place: int) -> bool:
        """Say whether a sample must hold foreground."""
        number = step * self.batch_size + place
        return math.floor((number + 1) * self.forced) > math.floor(number * self.forced)

    def draw(self, step: int, place: int) -> Draw:
        """Return the sample at a place, from 0, in the batch of a step, from 0.

        Raises:
            DataError: A case cannot be read, or does not say which voxels an ignore label leaves.
        """
        rng = numpy_generator(self.seed, self.stream, step, place)
        case = self.cases.names[int(rng.integers(len(self.cases.names)))]
        slices, rows, columns = self.cases.shape(case)
        label = self._label(rng, case, self.is_forced(step, place))
        if label is None:
            corner = (first(rng, rows, self.size[0]), first(rng, columns, self.size[1]))
            return Draw(case, int(rng.integers(slices)), corner, None)
        voxels = self.cases.foreground(case)[label]
        voxel = int(voxels[rng.integers(len(voxels))])
        slice_index, row, column = (int(i) for i in np.unravel_index(voxel, (slices, rows, columns)))
        corner = (first(rng, rows, self.size[0], row), first(rng, columns, self.size[1], column))
        return Draw(case, slice_index, corner, label)

    def _label(self, rng: np.random.Generator, case: str, forced: bool) -> Label | None:
        """Choose what the box must hold, if anything; annotated voxels stand in where a case has no foreground."""
        if not forced and self.annotated is None:
            return None
        voxels = self.cases.foreground(case)
        if self.annotated is not None and self.annotated not in voxels:
            msg = f"Case {case} was preprocessed before dataset.json declared an ignore label. Run nnUNetv2_preprocess"
            raise DataError(f"{msg} for this dataset again.")
        present = [label for label in voxels if len(voxels[label])]
        classes = [label for label in present if label != self.annotated]
        if forced and classes:
            return classes[rng.integers(len(classes))]
        return self.annotated if self.annotated in present else None


def first(rng: np.random.Generator, length: int, size: int, held: int | None = None) -> int:
    """Draw where a box begins along one axis, evenly among the positions inside the slice that hold a pixel.

    Args:
        rng: Drawn from unless there is one position only.
        length: Pixels of the slice.
        size: Pixels of the box. Where the slice has fewer it lies in the middle of the box, as in prediction.
        held: A pixel that the box must hold, or None.
    """
    if length <= size:
        return -((size - length) // 2)
    low = 0 if held is None else max(0, held - size + 1)
    high = length - size if held is None else min(held, length - size)
    return int(rng.integers(low, high + 1))
