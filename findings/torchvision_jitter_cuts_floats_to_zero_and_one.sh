#!/usr/bin/env bash
# Believed: torchvision's v2 transforms compute with float images as they are: brightness times 1.2 multiplies, noise of 0.01 adds noise of 0.01.
# True:     brightness, contrast, saturation, sharpness and GaussianNoise cut the result to [0, 1] without a word; equalize and autocontrast stretch to it.
#           Blur, invert, elastic deformation and resizing do not, and a jitter that draws the factor 1 leaves the image as it is: whether an image is cut
#           changes from draw to draw. Of a slice normalised to mean 0 and deviation 1, half of the pixels become 0 and a sixth become 1.
# Versions: torchvision 0.29.1, torch 2.14.1, Python 3.11.
# Why it matters: CT normalised before it is augmented, as in most medical pipelines, keeps its bright soft tissue and loses lung, fat and bone in some views:
#           self-supervised training takes what is lost for what views have not in common. The loss looks as usual.
# Seen:     image: -4.34 to 4.56
#           brightness 1.2: 0.00 to 1.00
#           contrast 1.2: 0.00 to 1.00
#           saturation 1.2: 0.00 to 1.00
#           sharpness 2: 0.00 to 1.00
#           noise 0.01: 0.00 to 1.00
#           autocontrast: 0.00 to 1.00
#           equalize: 0.00 to 1.00
#           brightness 1: -4.34 to 4.56
#           blur: -2.92 to 2.91
#           invert: -3.56 to 5.34
#           elastic: -3.22 to 3.62
#           resize: -1.97 to 1.98
#           after noise of 0.01: 50% of the values are 0, 16% are 1
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet torch==2.14.1 torchvision==0.29.1
"$work/env/bin/python" -W ignore - <<'PYTHON'
import sys

import torch
from torchvision.transforms import v2

torch.manual_seed(0)
image = torch.randn(3, 128, 128)
CUT = {
    "brightness 1.2": v2.ColorJitter(brightness=(1.2, 1.2)),
    "contrast 1.2": v2.ColorJitter(contrast=(1.2, 1.2)),
    "saturation 1.2": v2.ColorJitter(saturation=(1.2, 1.2)),
    "sharpness 2": v2.RandomAdjustSharpness(2, p=1),
    "noise 0.01": v2.GaussianNoise(sigma=0.01),
    "autocontrast": v2.RandomAutocontrast(p=1),
    "equalize": v2.RandomEqualize(p=1),
}
NOT_CUT = {
    "brightness 1": v2.ColorJitter(brightness=(1.0, 1.0)),
    "blur": v2.GaussianBlur(3, sigma=0.5),
    "invert": v2.RandomInvert(p=1),
    "elastic": v2.ElasticTransform(),
    "resize": v2.Resize(96),
}


print(f"image: {image.min():.2f} to {image.max():.2f}")
expected = []
for transforms, cut in ((CUT, True), (NOT_CUT, False)):
    for name, transform in transforms.items():
        out = transform(image.clone())
        low, high = float(out.min()), float(out.max())
        print(f"{name}: {low:.2f} to {high:.2f}")
        expected.append((low >= 0 and high <= 1) == cut)
noisy = CUT["noise 0.01"](image.clone())
zeros, ones = (float((noisy == end).float().mean()) for end in (0, 1))
print(f"after noise of 0.01: {zeros:.0%} of the values are 0, {ones:.0%} are 1")
expected.append(zeros > 0.4 and ones > 0.1)
sys.exit(0 if all(expected) else 1)
PYTHON
