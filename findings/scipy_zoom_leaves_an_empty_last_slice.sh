#!/usr/bin/env bash
# Believed: scipy.ndimage.zoom keeps the first and the last slice where they are, so an enlarged volume is filled to its end, and one
#           of ones is one everywhere.
# True:     at some sizes the place of the last sample, computed in floating point, lies a rounding error behind the last slice, and is
#           outside: the whole last slice, row or column is 0, of labels (order 0) as of images (order 1, 3). 32 slices times 5
#           are struck, 31 and 33 are not. mode="nearest" has it at no size.
# Versions: scipy 1.17.1, numpy 2.4.6, Python 3.11.
# Why it matters: one call per case turns thick slices into 1 mm. A few cases of a dataset end with a slice without labels, or of 0 HU
#           (soft tissue) in air: a false border in surface distances, a structure cut short, other statistics.
# Seen:     31 slices times 5: of 155, empty: order 0: [] order 1: [] order 3: []
#           32 slices times 5: of 160, empty: order 0: [159] order 1: [159] order 3: [159]
#           33 slices times 5: of 165, empty: order 0: [] order 1: [] order 3: []
#           2.5 mm to 1 mm, 20 to 200 slices: 5 sizes end empty (63, ...); mode nearest: 0
#           3.0 mm to 1 mm, 20 to 200 slices: 6 sizes end empty (29, ...); mode nearest: 0
#           3.75 mm to 1 mm, 20 to 200 slices: 23 sizes end empty (23, ...); mode nearest: 0
#           5.0 mm to 1 mm, 20 to 200 slices: 4 sizes end empty (28, ...); mode nearest: 0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet scipy==1.17.1 numpy==2.4.6
"$work/env/bin/python" - <<'PYTHON'
import sys

import numpy as np
from scipy.ndimage import zoom


def empty(slices: int, factor: float, order: int = 0, **how: str) -> list[int]:
    """Enlarge a volume of ones along z; return the slices that hold none."""
    enlarged = zoom(np.ones((slices, 4, 4), np.float32), (factor, 1, 1), order=order, **how)
    return np.flatnonzero(enlarged.max(axis=(1, 2)) < 0.5).tolist()


for slices in (31, 32, 33):
    print(f"{slices} slices times 5: of {slices * 5}, empty:", *(f"order {o}: {empty(slices, 5, o)}" for o in (0, 1, 3)))
struck = {}
for thickness in (2.5, 3.0, 3.75, 5.0):
    sizes = [n for n in range(20, 201) if empty(n, thickness)]
    near = [n for n in range(20, 201) if empty(n, thickness, mode="nearest")]
    struck[thickness] = bool(sizes) and not near
    print(f"{thickness} mm to 1 mm, 20 to 200 slices: {len(sizes)} sizes end empty ({sizes[0]}, ...); mode nearest: {len(near)}")
held = all(empty(32, 5, order) == [159] for order in (0, 1, 3)) and not empty(31, 5) and all(struck.values())
sys.exit(0 if held else 1)
PYTHON
