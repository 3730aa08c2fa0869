#!/usr/bin/env bash
# Believed: the unit that a NIfTI header states (xyzt_units) is a remark; readers give the spacing as the numbers in the header.
#           (Or: both libraries turn it into millimetres.)
# True:     SimpleITK multiplies spacing and origin by 1000 for metre and divides by 1000 for micron; nibabel's zooms and affine do
#           not change. One valid file has spacings that differ by 1000 between the two readers.
# Versions: SimpleITK 2.5.7, nibabel 5.4.2, numpy 2.4.6, Python 3.11.
# Why it matters: nnU-Net picks one of the two for a data set (SimpleITKIO, NibabelIO), and converters write with one what a metric
#           reads with the other. Micro-CT is stored in micron; a header in metre holds 0.001 where millimetres are meant.
#           Distances, volumes and a planned target spacing are off by 1000 in one reader, without a word.
# Seen:     mm      SimpleITK (3.0, 2.0, 5.0)           nibabel (3.0, 2.0, 5.0)
#           meter   SimpleITK (3000.0, 2000.0, 5000.0)  nibabel (3.0, 2.0, 5.0)
#           micron  SimpleITK (0.003, 0.002, 0.005)     nibabel (3.0, 2.0, 5.0)
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet SimpleITK==2.5.7 nibabel==5.4.2 numpy==2.4.6
cd "$work"
venv/bin/python - <<'PYTHON'
import sys

import nibabel
import numpy as np
import SimpleITK as sitk

factors = {"mm": 1.0, "meter": 1000.0, "micron": 0.001}
as_believed = False
for unit, factor in factors.items():
    image = nibabel.Nifti1Image(np.zeros((8, 7, 6), np.int16), np.diag([-3.0, -2.0, 5.0, 1.0]))
    image.header.set_xyzt_units(unit)
    nibabel.save(image, "image.nii.gz")
    by_simpleitk = sitk.ReadImage("image.nii.gz").GetSpacing()
    by_nibabel = tuple(float(size) for size in nibabel.load("image.nii.gz").header.get_zooms())
    print(f"{unit:7} SimpleITK {tuple(round(size, 6) for size in by_simpleitk)}  nibabel {by_nibabel}")
    as_believed |= not np.allclose(by_simpleitk, np.multiply((3, 2, 5), factor)) or by_nibabel != (3, 2, 5)
sys.exit(1 if as_believed else 0)
PYTHON
