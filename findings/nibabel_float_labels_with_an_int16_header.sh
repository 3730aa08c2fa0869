#!/usr/bin/env bash
# Believed: a label map of whole numbers (float32, as it comes out of a computation) that nibabel saves with the header of its CT
#           (int16) is stored as those whole numbers, since int16 holds them exactly.
# True:     nibabel keeps the header's type and, because the array is of a float type, stretches the values over all of int16 with a
#           slope and an intercept. What comes back is 2.9999 for 3; astype(uint8) then makes it 2. The same array as int64 or uint8
#           is stored exactly.
# Versions: nibabel 5.4.2, SimpleITK 2.5.7, numpy 2.4.6, Python 3.11.
# Why it matters: `Nifti1Image(labels, ct.affine, ct.header)` is the usual way to keep a scan's geometry. Readers that cut to integers
#           (nnU-Net casts segmentations) train on shifted classes; strict ones refuse the file as "not whole numbers".
# Seen:     stored as int16, slope 0.000198, intercept 6.500099
#           labels written 0 3 7 13, nibabel reads 0.0 2.9999084 6.9999847 13.0, SimpleITK 0.0 2.9999084 6.9999847 13.0
#           as uint8: 0 2 6 12
#           the same labels as int64: slope 1.0, read 0.0 3.0 7.0 13.0
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


def distinct(values):
    return " ".join(str(value) for value in np.unique(np.asarray(values, np.float32)))


scan = np.random.default_rng(0).integers(-1000, 1500, (16, 16, 4)).astype(np.int16)
nibabel.save(nibabel.Nifti1Image(scan, np.eye(4)), "ct.nii.gz")
ct = nibabel.load("ct.nii.gz")
labels = np.random.default_rng(0).choice([0, 3, 7, 13], scan.shape).astype(np.float32)
nibabel.save(nibabel.Nifti1Image(labels, ct.affine, ct.header), "labels.nii.gz")
stored = nibabel.load("labels.nii.gz")
read = stored.get_fdata()
by_simpleitk = sitk.GetArrayFromImage(sitk.ReadImage("labels.nii.gz"))
proxy = stored.dataobj
print(f"stored as {stored.get_data_dtype()}, slope {proxy.slope:.6f}, intercept {proxy.inter:.6f}")
print(f"labels written 0 3 7 13, nibabel reads {distinct(read)}, SimpleITK {distinct(by_simpleitk)}")
print("as uint8:", " ".join(map(str, np.unique(read.astype(np.uint8)))))
nibabel.save(nibabel.Nifti1Image(labels.astype(np.int64), ct.affine, ct.header), "whole.nii.gz")
whole = nibabel.load("whole.nii.gz")
print(f"the same labels as int64: slope {whole.dataobj.slope}, read {distinct(whole.get_fdata())}")
changed = bool((read.astype(np.uint8) != labels).any())
sys.exit(0 if changed and np.array_equal(whole.get_fdata(), labels) else 1)
PYTHON
