#!/usr/bin/env bash
# Believed: antialias=True of torch.nn.functional.interpolate matters where a picture shrinks; where it grows nothing can alias, so
#           the result is that of antialias=False (it is for mode="bilinear").
# True:     for mode="bicubic" the switch also exchanges the kernel: Keys' coefficient is -0.5 with it and -0.75 without. Enlarged
#           pictures differ, by 5 % of the range for noise. Without it torch agrees with OpenCV, with it with Pillow.
# Versions: torch 2.14.1, opencv-python-headless 5.0.0.93, Pillow 13.0.0, numpy 2.4.6, Python 3.11.
# Why it matters: position embeddings, feature maps (Gram anchoring) and crops of self-supervised training are resized bicubically in
#           both directions; a port that "only drops the needless antialias", or exchanges libraries, trains on other numbers.
# Seen:     bilinear, 8 -> 16: antialias changes it by at most 0.000000
#           bicubic,  8 -> 16: antialias changes it by at most 0.048945
#           distance to OpenCV's bicubic: 0.000000 without antialias, 0.048945 with it
#           distance to Pillow's bicubic: 0.048945 without antialias, 0.000000 with it
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.14.1 opencv-python-headless==5.0.0.93 Pillow==13.0.0 numpy==2.4.6
cd "$work"
venv/bin/python - <<'PYTHON'
import sys

import cv2
import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate

picture = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
enlarged = {
    (mode, antialias): interpolate(picture, scale_factor=2, mode=mode, antialias=antialias)[0, 0].numpy()
    for mode in ("bilinear", "bicubic")
    for antialias in (False, True)
}
differences = {mode: float(np.abs(enlarged[mode, True] - enlarged[mode, False]).max()) for mode in ("bilinear", "bicubic")}
for mode, difference in differences.items():
    print(f"{mode + ',':9} 8 -> 16: antialias changes it by at most {difference:.6f}")
plain = picture[0, 0].numpy()
others = {
    "OpenCV": cv2.resize(plain, (16, 16), interpolation=cv2.INTER_CUBIC),
    "Pillow": np.asarray(Image.fromarray(plain).resize((16, 16), Image.Resampling.BICUBIC)),
}
distance = {
    (name, antialias): float(np.abs(other - enlarged["bicubic", antialias]).max())
    for name, other in others.items()
    for antialias in (False, True)
}
for name in others:
    without, with_it = distance[name, False], distance[name, True]
    print(f"distance to {name}'s bicubic: {without:.6f} without antialias, {with_it:.6f} with it")
as_seen = differences["bilinear"] < 1e-5 and differences["bicubic"] > 0.01
as_seen &= distance["OpenCV", False] < 1e-5 and distance["Pillow", True] < 1e-5
sys.exit(0 if as_seen else 1)
PYTHON
