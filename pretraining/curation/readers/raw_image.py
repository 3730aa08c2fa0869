"""A volume as a file holds it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pretraining.curation.volume import Rejected

_ONE = np.ones((1, 1, 1))

MM_PER_UNIT = {
    **dict.fromkeys(("m", "meter", "meters", "metre", "metres"), 1000.0),
    **dict.fromkeys(("cm", "centimeter", "centimeters", "centimetre", "centimetres"), 10.0),
    **dict.fromkeys(("um", "\N{MICRO SIGN}m", "micron", "microns", "micrometer", "micrometers"), 0.001),
}
"""Units of length that headers may count in; whatever else they say, or nothing, is millimetres."""


@dataclass(eq=False)
class RawImage:
    """Stored values and what the header says about them."""

    values: NDArray[Any]
    """Three axes, the fastest last; any type."""
    axes_mm: NDArray[np.float64] | None
    """``(3, 3)``; row ``i`` is the step along array axis ``i`` in (L, P, S). None where the format or the image (a
    projection) has no place in the patient."""
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Along the array axes; read only where ``axes_mm`` is None."""
    slope: NDArray[np.float64] = field(default_factory=_ONE.copy)
    """``(1, 1, 1)``, or with one value for each index along the first axis: value = slope * stored + intercept."""
    intercept: NDArray[np.float64] = field(default_factory=lambda: _ONE * 0)
    """The same shape."""
    padding: frozenset[int] = frozenset()
    """Values (after rescaling) that the header calls padding."""
    flags: set[str] = field(default_factory=set)
    """Keys of ``FLAGS``."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """What the header adds to ``Volume.metadata``."""
    unit: str = "mm"
    """What the header counts lengths in, for messages; the fields above are in millimetres whatever it is."""


def as_three_axes(shape: Sequence[int]) -> tuple[int, int, int]:
    """Return a stored shape, slowest axis first, without the axes of length 1 in front of the last three.

    Raises:
        Rejected: ``4d``, ``single_slice`` (two axes) or ``bad_geometry`` (an axis without voxels).
    """
    sizes = [int(size) for size in shape]
    while len(sizes) > 3 and sizes[0] == 1:
        del sizes[0]
    if len(sizes) > 3:
        raise Rejected("4d", f"{len(sizes)} axes of {' x '.join(map(str, reversed(sizes)))} values")
    if any(size < 1 for size in sizes) or not sizes:
        raise Rejected("bad_geometry", f"axes of {sizes} voxels")
    if len(sizes) < 3:
        raise Rejected("single_slice", f"a picture of {' x '.join(map(str, sizes))} pixels")
    return sizes[0], sizes[1], sizes[2]
