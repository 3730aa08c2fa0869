#!/usr/bin/env bash
# Believed: adaptive pooling to 6 x 6 gives 6 x 6 values of any image in the ONNX file too, or torch refuses to export it with free height and width,
#           as its former exporter did.
# True:     torch.onnx.export with dynamo=True writes the window of the example's size into the file, without a word. Of an image twice as large it
#           gives 12 x 12 values; of one a quarter larger 7 x 7; of one slightly larger the right number of wrong ones.
# Versions: torch 2.14.1, onnx 1.23.2, onnxscript 0.7.2, onnxruntime 1.32.0, Python 3.11
# Why it matters: pyramid pooling (PSPNet, UPerNet, the usual decoder of Vision Transformers) pools to 1, 2, 3 and 6 and enlarges
#           the result to the image again, so nothing fails: the file that agrees with torch on the size it was made with is wrong on all others.
# Seen:     pooled to 1 x 1: 24 pixels off by 0.000, 25 pixels off by 0.000, 30 pixels off by 0.000, 48 pixels off by 0.000
#           pooled to 1 x 1 and enlarged: 24 pixels off by 0.000, 25 pixels off by 0.000, 30 pixels off by 0.000, 48 pixels off by 0.000
#           pooled to 2 x 2: 24 pixels off by 0.000, 25 pixels off by 0.004, 30 pixels off by 0.021, 48 pixels 4 x 4 values
#           pooled to 2 x 2 and enlarged: 24 pixels off by 0.000, 25 pixels off by 0.004, 30 pixels off by 0.021, 48 pixels off by 0.060
#           pooled to 3 x 3: 24 pixels off by 0.000, 25 pixels off by 0.030, 30 pixels off by 0.080, 48 pixels 6 x 6 values
#           pooled to 3 x 3 and enlarged: 24 pixels off by 0.000, 25 pixels off by 0.030, 30 pixels off by 0.076, 48 pixels off by 0.080
#           pooled to 6 x 6: 24 pixels off by 0.000, 25 pixels off by 0.088, 30 pixels 7 x 7 values, 48 pixels 12 x 12 values
#           pooled to 6 x 6 and enlarged: 24 pixels off by 0.000, 25 pixels off by 0.088, 30 pixels off by 0.162, 48 pixels off by 0.145
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet torch==2.14.1 onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.32.0
"$work/env/bin/python" -W ignore - 2>/dev/null <<'PYTHON'
import logging
import sys

import onnxruntime
import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate

logging.disable()
EXAMPLE, SIDES = 24, (24, 25, 30, 48)


class Pooled(nn.Module):
    def __init__(self, bins: int, enlarged: bool) -> None:
        super().__init__()
        self.bins, self.enlarged = bins, enlarged

    def forward(self, image: Tensor) -> Tensor:
        pooled = adaptive_avg_pool2d(image, self.bins)
        return interpolate(pooled, size=image.shape[2:], mode="bilinear") if self.enlarged else pooled


torch.manual_seed(0)
images = {side: torch.rand(1, 1, side, side) for side in SIDES}
wrong = {}
for bins in (1, 2, 3, 6):
    for enlarged in (False, True):
        network = Pooled(bins, enlarged).eval()
        free = ({2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC},)
        exported = torch.onnx.export(network, (images[EXAMPLE],), dynamo=True, dynamic_shapes=free, verbose=False, report=False)
        session = onnxruntime.InferenceSession(exported.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
        found = {}
        for side, image in images.items():
            (values,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
            truth = network(image).numpy()
            same = values.shape == truth.shape
            found[side] = f"off by {abs(values - truth).max():.3f}" if same else f"{values.shape[2]} x {values.shape[3]} values"
            wrong[bins, enlarged, side] = not same or abs(values - truth).max() > 1e-3
        what = "pooled to {0} x {0} and enlarged" if enlarged else "pooled to {0} x {0}"
        print(what.format(bins) + ": " + ", ".join(f"{side} pixels {text}" for side, text in found.items()))
expected = {key: key[0] > 1 and key[2] != EXAMPLE for key in wrong}
sys.exit(0 if wrong == expected else 1)
PYTHON
