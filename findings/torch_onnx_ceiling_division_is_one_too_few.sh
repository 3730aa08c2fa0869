#!/usr/bin/env bash
# Believed: a network that pads its image to the next multiple of the patch, -(-width // 16) * 16 - width in Python, does so in the
#           ONNX file that torch.onnx.export(dynamo=True) writes of it with a free width.
# True:     the file divides towards zero, so that the ceiling is one multiple too few: at the very size that was traced it removes pixels
#           where torch adds some. torch.export's own program is right; nothing warns, and sizes that need no padding agree.
#           (width + 15) // 16 * 16, the same number in Python, is right in the file as well.
# Versions: torch 2.14.1, onnx 1.23.2, onnxscript 0.7.2, onnxruntime 1.32.0, Python 3.11.
# Why it matters: this is the usual way to write a ceiling in Python, and every ViT and U-Net for images of any size pads so. The file
#           loads and predicts; the border of each image is missing, or the labels lie on a grid of another size.
# Seen:     -(-n // 16):      width 100: torch 112, torch.export 112, onnxruntime 96; width 96: 96, 96, 96; width 50: 64, 64, 48
#           (n + 15) // 16:   width 100: torch 112, torch.export 112, onnxruntime 112; width 96: 96, 96, 96; width 50: 64, 64, 64
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet torch==2.14.1 onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.32.0
"$work/env/bin/python" -W ignore - "$work" <<'PYTHON'
import contextlib
import io
import logging
import sys

import onnxruntime
import torch
import torch.nn.functional as F

logging.disable(logging.WARNING)


class Negated(torch.nn.Module):
    def forward(self, image):
        width = image.shape[-1]
        return F.pad(image, (0, -(-width // 16) * 16 - width))


class Raised(torch.nn.Module):
    def forward(self, image):
        width = image.shape[-1]
        return F.pad(image, (0, (width + 15) // 16 * 16 - width))


def widths(network, name, sizes):
    """Return for each width that of the output in torch, in its exported program and in onnxruntime."""
    free = ({3: torch.export.Dim.DYNAMIC},)
    traced = torch.export.export(network, (torch.zeros(1, 1, 8, 100),), dynamic_shapes=free)
    file = f"{sys.argv[1]}/{name}.onnx"
    with contextlib.redirect_stdout(io.StringIO()):
        torch.onnx.export(traced, dynamo=True, input_names=["image"], output_names=["padded"]).save(file)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    found = {}
    for size in sizes:
        image = torch.zeros(1, 1, 8, size)
        padded = network(image), traced.module()(image), session.run(None, {"image": image.numpy()})[0]
        found[size] = [value.shape[-1] for value in padded]
    return found


results = {}
for title, network in (("-(-n // 16)", Negated()), ("(n + 15) // 16", Raised())):
    found = results[title] = widths(network, type(network).__name__, (100, 96, 50))
    (first, (a, b, c)), *rest = found.items()
    others = "; ".join(f"width {size}: {', '.join(map(str, values))}" for size, values in rest)
    print(f"{title + ':':17} width {first}: torch {a}, torch.export {b}, onnxruntime {c}; {others}")
wrong, right = results.values()
held = wrong == {100: [112, 112, 96], 96: [96] * 3, 50: [64, 64, 48]} and right == {100: [112] * 3, 96: [96] * 3, 50: [64] * 3}
sys.exit(0 if held else 1)
PYTHON
