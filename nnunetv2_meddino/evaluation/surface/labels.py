"""Label volumes of any type as the bytes that the surface code reads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunetv2_meddino.errors import ConfigurationError

Volume = NDArray[Any]

MAX_LABELS = 255
"""Labels that fit into a byte beside 0, which stands for everything in no class."""


def distinct_labels(volume: Volume) -> set[int]:
    """Return the labels that occur; all values must be whole numbers."""
    if volume.dtype == np.uint8:
        return set(np.flatnonzero(sum(np.bincount(part.ravel(), minlength=256) for part in volume)).tolist())
    found: set[int] = set()
    for part in volume:  # slice by slice, so that nothing as large as the volume is made
        found.update(int(v) for v in np.unique(part))
    return found


def as_bytes(*volumes: Volume) -> list[NDArray[np.uint8]] | None:
    """Return the volumes as uint8 if all their values are whole numbers of 0 to 255; uint8 ones are not copied."""
    results = []
    for volume in volumes:
        result = volume.view(np.uint8) if volume.dtype in (np.uint8, np.bool_) else _narrowed(volume)
        if result is None:
            return None
        results.append(result)
    return results


def _narrowed(volume: Volume) -> NDArray[np.uint8] | None:
    result = np.empty(volume.shape, dtype=np.uint8)
    with np.errstate(invalid="ignore"):
        for source, target in zip(volume, result, strict=True):  # slice by slice, for the sake of memory
            np.copyto(target, source, casting="unsafe")
            if not np.array_equal(source, target):
                return None
    return result


def renumber(volume: Volume, labels: Sequence[int]) -> NDArray[np.uint8]:
    """Return a uint8 volume with ``i + 1`` where ``labels[i]`` stands and 0 elsewhere; ``labels`` ascending."""
    values = np.asarray(labels, dtype=np.int64)
    result = np.empty(volume.shape, dtype=np.uint8)
    for source, target in zip(volume, result, strict=True):
        wide = source.astype(np.int64)
        place = np.minimum(np.searchsorted(values, wide), len(values) - 1)
        target[...] = np.where(values[place] == wide, place + 1, 0)
    return result


def batches(classes: Iterable[tuple[int, ...]], max_classes: int, max_labels: int) -> list[list[tuple[int, ...]]]:
    """Split classes, in order, into groups with at most so many classes and distinct labels.

    Raises:
        ConfigurationError: A single class has more labels than a group may have.
    """
    groups: list[list[tuple[int, ...]]] = []
    used: set[int] = set()
    for labels in classes:
        if len(set(labels)) > max_labels:
            raise ConfigurationError(f"A region of {len(set(labels))} labels is too large; the most is {max_labels}.")
        if not groups or len(groups[-1]) == max_classes or len(used | set(labels)) > max_labels:
            groups.append([])
            used = set()
        groups[-1].append(labels)
        used |= set(labels)
    return groups
