#!/usr/bin/env bash
# Believed: LoraConfig(target_modules=["qkv"]) of peft puts adapters on the attention of timm's ViTs; that it prints the number of
#           trainable parameters, and that the loss falls, says that they are trained.
# True:     of models whose qkv has biases for queries and values alone (DINOv3's "qkvb" variants, BEiT) the attention hands the weight
#           of qkv to F.linear itself and never calls the layer, nor what stands in its place. peft counts its adapters as trainable,
#           and none is ever reached: no gradient, and no change of the output whatever they hold. Of DINOv3 without these biases,
#           and of plain ViTs, all are. So a head on a frozen backbone is trained, and called LoRA.
# Versions: peft 0.21.2, timm 1.0.22, torch 2.14.1, Python 3.11.
# Why it matters: adapting a pretrained ViT to few labelled scans by adapters is common; two weights of one architecture then differ in
#           whether anything is adapted, without a word, and the comparison of the two is taken for one of the weights.
# Seen:     vit_small_patch16_dinov3: 24 adapter tensors counted as trainable, 24 with a gradient, output changed
#           vit_small_patch16_dinov3_qkvb: 24 adapter tensors counted as trainable, 0 with a gradient, output the same
#           beit_base_patch16_224: 24 adapter tensors counted as trainable, 0 with a gradient, output the same
#           vit_small_patch16_224: 24 adapter tensors counted as trainable, 24 with a gradient, output changed
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet peft==0.21.2 timm==1.0.22 torch==2.14.1
"$work/env/bin/python" -W ignore - <<'PYTHON'
import sys

import timm
import torch
from peft import LoraConfig, get_peft_model

MODELS = ("vit_small_patch16_dinov3", "vit_small_patch16_dinov3_qkvb", "beit_base_patch16_224", "vit_small_patch16_224")


def reached(name: str) -> tuple[bool, bool]:
    """Put random adapters on a model; return whether all get a gradient, and whether they change the output."""
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, num_classes=2)
    with torch.no_grad():
        for parameter, value in model.named_parameters():
            if "gamma" in parameter:
                value.fill_(1.0)  # of LayerScale, which begins at 1e-5 and would hide any change
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["qkv"], modules_to_save=["head"], init_lora_weights=False)
    adapted = get_peft_model(model, config).eval()
    image = torch.randn(1, *model.default_cfg["input_size"])
    output = adapted(image)
    with adapted.disable_adapter():
        changed = not torch.equal(output, adapted(image))
    output.sum().backward()
    adapters = [p for parameter, p in adapted.named_parameters() if "lora_" in parameter and p.requires_grad]
    moved = sum(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in adapters)
    print(
        f"{name}: {len(adapters)} adapter tensors counted as trainable, {moved} with a gradient, output "
        f"{'changed' if changed else 'the same'}"
    )
    return moved == len(adapters), changed


found = [reached(name) for name in MODELS]
sys.exit(0 if found == [(True, True), (False, False), (False, False), (True, True)] else 1)
PYTHON
