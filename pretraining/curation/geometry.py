"""How stored voxels lie in the patient, and which geometries are rejected.

Patient coordinates are those of DICOM: x to the patient's left, y to the back, z to the head (L, P, S), in millimetres.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pretraining.curation.volume import Rejected

SHEAR_TOLERANCE_DEG = 1.0
"""Deviation from a right angle between two axes that is still rounding; also the smallest gantry tilt."""

MAX_TILT_DEG = 45.0
"""Gantries tilt by up to 30 degrees; beyond this a series of slices is not a stack."""

OBLIQUE_DEG = 5.0
"""Inclination of the stored slices against the axial plane from which on a volume is flagged."""

MAX_IN_PLANE_RATIO = 2.0
"""Axial slices with pixels longer than this are cut from a thick-slice sagittal or coronal scan."""

MIN_IN_PLANE_PX = 16
"""Smaller slices are rejected: fewer pixels than a patch of the Vision Transformer."""

SPACING_RANGE_MM = (0.05, 50.0)
"""Voxel sizes outside are another unit, or no size at all: the finest scanners of patients reconstruct at 0.06 mm."""

POSITION_TOLERANCE_MM = 0.1
"""Slice positions are often written with one decimal."""

POSITION_TOLERANCE = 0.05
"""Deviation of a slice gap from the median gap, as a share of it, that counts as even (or 0.1 mm if that is more)."""

MIN_RUN = 3
"""So many equal gaps one after another are another slice distance, not missing slices."""

SAME_POSITION_MM = 1e-3
"""Slices closer than this share a position."""

_SIDES = ("RL", "AP", "IS")  # patient axes x, y, z: the side of the negative end, and of the positive end


@dataclass(frozen=True)
class Orientation:
    """How to bring an array into canonical orientation."""

    order: tuple[int, int, int]
    """For each of (z, y, x), which stored array axis it is."""
    reverse: tuple[bool, bool, bool]
    """For each of (z, y, x), whether the stored axis runs the other way."""
    spacing_mm: tuple[float, float, float]
    """Along (z, y, x)."""
    obliquity_deg: float
    """Largest angle between a stored axis and the patient axis it is taken for."""
    stored: str
    """The side to which each stored array axis runs, fastest (last) axis first, such as ``LPS``."""

    @property
    def changes(self) -> bool:
        """Whether axes are permuted or reversed."""
        return self.order != (0, 1, 2) or any(self.reverse)

    def apply(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return a ``(z, y, x)`` view of a stored array, or of one that has length 1 along some of its axes."""
        return array.transpose(self.order)[tuple(slice(None, None, -1 if back else 1) for back in self.reverse)]


def orientation(axes_mm: NDArray[np.float64], counted_in: str = "mm") -> Orientation:
    """Find the patient axis of each stored axis.

    Args:
        axes_mm: ``(3, 3)``; row ``i`` is the step from one voxel to the next along array axis ``i``, in (L, P, S).
        counted_in: The header's unit of length, for the message.

    Raises:
        Rejected: ``bad_geometry`` or ``sheared``.
    """
    spacing = np.linalg.norm(axes_mm, axis=1)
    low, high = SPACING_RANGE_MM
    if not np.isfinite(axes_mm).all() or (spacing < low).any() or (spacing > high).any():
        sizes = " x ".join(f"{size:g}" for size in spacing)
        aside = "" if counted_in == "mm" else f" (the header's unit is the {counted_in})"
        raise Rejected("bad_geometry", f"voxels of {sizes} mm{aside}, where {low:g} to {high:g} mm are plausible")
    unit = axes_mm / spacing[:, np.newaxis]
    cosines = np.abs((unit @ unit.T)[np.triu_indices(3, 1)]).max()
    shear = float(np.degrees(np.arcsin(min(cosines, 1.0))))
    if shear > SHEAR_TOLERANCE_DEG:
        raise Rejected("sheared", f"two axes are {shear:.1f} degrees away from a right angle")
    best = max(permutations(range(3)), key=lambda order: sum(abs(unit[axis, 2 - i]) for i, axis in enumerate(order)))
    along = [float(unit[axis, 2 - i]) for i, axis in enumerate(best)]
    sides = {axis: _SIDES[2 - i][along[i] > 0] for i, axis in enumerate(best)}
    z, y, x = (float(spacing[axis]) for axis in best)
    return Orientation(
        order=(best[0], best[1], best[2]),
        reverse=(along[0] < 0, along[1] < 0, along[2] < 0),
        spacing_mm=(z, y, x),
        obliquity_deg=float(np.degrees(np.arccos(min(1.0, min(map(abs, along)))))),
        stored="".join(sides[axis] for axis in (2, 1, 0)),
    )


def check_slices(shape: Sequence[int], spacing_mm: Sequence[float]) -> None:
    """Reject what gives no axial slices worth training on.

    Args:
        shape: Canonical ``(z, y, x)``.
        spacing_mm: Canonical ``(z, y, x)``.

    Raises:
        Rejected: ``single_slice`` (one voxel along any axis), ``too_small`` or ``not_axial``.
    """
    if min(shape) == 1:
        raise Rejected("single_slice", f"{shape[0]} x {shape[1]} x {shape[2]} voxels (z, y, x)")
    if min(shape[1:]) < MIN_IN_PLANE_PX:
        raise Rejected("too_small", f"axial slices of {shape[1]} x {shape[2]} pixels")
    ratio = max(spacing_mm[1:]) / min(spacing_mm[1:])
    if ratio > MAX_IN_PLANE_RATIO:
        plane = "sagittal" if spacing_mm[2] > spacing_mm[1] else "coronal"
        pixels = f"{spacing_mm[1]:g} x {spacing_mm[2]:g} mm"
        raise Rejected("not_axial", f"a {plane} acquisition: pixels of axial slices would be {pixels} (y, x)")


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
        Rejected: ``mixed_series`` (two slices share a position), ``varying_spacing``, ``missing_slices``,
            ``uneven_slices`` or ``sheared``.
    """
    normal = np.cross(row, column)
    order = np.argsort(positions_mm @ normal, kind="stable")
    steps = np.diff(positions_mm[order], axis=0)
    gaps = np.linalg.norm(steps, axis=1)
    heights = steps @ normal
    if heights.min() < SAME_POSITION_MM:
        at = positions_mm[order][int(heights.argmin())]
        raise Rejected("mixed_series", f"two images share the position {at[0]:g}, {at[1]:g}, {at[2]:g} mm")
    gap = float(np.median(gaps))
    tolerance = _tolerance_mm(gap)
    uneven = np.abs(gaps - gap) > tolerance
    if uneven.any():
        _reject_varying(gaps)
        missing = np.rint(gaps / gap) - 1
        whole = np.abs(gaps - (missing + 1) * gap) <= tolerance * (missing + 1)
        if whole.all() and (missing >= 0).all():
            where = ", ".join(f"{n:g} after slice {i + 1}" for i, n in enumerate(missing) if n)
            raise Rejected("missing_slices", f"slices are {gap:g} mm apart, and there are missing: {where}")
        raise Rejected("uneven_slices", f"slices are {gaps.min():g} to {gaps.max():g} mm apart")
    advance = positions_mm[order[-1]] - positions_mm[order[0]]
    length = float(np.linalg.norm(advance))
    advance = advance / length
    beside = (positions_mm[order] - positions_mm[order[0]]) @ (np.eye(3) - np.outer(advance, advance))
    if np.linalg.norm(beside, axis=1).max() > tolerance:
        raise Rejected("uneven_slices", "the positions of the slices do not lie on a line")
    tilt = float(np.degrees(np.arccos(min(1.0, abs(float(advance @ normal))))))
    sideways = float(np.degrees(np.arcsin(min(1.0, abs(float(advance @ row))))))
    if sideways > SHEAR_TOLERANCE_DEG or tilt > MAX_TILT_DEG:
        raise Rejected(
            "sheared", f"slices advance at {tilt:.1f} degrees to their normal, {sideways:.1f} of it sideways"
        )
    step = normal * (length / (len(order) - 1))
    return Stack([int(i) for i in order], step, tilt if tilt > SHEAR_TOLERANCE_DEG else 0.0)


def _tolerance_mm(gap: float) -> float:
    """Return how far another gap may be from this one and count as equal."""
    return max(POSITION_TOLERANCE_MM, POSITION_TOLERANCE * gap)


def _reject_varying(gaps: NDArray[np.float64]) -> None:
    """Reject a series that was reconstructed at one distance in one part and at another in the next."""
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
        raise Rejected("varying_spacing", f"the slices are not on a regular grid: {parts}")
