#!/usr/bin/env bash
# Believed: warpAffine and remap of a float32 image interpolate linearly between pixels, and the next version of OpenCV gives the same but for the last digits.
# True:     up to OpenCV 4 positions are rounded to 1/32 of a pixel, for float images as well: a shift of 0.01 pixels moves nothing, and one of 0.02
#           moves as far as 0.031. OpenCV 5 interpolates where it is asked to: a rotation by 7 degrees differs between the two by 12 HU in a
#           smooth image of 500 HU of contrast.
# Versions: opencv-python-headless 4.14.0.94 and 5.0.0.93, scipy 1.17.1, numpy 2.4.6, Python 3.11.
# Why it matters: an image shifted step by step, as for a subpixel registration, a check of gradients or a test of equivariance, stands still and
#           jumps. Augmentation (albumentations goes through these functions) and stored results change with an upgrade that no requirement forbids.
# Seen:     OpenCV 4.14.0, shift 0.01: scipy moves by 6.9 HU, warpAffine 0.0, remap 0.0
#           OpenCV 4.14.0, shift 0.02: scipy moves by 13.8 HU, warpAffine 21.5, remap 21.5
#           OpenCV 4.14.0, shift 0.1: scipy moves by 68.8 HU, warpAffine 64.5, remap 64.5
#           OpenCV 4.14.0, 7 degrees: 12.10 HU from scipy at most
#           OpenCV 5.0.0, shift 0.01: scipy moves by 6.9 HU, warpAffine 6.9, remap 6.9
#           OpenCV 5.0.0, shift 0.02: scipy moves by 13.8 HU, warpAffine 13.8, remap 13.8
#           OpenCV 5.0.0, shift 0.1: scipy moves by 68.8 HU, warpAffine 68.8, remap 68.8
#           OpenCV 5.0.0, 7 degrees: 0.01 HU from scipy at most
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat >"$work/moves.py" <<'PYTHON'
import sys

import cv2
import numpy as np
from scipy import ndimage

SIDE, INSIDE = 256, np.s_[60:-60, 60:-60]
image = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(SIDE, SIDE)), 2)
image = (500 * image / image.std()).astype(np.float32)
y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
turn = cv2.getRotationMatrix2D((127.5, 127.5), 7, 1)
back = np.linalg.inv(np.vstack([turn, [0, 0, 1]]))[:2]


def largest(of: np.ndarray, other: np.ndarray) -> float:
    """Return the largest difference within the image."""
    return float(np.abs(of - other)[INSIDE].max())


major, expected = int(cv2.__version__.split(".")[0]), []
for shift in (0.01, 0.02, 0.1):
    right = ndimage.map_coordinates(image.astype(float), [y.astype(float), x + shift], order=1)
    matrix = np.array([[1, 0, shift], [0, 1, 0]])
    affine = cv2.warpAffine(image, matrix, (SIDE, SIDE), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    mapped = cv2.remap(image, x + np.float32(shift), y, cv2.INTER_LINEAR)
    changes = [largest(of, image) for of in (right, affine, mapped)]
    print(f"OpenCV {cv2.__version__}, shift {shift}: scipy moves by {changes[0]:.1f} HU, warpAffine {changes[1]:.1f}, remap {changes[2]:.1f}")
    expected += [largest(right, of) > 1 if major == 4 else largest(right, of) < 0.1 for of in (affine, mapped)]
    expected += [max(changes[1:]) == 0] if major == 4 and shift == 0.01 else []
where = [row[0] * x.astype(float) + row[1] * y + row[2] for row in back]
error = largest(cv2.warpAffine(image, turn, (SIDE, SIDE)), ndimage.map_coordinates(image.astype(float), where[::-1], order=1))
print(f"OpenCV {cv2.__version__}, 7 degrees: {error:.2f} HU from scipy at most")
expected.append(error > 5 if major == 4 else error < 0.1)
sys.exit(0 if all(expected) else 1)
PYTHON
python3 -m venv "$work/env"
for version in 4.14.0.94 5.0.0.93; do
    "$work/env/bin/pip" install --quiet opencv-python-headless==$version scipy==1.17.1 numpy==2.4.6
    "$work/env/bin/python" "$work/moves.py"
done
