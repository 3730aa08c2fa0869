"""Slices in the order in which they lie, and whether they are a stack: evenly spaced along a straight line.

Patient coordinates are those of DICOM: x to the patient's left, y to the back, z to the head (L, P, S), in millimetres.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SHEAR_TOLERANCE_DEG = 1.0
"""Deviation from a right angle between two axes that is still rounding; also the smallest gantry tilt."""

MAX_TILT_DEG = 45.0
"""Gantries tilt by up to 30 degrees; beyond this a series of slices is not a stack."""

POSITION_TOLERANCE_MM = 0.1
"""Slice positions are often written with one decimal."""

POSITION_TOLERANCE = 0.05
"""Deviation of a slice gap from the median gap, as a share of it, that counts as even (or 0.1 mm if that is more)."""

MIN_RUN = 3
"""So many equal gaps one after another are another slice distance, not missing slices."""

SAME_POSITION_MM = 1e-3
"""Slices closer than this share a position."""


class SeriesError(ValueError):
    """Images are no volume on a regular grid, or not one that can be used."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)  # both, so that it travels between processes
        self.reason = reason
        """A short code, such as ``missing_slices``."""
        self.message = message
        """Which file, and what about it."""

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True)
class Stack:
    """Slices in the order in which they lie."""

    order: list[int]
    """Indices into what was given, along the normal of the slices."""
    step_mm: NDArray[np.float64]
    """``(3,)``: normal of the slices times the distance from one to the next, in (L, P, S)."""
    tilt_deg: float
    """Angle between that normal and the way the slices advance; 0 where it is below the tolerance."""


def stack_slices(positions_mm: NDArray[np.float64], row: NDArray[np.float64], column: NDArray[np.float64]) -> Stack:
    """Sort slices by position and check that they are evenly spaced along a straight line.

    A tilted gantry makes the slices advance at an angle to their normal, within the plane of normal and ``column``. The
    distance is then that along their advance (the table's), as every DICOM viewer reports it.

    Args:
        positions_mm: ``(N, 3)``, N >= 2: ImagePositionPatient.
        row: ``(3,)`` unit vector along which the column index grows (first half of ImageOrientationPatient).
        column: ``(3,)`` unit vector along which the row index grows.

    Raises:
        SeriesError: ``mixed_series`` (two slices share a position), ``varying_spacing``, ``missing_slices``,
            ``uneven_slices`` or ``sheared``.
    """
    normal = np.cross(row, column)
    order = np.argsort(positions_mm @ normal, kind="stable")
    steps = np.diff(positions_mm[order], axis=0)
    gaps = np.linalg.norm(steps, axis=1)
    heights = steps @ normal
    if heights.min() < SAME_POSITION_MM:
        at = positions_mm[order][int(heights.argmin())]
        raise SeriesError("mixed_series", f"two images share the position {at[0]:g}, {at[1]:g}, {at[2]:g} mm")
    gap = float(np.median(gaps))
    tolerance = _tolerance_mm(gap)
    uneven = np.abs(gaps - gap) > tolerance
    if uneven.any():
        _refuse_varying(gaps)
        missing = np.rint(gaps / gap) - 1
        whole = np.abs(gaps - (missing + 1) * gap) <= tolerance * (missing + 1)
        if whole.all() and (missing >= 0).all():
            where = ", ".join(f"{n:g} after slice {i + 1}" for i, n in enumerate(missing) if n)
            raise SeriesError("missing_slices", f"slices are {gap:g} mm apart, and there are missing: {where}")
        raise SeriesError("uneven_slices", f"slices are {gaps.min():g} to {gaps.max():g} mm apart")
    advance = positions_mm[order[-1]] - positions_mm[order[0]]
    length = float(np.linalg.norm(advance))
    advance = advance / length
    beside = (positions_mm[order] - positions_mm[order[0]]) @ (np.eye(3) - np.outer(advance, advance))
    if np.linalg.norm(beside, axis=1).max() > tolerance:
        raise SeriesError("uneven_slices", "the positions of the slices do not lie on a line")
    tilt = float(np.degrees(np.arccos(min(1.0, abs(float(advance @ normal))))))
    sideways = float(np.degrees(np.arcsin(min(1.0, abs(float(advance @ row))))))
    if sideways > SHEAR_TOLERANCE_DEG or tilt > MAX_TILT_DEG:
        raise SeriesError(
            "sheared", f"slices advance at {tilt:.1f} degrees to their normal, {sideways:.1f} of it sideways"
        )
    step = normal * (length / (len(order) - 1))
    return Stack([int(i) for i in order], step, tilt if tilt > SHEAR_TOLERANCE_DEG else 0.0)


def _tolerance_mm(gap: float) -> float:
    """Return how far another gap may be from this one and count as equal."""
    return max(POSITION_TOLERANCE_MM, POSITION_TOLERANCE * gap)


def _refuse_varying(gaps: NDArray[np.float64]) -> None:
    """Refuse a series that was reconstructed at one distance in one part and at another in the next."""
    runs: list[list[float]] = []
    for gap in gaps.tolist():
        if runs and abs(gap - runs[-1][0]) <= _tolerance_mm(runs[-1][0]):
            runs[-1].append(gap)
        else:
            runs.append([gap])
    long = [run for run in runs if len(run) >= MIN_RUN]
    distances = [float(np.median(run)) for run in long]
    if len(long) > 1 and max(distances) - min(distances) > _tolerance_mm(min(distances)):
        parts = ", then ".join(f"{len(run)} gaps of {gap:g} mm" for run, gap in zip(long, distances, strict=True))
        raise SeriesError("varying_spacing", f"the slices are not on a regular grid: {parts}")
