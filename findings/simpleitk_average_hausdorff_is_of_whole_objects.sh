#!/usr/bin/env bash
# Believed: the average Hausdorff distance of SimpleITK's HausdorffDistanceImageFilter is an average distance between two surfaces, near
#           the ASSD of other libraries, and does not depend on how large the objects are.
# True:     it averages over all voxels of each object, of which those inside the other count 0, and takes the mean of the two
#           averages. Two balls 4 mm apart have 0.56 mm at a radius of 10 mm and 0.27 mm at 20 mm; their surfaces are 1.9 mm apart both
#           times. The maximum that the same filter gives is that of the surfaces.
# Versions: SimpleITK 2.5.7, scipy 1.17.1, numpy 2.4.6, Python 3.11.
# Why it matters: it is reported as average surface distance, and large organs look better than small ones by the size alone. Numbers of
#           papers that used it cannot be put beside an ASSD: here it is a third to a seventh of it.
# Seen:     radius 10 mm, 4 mm apart: average Hausdorff 0.558 mm, ASSD 1.875 mm; maximum 4.00 and 4.00 mm
#           radius 20 mm, 4 mm apart: average Hausdorff 0.274 mm, ASSD 1.904 mm; maximum 4.00 and 4.00 mm
#           radius 10 in 14 mm: average Hausdorff 0.821 mm, ASSD 3.855 mm; maximum 4.24 and 4.24 mm
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet SimpleITK==2.5.7 scipy==1.17.1 numpy==2.4.6
"$work/env/bin/python" - <<'PYTHON'
import sys

import numpy as np
import SimpleITK as sitk
from scipy.ndimage import binary_erosion, distance_transform_edt

z, y, x = np.mgrid[:64, :64, :64]


def ball(x_mm: float, radius_mm: float) -> np.ndarray:
    return (x - x_mm) ** 2 + (y - 32) ** 2 + (z - 32) ** 2 <= radius_mm**2


def of_surfaces(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Return the average symmetric surface distance and the largest distance, in mm: voxels are 1 mm wide."""
    surfaces = [of & ~binary_erosion(of) for of in (first, second)]
    there, back = (distance_transform_edt(~b)[a] for a, b in (surfaces, surfaces[::-1]))
    both = np.concatenate([there, back])
    return both.mean(), both.max()


pairs = {
    "radius 10 mm, 4 mm apart": (ball(30, 10), ball(34, 10)),
    "radius 20 mm, 4 mm apart": (ball(30, 20), ball(34, 20)),
    "radius 10 in 14 mm": (ball(32, 10), ball(32, 14)),
}
as_described = []
for name, (first, second) in pairs.items():
    measured = sitk.HausdorffDistanceImageFilter()
    measured.Execute(*(sitk.GetImageFromArray(of.astype(np.uint8)) for of in (first, second)))
    average, largest = measured.GetAverageHausdorffDistance(), measured.GetHausdorffDistance()
    assd, surface_largest = of_surfaces(first, second)
    print(
        f"{name}: average Hausdorff {average:.3f} mm, ASSD {assd:.3f} mm; "
        f"maximum {largest:.2f} and {surface_largest:.2f} mm"
    )
    whole = np.mean([distance_transform_edt(~b)[a].mean() for a, b in ((first, second), (second, first))])
    as_described.append(abs(average - whole) < 1e-3 and abs(largest - surface_largest) < 1e-3 and average < assd / 3)
sys.exit(0 if all(as_described) else 1)
PYTHON
