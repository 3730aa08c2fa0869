#!/usr/bin/env bash
# Believed: a uint8 volume (z, y, x) that tifffile writes is read by SimpleITK with as many slices as it has.
# True:     with 3 or 4 slices tifffile stores it as one colour picture with planes apart, and SimpleITK reads a flat picture of 4
#           components a pixel; with any other number of slices it is a volume. tifffile itself reads its own file back as
#           written, so one library alone does not show it.
# Versions: tifffile 2026.3.3, SimpleITK 2.5.7, numpy 2.4.6, Python 3.11.
# Why it matters: nnU-Net writes TIFF segmentations with tifffile (Tiff3DIO, uint8). A thin volume is then read by viewers, converters
#           and metrics that use another library as a picture, or refused.
# Seen:     2 slices: SimpleITK size (32, 32, 2), 1 value a voxel; tifffile (2, 32, 32)
#           3 slices: SimpleITK size (32, 32), 4 values a voxel; tifffile (3, 32, 32)
#           4 slices: SimpleITK size (32, 32), 4 values a voxel; tifffile (4, 32, 32)
#           5 slices: SimpleITK size (32, 32, 5), 1 value a voxel; tifffile (5, 32, 32)
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet tifffile==2026.3.3 SimpleITK==2.5.7 numpy==2.4.6
cd "$work"
venv/bin/python - <<'PYTHON'
import sys

import numpy as np
import SimpleITK as sitk
import tifffile

flat = []
for slices in (2, 3, 4, 5):
    volume = np.random.default_rng(0).integers(0, 3, (slices, 32, 32)).astype(np.uint8)
    tifffile.imwrite("volume.tif", volume)
    image = sitk.ReadImage("volume.tif")
    components = image.GetNumberOfComponentsPerPixel()
    back = tifffile.imread("volume.tif")
    plural = "value" if components == 1 else "values"
    print(f"{slices} slices: SimpleITK size {image.GetSize()}, {components} {plural} a voxel; tifffile {back.shape}")
    if not np.array_equal(back, volume):
        sys.exit(1)
    flat.append(image.GetDimension() == 2 and components > 1)
sys.exit(0 if flat == [False, True, True, False] else 1)
PYTHON
