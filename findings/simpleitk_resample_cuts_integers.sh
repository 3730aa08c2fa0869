#!/usr/bin/env bash
# Believed: sitk.Resample of a whole-number image rounds what it interpolates; an image that is 1 everywhere is 1 afterwards.
# True:     it cuts towards zero. Linear: values move towards 0 by half a unit on average, so fat at -100 HU becomes -99.5 and liver at 100
#           becomes 99.5. B-spline: a constant is met to 1e-7 only, and where that is from below it drops by one: 1 turns 0 in most
#           voxels, in the inside of the image. The same image as float is right.
# Versions: SimpleITK 2.5.7, numpy 2.4.6, Python 3.11. TorchIO 1.2.1 resamples through it and leaves int16 as int16.
# Why it matters: half a unit is nothing in HU but much in images of few values (MR and ultrasound in 8 bits, ADC, counts, scores in tenths);
#           it has the sign of the values, and masks that are smoothed by a B-spline get holes.
# Seen:     ones, linear: 0 in 0% of voxels as uint8, in 0% as float32
#           ones, B-spline: 0 in 69% of voxels as uint8, in 0% as float32
#           -100 HU, linear: mean -99.54 as int16, -100.04 as float32
#           100 HU, linear: mean 99.47 as int16, 99.96 as float32
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet SimpleITK==2.5.7 numpy==2.4.6
"$work/env/bin/python" - <<'PYTHON'
import sys

import numpy as np
import SimpleITK as sitk


def resampled(values: np.ndarray, interpolator: int) -> np.ndarray:
    """Resample 0.7 x 0.7 x 5 mm to 1 mm; return what lies well inside the image."""
    image = sitk.GetImageFromArray(values)
    image.SetSpacing((0.7, 0.7, 5.0))
    onto = sitk.Image([26, 26, 54], image.GetPixelID())
    onto.SetOrigin((0.3, 0.4, 0.5))
    return sitk.GetArrayFromImage(sitk.Resample(image, onto, sitk.Transform(), interpolator))


ones = np.ones((12, 40, 40))
zeros = {}
for name, interpolator in (("linear", sitk.sitkLinear), ("B-spline", sitk.sitkBSpline)):
    zeros[name] = [(resampled(ones.astype(kind), interpolator) < 0.5).mean() for kind in (np.uint8, np.float32)]
    print(f"ones, {name}: 0 in {zeros[name][0]:.0%} of voxels as uint8, in {zeros[name][1]:.0%} as float32")
noise = np.random.default_rng(0).normal(0, 15, ones.shape)
shifts = []
for level in (-100, 100):
    whole = (noise + level).round().astype(np.int16)
    means = [resampled(whole.astype(kind), sitk.sitkLinear).mean() for kind in (np.int16, np.float32)]
    shifts.append(means[0] - means[1])
    print(f"{level} HU, linear: mean {means[0]:.2f} as int16, {means[1]:.2f} as float32")
held = zeros["B-spline"][0] > 0.2 and zeros["B-spline"][1] == 0 and shifts[0] > 0.3 and shifts[1] < -0.3
sys.exit(0 if held else 1)
PYTHON
