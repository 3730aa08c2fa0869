#!/usr/bin/env bash
# Believed: reading an image leaves the process as it was; libraries that need a decimal point set LC_NUMERIC for a moment, and back.
# True:     SimpleITK's reader of legacy VTK files sets the whole locale of the process to C and leaves it so. From then on Python
#           decodes what other programs print, and files opened without an encoding, as ASCII; the first progress bar of a child
#           process is a UnicodeDecodeError. Other formats, and writing VTK, leave the locale alone.
# Versions: SimpleITK 2.5.7, numpy 2.4.6, Python 3.11, started with LC_ALL=C.UTF-8.
# Why it matters: the error comes later and elsewhere, in whatever reads text next, such as the output of nnU-Net's commands; nothing
#           leads back to the image that caused it.
# Seen:     after reading volume.nii.gz: UTF-8
#           after reading volume.mha: UTF-8
#           after reading volume.nrrd: UTF-8
#           after reading volume.vtk: ANSI_X3.4-1968
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet SimpleITK==2.5.7 numpy==2.4.6
cd "$work"
LC_ALL=C.UTF-8 venv/bin/python - <<'PYTHON'
import locale
import sys

import numpy as np
import SimpleITK as sitk

image = sitk.GetImageFromArray(np.arange(60, dtype=np.int16).reshape(3, 4, 5))
after = {}
for ending in (".nii.gz", ".mha", ".nrrd", ".vtk"):
    sitk.WriteImage(image, f"volume{ending}")
    sitk.ReadImage(f"volume{ending}")
    after[ending] = locale.getencoding()
    print(f"after reading volume{ending}: {after[ending]}")
sys.exit(0 if after.pop(".vtk") != "UTF-8" and set(after.values()) == {"UTF-8"} else 1)
PYTHON
