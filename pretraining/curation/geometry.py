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

from nnunetv2_meddino.imaging.stack import SHEAR_TOLERANCE_DEG
from pretraining.curation.volume import Rejected

OBLIQUE_DEG = 5.0
"""Inclination of the stored slices against the axial plane from which on a volume is flagged."""

MAX_IN_PLANE_RATIO = 2.0
"""Axial slices with pixels longer than this are cut from a thick-slice sagittal or coronal scan."""

MIN_IN_PLANE_PX = 16
"""Smaller slices are rejected: fewer pixels than a patch of the Vision Transformer."""

SPACING_RANGE_MM = (0.05, 50.0)
"""Voxel sizes outside are another unit, or no size at all: the finest scanners of patients reconstruct at 0.06 mm."""

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
