#!/usr/bin/env bash
# Believed: a 2D configuration of nnU-Net leaves the slice axis alone and resamples inside a slice with cubic splines (order 3 in the
#           plans); nearest neighbour (order_z 0) is for the distance of slices in 3D.
# True:     if the pixels of a slice are more than three times as long along one of its axes as the smallest spacing, that axis
#           counts as the coarse one of the volume, and is repeated by nearest neighbour inside the slice: images in steps, logits
#           likewise. From 3.0 to 3.1 a smooth slope becomes a staircase.
# Versions: nnunetv2 2.8.1, torch 2.14.1, numpy 2.4.6, Python 3.11.
# Why it matters: OCT, line-scan microscopy, elastography and reformatted slices of thick CT have such pixels. Networks train on stairs,
#           predictions have them, and the plans, which say order 3, do not show it.
# Seen:     pixels 2.9 times as long: 0 0 0.25 0.61 1 1.35 1.68 2 2.33 2.67 3 3.32 3.65 4 4.39 4.75 5 5
#           pixels 3.1 times as long: 0 0 0 1 1 1 2 2 2 3 3 3 4 4 4 5 5 5
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet nnunetv2==2.8.1 torch==2.14.1 numpy==2.4.6
cd "$work"
export nnUNet_raw=$work nnUNet_preprocessed=$work nnUNet_results=$work
venv/bin/python -W ignore - <<'PYTHON'
import sys

import numpy as np
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape

slope = np.zeros((1, 3, 6, 6), np.float32)  # channel, slices, rows, columns
slope[0] = np.arange(6)[:, np.newaxis]
steps = []
for length in (2.9, 3.1):
    before, after = (1.0, length, 1.0), (1.0, length / 3, 1.0)
    made = resample_data_or_seg_to_shape(
        slope, (3, 18, 6), before, after, is_seg=False, order=3, order_z=0, force_separate_z=None  # as in the plans
    )
    column = made[0, 0, :, 0]
    steps.append(len(np.unique(column.round(2))))
    print(f"pixels {length} times as long:", *(f"{round(float(value), 2):g}" for value in column))
sys.exit(0 if steps[0] > 12 and steps[1] == 6 else 1)
PYTHON
