#!/usr/bin/env bash
# Believed: layer-wise decay of the learning rate (timm's param_groups_layer_decay) gives what stands before the blocks the lowest rate: patch
#           embedding, class token, position embedding and register tokens; tokens have no weight decay, for the model says so
#           (no_weight_decay).
# True:     the register tokens are in the head's group: full learning rate and weight decay, in DINOv3 and in DINOv2 with registers; the
#           class token beside them has a hundredth of it, and no decay.
# Versions: timm 1.0.22, torch 2.14.1, Python 3.11.
# Why it matters: layer decay is chosen to keep a pretrained encoder near its weights when labels are few. Its registers, which every patch
#           attends to in every block, then move as fast as the new head and shrink; MAE-style recipes carry over worse to
#           DINOv3 than they should.
# Seen:     vit_small_patch16_dinov3: patch_embed.proj.weight: learning rate times 0.0097, weight decay 0.05
#           vit_small_patch16_dinov3: cls_token: learning rate times 0.0097, weight decay 0.0
#           vit_small_patch16_dinov3: reg_token: learning rate times 1.0000, weight decay 0.05
#           vit_small_patch16_dinov3: head.weight: learning rate times 1.0000, weight decay 0.05
#           vit_small_patch14_reg4_dinov2: patch_embed.proj.weight: learning rate times 0.0097, weight decay 0.05
#           vit_small_patch14_reg4_dinov2: cls_token: learning rate times 0.0097, weight decay 0.0
#           vit_small_patch14_reg4_dinov2: reg_token: learning rate times 1.0000, weight decay 0.05
#           vit_small_patch14_reg4_dinov2: head.weight: learning rate times 1.0000, weight decay 0.05
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet torch==2.14.1 timm==1.0.22
"$work/env/bin/python" -W ignore - <<'PYTHON'
import sys

import timm
from timm.optim import param_groups_layer_decay

held = []
for name in ("vit_small_patch16_dinov3", "vit_small_patch14_reg4_dinov2"):
    model = timm.create_model(name, pretrained=False, num_classes=3)
    groups = param_groups_layer_decay(model, weight_decay=0.05, layer_decay=0.7, no_weight_decay_list=model.no_weight_decay())
    names = {id(value): parameter for parameter, value in model.named_parameters()}
    found = {names[id(value)]: (group["lr_scale"], group["weight_decay"]) for group in groups for value in group["params"]}
    for parameter in ("patch_embed.proj.weight", "cls_token", "reg_token", "head.weight"):
        print(f"{name}: {parameter}: learning rate times {found[parameter][0]:.4f}, weight decay {found[parameter][1]}")
    held.append(found["reg_token"] == found["head.weight"] and found["cls_token"][0] < 0.02)
sys.exit(0 if all(held) else 1)
PYTHON
