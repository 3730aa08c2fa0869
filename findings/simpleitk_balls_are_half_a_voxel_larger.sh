#!/usr/bin/env bash
# Believed: a ball of radius r in SimpleITK's morphology is the voxels within r of the middle, as in scikit-image: radius 1 is the six neighbours.
# True:     it is the voxels within r + 1/2: radius 1 has 19 voxels where scikit-image's has 7, radius 2 has 81 for 33. A sphere of radius 10
#           dilated by 2 grows by 2.3 voxels, and by 1.7 in scikit-image.
# Versions: SimpleITK 2.5.7, scikit-image 0.26.0, numpy 2.2.6, Python 3.11.
# Why it matters: margins and tolerance bands are one to three voxels wide: the same "2 voxels" is a third more in one toolkit, and "1 voxel" half more.
#           Opening and closing with it remove and join what the other leaves, so a published postprocessing does not carry over.
# Seen:     radius 1: SimpleITK 19 voxels, scikit-image 7; a sphere of 10 grows by 1.29 and 0.82
#           radius 2: SimpleITK 81 voxels, scikit-image 33; a sphere of 10 grows by 2.34 and 1.72
#           radius 3: SimpleITK 179 voxels, scikit-image 123; a sphere of 10 grows by 3.23 and 2.90
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet SimpleITK==2.5.7 scikit-image==0.26.0 numpy==2.2.6
"$work/env/bin/python" -W ignore - <<'PYTHON'
import sys

import numpy as np
import SimpleITK as sitk
from skimage.morphology import ball, dilation

square = ((np.indices((41, 41, 41)) - 20) ** 2).sum(axis=0)
point, sphere = ((square <= limit).astype(np.uint8) for limit in (0, 100))


def grown(mask: np.ndarray, radius: int) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.BinaryDilate(sitk.GetImageFromArray(mask), [radius] * 3, sitk.sitkBall))


def radius_of(mask: np.ndarray) -> float:
    """Return the radius of a sphere of as many voxels."""
    return float((mask.sum() * 3 / (4 * np.pi)) ** (1 / 3))


expected = []
for radius in (1, 2, 3):
    element = grown(point, radius)
    wider = [radius_of(of) - radius_of(sphere) for of in (grown(sphere, radius), dilation(sphere, ball(radius)))]
    print(
        f"radius {radius}: SimpleITK {element.sum()} voxels, scikit-image {ball(radius).sum()}; "
        f"a sphere of 10 grows by {wider[0]:.2f} and {wider[1]:.2f}"
    )
    expected.append(np.array_equal(element > 0, square <= (radius + 0.5) ** 2))
    expected.append(ball(radius).sum() == (square <= radius**2).sum() and wider[0] > wider[1] + 0.3)
sys.exit(0 if all(expected) else 1)
PYTHON
