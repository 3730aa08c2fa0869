#!/usr/bin/env bash
# Believed: the distance to an object that is not in the image is infinite, or as large as the type allows, or an error.
# True:     in scipy's distance_transform_edt it is the distance to a voxel just outside the image, before its first corner; in SimpleITK's
#           DanielssonDistanceMap one of about twice the image's longest side. Both are numbers like any other. The edt package gives inf, SimpleITK's
#           SignedMaurerDistanceMap 1.8e19, scipy's other two transforms 1.3e154 and -1.
# Versions: scipy 1.17.1, SimpleITK 2.5.7, edt 3.1.2, numpy 2.2.6, Python 3.11.
# Why it matters: distance maps of each class are the targets of boundary losses and the weights of others, and most slices do not hold most classes: those
#           slices teach a corner of the image. A Hausdorff distance written in three lines gives an absent object a modest error.
# Seen:     scipy distance_transform_edt: 1 to 35.23, first voxel 1, last 35.23
#           SimpleITK DanielssonDistanceMap: 52.2 to 84.85, first voxel 84.85, last 52.2
#           edt.edt: inf to inf, first voxel inf, last inf
#           SimpleITK SignedMaurerDistanceMap: 1.845e+19 to 1.845e+19, first voxel 1.845e+19, last 1.845e+19
#           scipy distance_transform_bf: 1.341e+154 to 1.341e+154, first voxel 1.341e+154, last 1.341e+154
#           scipy distance_transform_cdt: -1 to -1, first voxel -1, last -1
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet scipy==1.17.1 SimpleITK==2.5.7 edt==3.1.2 numpy==2.2.6
"$work/env/bin/python" -W ignore - <<'PYTHON'
import sys

import edt
import numpy as np
import SimpleITK as sitk
from scipy import ndimage

absent = np.zeros((20, 30), np.uint8)
outside = absent == 0
image = sitk.GetImageFromArray(absent)
maps = {
    "scipy distance_transform_edt": ndimage.distance_transform_edt(outside),
    "SimpleITK DanielssonDistanceMap": sitk.GetArrayFromImage(sitk.DanielssonDistanceMap(image)),
    "edt.edt": edt.edt(outside.astype(np.uint8)),
    "SimpleITK SignedMaurerDistanceMap": sitk.GetArrayFromImage(sitk.SignedMaurerDistanceMap(image, squaredDistance=False)),
    "scipy distance_transform_bf": ndimage.distance_transform_bf(outside),
    "scipy distance_transform_cdt": ndimage.distance_transform_cdt(outside),
}
for name, found in maps.items():
    print(f"{name}: {found.min():.4g} to {found.max():.4g}, first voxel {found[0, 0]:.4g}, last {found[-1, -1]:.4g}")
rows, columns = np.indices(absent.shape)
scipy_map, danielsson, *others = maps.values()
expected = [
    np.allclose(scipy_map, np.hypot(rows + 1, columns)),
    0 < danielsson.min() and danielsson.max() < 4 * max(absent.shape),
    np.isinf(others[0]).all(),
    (others[1] > 1e9).all() and (others[2] > 1e9).all() and (others[3] == -1).all(),
]
sys.exit(0 if all(expected) else 1)
PYTHON
