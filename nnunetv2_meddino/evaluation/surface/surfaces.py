"""Surfaces and overlap of many classes in one pair of label volumes, by the compiled path or the plain one."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nnunetv2_meddino.errors import ConfigurationError
from nnunetv2_meddino.evaluation.surface import plain
from nnunetv2_meddino.evaluation.surface.elements import ClassSurfaces

logger = logging.getLogger(__name__)

Engine = Literal["auto", "compiled", "plain"]


@dataclass(frozen=True)
class Measurement:
    """Overlap and surfaces of one pair of volumes.

    Attributes:
        confusion: ``(256, 256)`` int64 voxels by ``[reference label, prediction label]``, ignored voxels included.
        surfaces: One entry per class; None where the class is absent from the reference or from the prediction.
    """

    confusion: NDArray[np.int64]
    surfaces: list[ClassSurfaces | None]


@lru_cache(maxsize=1)
def compiled_available() -> bool:
    """Say whether numba can be used; where not, log the reason once."""
    try:
        import numba  # noqa: F401
    except ImportError as error:
        logger.warning("numba cannot be imported (%s): metrics take the plain path, about ten times slower.", error)
        return False
    return True


def measure(
    reference: NDArray[np.uint8],
    prediction: NDArray[np.uint8],
    spacing_mm: tuple[float, float, float],
    classes: Sequence[tuple[int, ...]],
    *,
    ignore_label: int | None = None,
    planar: bool = False,
    engine: Engine = "auto",
) -> Measurement:
    """Measure overlap, and the surfaces of the classes that both volumes hold.

    Voxels where the reference is ``ignore_label`` are background in both masks. An element whose neighbourhood (2x2x2
    voxels, or a voxel and its 6 neighbours) holds an ignored voxel is not measured from, but distances to it are: the
    border of the ignored part is no error of either.

    Args:
        reference: ``(z, y, x)`` labels.
        prediction: Labels of the same shape.
        spacing_mm: Voxel size in ``(z, y, x)`` order.
        classes: The labels of each class: whole numbers of 1 to 255, none of them ``ignore_label``.
        ignore_label: Reference label of voxels that count for nothing.
        planar: The volume is a single slice, measured by the 2D definitions.
        engine: ``compiled`` needs numba; ``auto`` takes it where it can be imported.

    Raises:
        ConfigurationError: ``compiled`` is asked for and numba cannot be imported, or the engine is unknown.
    """
    if engine not in ("auto", "compiled", "plain"):
        raise ConfigurationError(f"Unknown engine {engine!r}; choose auto, compiled or plain.")
    if engine == "compiled" and not compiled_available():
        msg = "The compiled metrics need numba, which cannot be imported; install it or choose the plain engine."
        raise ConfigurationError(msg)
    reference, prediction = np.ascontiguousarray(reference), np.ascontiguousarray(prediction)
    if engine != "plain" and compiled_available():
        from nnunetv2_meddino.evaluation.surface import engine as compiled

        scan = compiled.scan(reference, prediction, ignore_label)
        present = _present(scan.confusion, classes, ignore_label)
        found = compiled.class_surfaces(
            reference, prediction, spacing_mm, present, scan, ignore_label=ignore_label, planar=planar
        )
        confusion = scan.confusion
    else:
        confusion = plain.confusion_matrix(reference, prediction)
        present = _present(confusion, classes, ignore_label)
        found = plain.class_surfaces(
            reference, prediction, spacing_mm, present, ignore_label=ignore_label, planar=planar
        )
    by_class = dict(zip(present, found, strict=True))
    return Measurement(confusion, [by_class.get(labels) for labels in classes])


def _present(
    confusion: NDArray[np.int64], classes: Sequence[tuple[int, ...]], ignore_label: int | None
) -> list[tuple[int, ...]]:
    """Return the distinct classes that occur in both volumes outside the ignored voxels."""
    counted = without_ignored(confusion, ignore_label)
    in_reference, in_prediction = counted.sum(axis=1), counted.sum(axis=0)
    return [c for c in dict.fromkeys(classes) if in_reference[list(c)].any() and in_prediction[list(c)].any()]


def without_ignored(confusion: NDArray[np.int64], ignore_label: int | None) -> NDArray[np.int64]:
    """Return the counts of the voxels that are not ignored."""
    if ignore_label is None:
        return confusion
    counted = confusion.copy()
    counted[ignore_label] = 0
    return counted
