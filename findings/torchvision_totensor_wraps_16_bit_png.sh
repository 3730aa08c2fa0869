#!/usr/bin/env bash
# Believed: torchvision's ToTensor gives of a 16-bit PNG its values, or its values divided by 65535.
# True:     it gives int16, not divided and not refused: from 32768 on values become negative, and the brightest pixels the darkest.
#           PILToTensor, v2.ToImage and io.decode_image of the same file give uint16, and v2.ToDtype with scale=True divides. Pillow's
#           own convert("L") and convert("RGB"), before any of them, leave 255 of every value above 255.
# Versions: torchvision 0.29.1, torch 2.14.1, pillow 13.0.0, numpy 2.4.6, Python 3.11.
# Why it matters: CT is published as 16-bit PNG with 32768 added to Hounsfield units (DeepLesion and its like). Through ToTensor, the
#           first transform of most training scripts, water and everything denser goes below air. A training runs all the same,
#           since the values are finite and of the expected spread.
# Seen:     HU                      [-1000, -100, -1, 0, 40, 1000]
#           ToTensor                torch.int16 [31768, 32668, 32767, -32768, -32728, -31768]
#           PILToTensor             torch.uint16 [31768, 32668, 32767, 32768, 32808, 33768]
#           v2.ToImage              torch.uint16 [31768, 32668, 32767, 32768, 32808, 33768]
#           io.decode_image         torch.uint16 [31768, 32668, 32767, 32768, 32808, 33768]
#           ToImage, ToDtype(scale) torch.float32 [0.4847, 0.4985, 0.5, 0.5, 0.5006, 0.5153]
#           convert("RGB"), ToTensor torch.float32 [1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet torchvision==0.29.1 torch==2.14.1 pillow==13.0.0 numpy==2.4.6
"$work/env/bin/python" -W ignore - "$work" <<'PYTHON'
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import PILToTensor, ToTensor, v2

file = str(Path(sys.argv[1]) / "slice.png")
hounsfield = np.array([[-1000, -100, -1, 0, 40, 1000]])
stored = (hounsfield + 32768).astype(np.uint16)
Image.fromarray(stored).save(file)
picture = Image.open(file)
found = {
    "ToTensor": ToTensor()(picture),
    "PILToTensor": PILToTensor()(picture),
    "v2.ToImage": v2.ToImage()(picture),
    "io.decode_image": decode_image(file, mode=ImageReadMode.UNCHANGED),
    "ToImage, ToDtype(scale)": v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])(picture),
    'convert("RGB"), ToTensor': ToTensor()(picture.convert("RGB"))[:1],
}
print(f"{'HU':23}", hounsfield[0].tolist())
for name, tensor in found.items():
    print(f"{name:23}", tensor.dtype, [round(value, 4) for value in tensor.flatten().tolist()])
wrapped = np.array_equal(found["ToTensor"].numpy()[0], stored.astype(np.int16))
others = all(np.array_equal(found[name].numpy()[0], stored) for name in ("PILToTensor", "v2.ToImage", "io.decode_image"))
sys.exit(0 if wrapped and others else 1)
PYTHON
