#!/usr/bin/env bash
# Believed: a function that takes an array takes it in either byte order, or refuses: numpy, scipy and scikit-image do the first, torch
#           and SimpleITK the second.
# True:     edt.edt returns 0 everywhere, without a word, for arrays whose bytes are not in the machine's order. FreeSurfer's .mgz is always
#           big-endian, and nibabel hands out its voxels as they are stored.
# Versions: edt 3.1.2, nibabel 5.4.2, scipy 1.17.1, numpy 2.4.6, Python 3.11.
# Why it matters: edt is the fast distance transform of label maps with many structures. Distances of 0 make every surface distance 0, every
#           boundary weight the largest and every structure as thin as can be: perfect scores and flat maps, not an error.
# Seen:     labels.mgz: type >i4, values [ 0 17], largest distance: scipy 8.0, edt 0.0
#           labels.nii.gz: type <i4, values [ 0 17], largest distance: scipy 8.0, edt 8.0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet edt==3.1.2 nibabel==5.4.2 scipy==1.17.1 numpy==2.4.6
cd "$work"
env/bin/python - <<'PYTHON'
import sys

import edt
import nibabel
import numpy as np
from scipy import ndimage

spacing = (1.0, 1.0, 2.0)
labels = np.zeros((24, 24, 24), np.int32)
labels[4:20, 4:20, 4:20] = 17
nibabel.save(nibabel.MGHImage(labels, np.diag([*spacing, 1.0])), "labels.mgz")
nibabel.save(nibabel.Nifti1Image(labels, np.diag([*spacing, 1.0])), "labels.nii.gz")
deepest = {}
for name in ("labels.mgz", "labels.nii.gz"):
    stored = np.asarray(nibabel.load(name).dataobj)
    by_scipy = ndimage.distance_transform_edt(stored, sampling=spacing).max()
    deepest[name] = edt.edt(stored, anisotropy=spacing).max()
    print(f"{name}: type {stored.dtype.str}, values {np.unique(stored)}, largest distance: scipy {by_scipy}, edt {deepest[name]}")
native = edt.edt(stored.astype(np.int32), anisotropy=spacing).max()
sys.exit(0 if deepest["labels.mgz"] == 0 and deepest["labels.nii.gz"] == native == by_scipy else 1)
PYTHON
