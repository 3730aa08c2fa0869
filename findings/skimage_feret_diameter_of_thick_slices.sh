#!/usr/bin/env bash
# Believed: with spacing given, regionprops measures in millimetres; the largest diameter (feret_diameter_max) of a ball of 40 mm in slices
#           of 5 mm is 40 mm, give or take the part of a voxel, as in voxels of 1 mm.
# True:     the convex hull is drawn in voxels and part of a voxel too large on all sides; scaled to millimetres that is much of a slice. 47 mm come out,
#           more than any two corners of the ball's voxels can lie apart, and the ball's solidity (volume by its hull's) falls to 0.88.
# Versions: scikit-image 0.26.0, SimpleITK 2.5.7, numpy 2.4.6, Python 3.11.
# Why it matters: the diameter decides over response to treatment (20 % is progression) and over T stage; solidity and convex volume are
#           features of shape. All depend on the slice thickness of the scanner, and on the direction in which it cuts.
# Seen:     slices of 1.0 mm: scikit-image 41.6 mm, SimpleITK 40.0 mm, corners at most 41.7 mm; solidity 0.95
#           slices of 2.5 mm: scikit-image 43.7 mm, SimpleITK 40.0 mm, corners at most 42.9 mm; solidity 0.93
#           slices of 5.0 mm: scikit-image 46.8 mm, SimpleITK 40.0 mm, corners at most 45.2 mm; solidity 0.88
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet scikit-image==0.26.0 SimpleITK==2.5.7 numpy==2.4.6
"$work/env/bin/python" - <<'PYTHON'
import sys

import numpy as np
import SimpleITK as sitk
from skimage.measure import regionprops

excess = []
for spacing in ((1.0, 1.0, 1.0), (2.5, 1.0, 1.0), (5.0, 1.0, 1.0)):
    counts = [2 * int(25 / size) + 1 for size in spacing]
    places = [(index - (n - 1) / 2) * size for index, n, size in zip(np.indices(counts), counts, spacing)]
    ball = (sum(place**2 for place in places) <= 20**2).astype(np.uint8)
    region = regionprops(ball, spacing=spacing)[0]
    bound = 40 + np.linalg.norm(spacing)  # no two corners of the ball's voxels lie further apart
    image = sitk.GetImageFromArray(ball)
    image.SetSpacing(spacing[::-1])
    shape = sitk.LabelShapeStatisticsImageFilter()
    shape.ComputeFeretDiameterOn()
    shape.Execute(image)
    excess.append(region.feret_diameter_max - bound)
    print(
        f"slices of {spacing[0]} mm: scikit-image {region.feret_diameter_max:.1f} mm, SimpleITK {shape.GetFeretDiameter(1):.1f} mm, "
        f"corners at most {bound:.1f} mm; solidity {region.solidity:.2f}"
    )
sys.exit(0 if excess[2] > 1 and excess[0] < 0 else 1)
PYTHON
