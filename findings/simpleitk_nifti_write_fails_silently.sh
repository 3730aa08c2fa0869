#!/usr/bin/env bash
# Believed: SimpleITK's WriteImage raises where a file cannot be written to its end (full disk, quota, limit of file size).
# True:     for NIfTI it returns as if all were well and leaves a file that is too short; a line on the standard error stream is
#           all there is. For MetaImage it raises. Reading the short file back raises nothing either: what is missing is 0.
# Versions: SimpleITK 2.5.7, numpy 2.4.6, Python 3.11. A limit of the file size stands for the full disk here.
# Why it matters: nnU-Net writes predictions this way. On a full disk a folder of predictions looks complete, `--continue_prediction`
#           passes over the files that exist, and a metric reads structures that end early.
# Seen:     .nii: written without an error, 65536 of 1000352 bytes, read back without an error, 93 % of the voxels lost
#           .mha: raises
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet SimpleITK==2.5.7 numpy==2.4.6
cd "$work"
venv/bin/python - 2> noise <<'PYTHON'
import resource
import signal
import sys
from pathlib import Path

import numpy as np
import SimpleITK as sitk

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that the write fails with an error, as on a full disk
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, resource.RLIM_INFINITY))
labels = np.ones((100, 100, 100), np.uint8)
image = sitk.GetImageFromArray(labels)
outcome = {}
for ending in (".nii", ".mha"):
    path = Path(f"labels{ending}")
    try:
        sitk.WriteImage(image, str(path))
    except RuntimeError:
        outcome[ending] = "raises"
        print(f"{ending}: raises")
        continue
    outcome[ending] = "returns"
    written = path.stat().st_size
    read = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    lost = round(100 * float((read != labels).mean()))
    print(
        f"{ending}: written without an error, {written} of {352 + labels.nbytes} bytes, read back without an error, "
        f"{lost} % of the voxels lost"
    )
sys.exit(0 if outcome == {".nii": "returns", ".mha": "raises"} else 1)
PYTHON
