#!/usr/bin/env bash
# Believed: SimpleITK returns the values that a float NIfTI file holds, NaN and infinities among them, as it does for other formats.
# True:     its NIfTI reader replaces every non-finite value by 0 and says nothing; MetaImage keeps them. SimpleITK *writes* them
#           into NIfTI, so one round trip changes the image. nibabel returns what is stored.
# Versions: SimpleITK 2.5.7, nibabel 5.4.2, numpy 2.4.6, Python 3.11.
# Why it matters: in CT 0 HU is water. Voxels that a resampling or a registration marked as unknown become tissue in training and
#           in prediction, and a check for finite values after reading can never fire. Checking needs another reader.
# Seen:     NIfTI through nibabel:    [nan, inf, -inf, 7.0]
#           NIfTI through SimpleITK:  [0.0, 0.0, 0.0, 7.0]
#           MetaImage, SimpleITK:     [nan, inf, -inf, 7.0]
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

stored = np.array([[[np.nan, np.inf, -np.inf, 7.0]]], np.float32)  # (z, y, x)
image = sitk.GetImageFromArray(stored)
sitk.WriteImage(image, "image.nii.gz")
sitk.WriteImage(image, "image.mha")
by_nibabel = np.asarray(nibabel.load("image.nii.gz").dataobj).ravel()
by_simpleitk = sitk.GetArrayFromImage(sitk.ReadImage("image.nii.gz")).ravel()
metaimage = sitk.GetArrayFromImage(sitk.ReadImage("image.mha")).ravel()
print("NIfTI through nibabel:   ", by_nibabel.tolist())
print("NIfTI through SimpleITK: ", by_simpleitk.tolist())
print("MetaImage, SimpleITK:    ", metaimage.tolist())
same = [np.array_equal(values, stored.ravel(), equal_nan=True) for values in (by_nibabel, by_simpleitk, metaimage)]
sys.exit(0 if same == [True, False, True] and by_simpleitk.tolist() == [0, 0, 0, 7] else 1)
PYTHON
