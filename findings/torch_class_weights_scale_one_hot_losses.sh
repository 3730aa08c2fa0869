#!/usr/bin/env bash
# Believed: cross_entropy with class weights gives the same for class indices and for the one-hot maps of the same classes; soft labels are
#           the general case of hard ones.
# True:     with indices the weighted mean is divided by the sum of the weights, with maps by the number of pixels. Here the loss of the same predictions and labels is
#           1.40 and 2.95; gradients differ by the same factor, which is the mean weight of the pixels in that batch: it changes from batch to batch.
#           Without weights the two agree.
# Versions: torch 2.14.1, numpy 2.4.6, Python 3.11.
# Why it matters: segmentation adds a weighted cross entropy to a Dice loss. To smooth or mix labels, or to go over to regions, then also changes the balance between the
#           two losses and the effective learning rate, and the change is taken for the labels' effect.
# Seen:     no weights: indices 1.383, one-hot maps 1.383, ratio 1.000, of the gradients 1.000
#           weights: indices 1.403, one-hot maps 2.953, ratio 2.105, of the gradients 2.105
#           mean weight of the pixels: 2.105; of each image: [2.323, 1.886]
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet torch==2.14.1 numpy==2.4.6
"$work/env/bin/python" -W ignore - <<'PYTHON'
import sys

import torch
from torch.nn.functional import cross_entropy, one_hot

torch.manual_seed(0)
logits = torch.randn(2, 3, 8, 8, requires_grad=True)
classes = torch.randint(0, 3, (2, 8, 8))
maps = one_hot(classes, 3).movedim(-1, 1).float()
weights = torch.tensor([0.1, 1.0, 5.0])
expected = []
for name, weight in (("no weights", None), ("weights", weights)):
    losses = [cross_entropy(logits, target, weight=weight) for target in (classes, maps)]
    lengths = [float(torch.autograd.grad(loss, logits)[0].norm()) for loss in losses]
    ratio = float(losses[1] / losses[0])
    print(f"{name}: indices {losses[0]:.3f}, one-hot maps {losses[1]:.3f}, ratio {ratio:.3f}, of the gradients {lengths[1] / lengths[0]:.3f}")
    factor = 1.0 if weight is None else float(weight[classes].mean())
    expected += [abs(ratio - factor) < 1e-4, abs(lengths[1] / lengths[0] - factor) < 1e-4]
print(f"mean weight of the pixels: {float(weights[classes].mean()):.3f}; of each image: {[round(float(weights[of].mean()), 3) for of in classes]}")
sys.exit(0 if all(expected) and float(weights[classes].mean()) > 1.5 else 1)
PYTHON
