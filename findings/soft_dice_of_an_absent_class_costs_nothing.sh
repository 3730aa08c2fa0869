#!/usr/bin/env bash
# Believed: a soft Dice loss punishes a class that is predicted where the labels of the batch hold none of it: its Dice is 0, its loss 1.
# True:     in MONAI and nnU-Net, yes. segmentation_models_pytorch (Dice, Jaccard and Tversky loss) and kornia ("macro") leave out
#           classes that the batch's labels do not hold: only the voxels missing from the class that is really there count.
# Versions: segmentation-models-pytorch 0.6.0, kornia 0.9.0, monai 1.6.1, nnunetv2 2.8.1, torch 2.14.1, Python 3.11
# Why it matters: in 2D most slices hold few of the organs. A loss of the same name does not learn to keep silent about the others,
#           and losses of 0.01 and 0.34 are reported for one and the same prediction.
# Seen:     smp, Dice: 0.000 where all is right, 0.009 with 200 of 4096 pixels taken for a class that is not there
#           smp, Jaccard: 0.000 where all is right, 0.018 with 200 of 4096 pixels taken for a class that is not there
#           smp, Tversky: 0.000 where all is right, 0.009 with 200 of 4096 pixels taken for a class that is not there
#           kornia, Dice of classes: 0.000 where all is right, 0.014 with 200 of 4096 pixels taken for a class that is not there
#           MONAI, Dice: 0.000 where all is right, 0.343 with 200 of 4096 pixels taken for a class that is not there
#           nnU-Net, Dice: 0.000 where all is right, 0.341 with 200 of 4096 pixels taken for a class that is not there
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet torch==2.14.1 segmentation-models-pytorch==0.6.0 kornia==0.9.0 monai==1.6.1 nnunetv2==2.8.1
"$work/env/bin/python" -W ignore - <<'PYTHON'
import sys

import kornia
import monai
import segmentation_models_pytorch as smp
import torch
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

SIDE, CERTAIN = 64, 50.0
labels = torch.zeros(1, SIDE, SIDE, dtype=torch.long)
labels[:, 10:30, 10:30] = 1


def logits(classes: torch.Tensor) -> torch.Tensor:
    return CERTAIN * torch.nn.functional.one_hot(classes, 3).permute(0, 3, 1, 2)


predicted = labels.clone()
predicted[:, 40:60, 40:50] = 2
losses = {
    "smp, Dice": smp.losses.DiceLoss("multiclass"),
    "smp, Jaccard": smp.losses.JaccardLoss("multiclass"),
    "smp, Tversky": smp.losses.TverskyLoss("multiclass"),
    "kornia, Dice of classes": kornia.losses.DiceLoss(average="macro"),
    "MONAI, Dice": lambda x, y: monai.losses.DiceLoss(softmax=True, to_onehot_y=True)(x, y[:, None]),
    "nnU-Net, Dice": lambda x, y: 1 + MemoryEfficientSoftDiceLoss(lambda z: z.softmax(1), do_bg=True, ddp=False)(x, y[:, None]),
}
found = {}
for name, loss in losses.items():
    right, wrong = (float(loss(logits(classes), labels)) for classes in (labels, predicted))
    found[name] = wrong
    print(f"{name}: {abs(right):.3f} where all is right, {wrong:.3f} with 200 of 4096 pixels taken for a class that is not there")
left_out = [value < 0.02 for value in found.values()]
sys.exit(0 if left_out == [True] * 4 + [False] * 2 else 1)
PYTHON
