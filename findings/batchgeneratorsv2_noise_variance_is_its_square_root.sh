#!/usr/bin/env bash
# Believed: noise_variance=(0, 0.1), as in nnU-Net's augmentation, adds Gaussian noise of a variance of up to 0.1: a standard deviation
#           of up to 0.32 of the normalised intensities.
# True:     the value drawn is the standard deviation, in batchgenerators and batchgeneratorsv2: at most 0.1, a variance of 0.01.
# Versions: batchgeneratorsv2 0.3.6, batchgenerators 0.25.5, torch 2.14.1, numpy 2.4.6, Python 3.11.
# Why it matters: whoever writes nnU-Net's augmentations anew from its settings, or reports them in a paper, has noise three times as
#           strong.
# Seen:     batchgenerators, noise_variance 0.1:   standard deviation 0.100, variance 0.010
#           batchgeneratorsv2, noise_variance 0.1: standard deviation 0.100, variance 0.010
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet batchgeneratorsv2==0.3.6 batchgenerators==0.25.5 torch==2.14.1 numpy==2.4.6
cd "$work"
venv/bin/python -W ignore - <<'PYTHON'
import sys

import numpy as np
import torch
from batchgenerators.augmentations.noise_augmentations import augment_gaussian_noise
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform

np.random.seed(0)
torch.manual_seed(0)
older = augment_gaussian_noise(np.zeros((1, 512, 512)), noise_variance=(0.1, 0.1)).std()
transform = GaussianNoiseTransform(noise_variance=(0.1, 0.1), p_per_channel=1, synchronize_channels=True)
newer = float(transform(image=torch.zeros(1, 512, 512))["image"].std())
for name, deviation in (("batchgenerators, noise_variance 0.1:", older), ("batchgeneratorsv2, noise_variance 0.1:", newer)):
    print(f"{name:38} standard deviation {deviation:.3f}, variance {deviation**2:.3f}")
sys.exit(0 if abs(older - 0.1) < 0.01 and abs(newer - 0.1) < 0.01 else 1)
PYTHON
