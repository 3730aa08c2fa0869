#!/usr/bin/env bash
# Believed: with dropout and stochastic depth at 0, as the configuration of DINOv3 in transformers has them, train() and eval() give the same
#           features; a frozen backbone may be left in train mode, as training frameworks do with all that is below a model.
# True:     in train mode the patches' coordinates are multiplied by a random number between 1/2 and 2 in every forward pass
#           (pos_embed_rescale, 2.0 unless the configuration says otherwise): the same image gives other features each time. timm's DINOv3
#           gives the same ones.
# Versions: transformers 5.24.0, timm 1.0.22, torch 2.14.1, Python 3.11.
# Why it matters: features that are computed once and kept, distillation from a frozen teacher, and segmentation heads on a frozen encoder see
#           noise that is not there at prediction, and a training cannot be compared with one on timm's weights. eval() on the
#           backbone after every train(), or pos_embed_rescale=None, ends it. Sizes below are of untrained weights.
# Seen:     transformers: eval twice 0; train against eval 0.0041, 0.0013; train twice 0.0046
#           transformers, pos_embed_rescale None: eval twice 0; train against eval 0, 0; train twice 0
#           timm: eval twice 0; train against eval 0, 0; train twice 0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet torch==2.14.1 transformers==5.24.0 timm==1.0.22
"$work/env/bin/python" -W ignore - <<'PYTHON'
import sys
from collections.abc import Callable

import timm
import torch
from torch import Tensor, nn
from transformers import DINOv3ViTConfig, DINOv3ViTModel

torch.manual_seed(0)
image = torch.randn(1, 3, 64, 64)
SMALL = {"hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 3, "num_attention_heads": 3, "layerscale_value": 1.0}


@torch.no_grad()
def differences(model: nn.Module, features: Callable[[Tensor], Tensor]) -> list[float]:
    """Return eval against eval, train against eval twice, and train against train, as shares of the length."""
    model.eval()
    first, again = features(image), features(image)
    model.train()
    one, other = features(image), features(image)
    pairs = ((again, first), (one, first), (other, first), (one, other))
    return [((a - b).norm() / b.norm()).item() for a, b in pairs]


default, without = DINOv3ViTConfig(**SMALL), DINOv3ViTConfig(**SMALL, pos_embed_rescale=None)
assert default.attention_dropout == default.drop_path_rate == 0
models = {"transformers": DINOv3ViTModel(default), "transformers, pos_embed_rescale None": DINOv3ViTModel(without)}
features = {name: lambda x, model=model: model(x).last_hidden_state for name, model in models.items()}
models["timm"] = timm.create_model("vit_small_patch16_dinov3", pretrained=False, img_size=64)
for block in models["timm"].blocks:
    nn.init.ones_(block.gamma_1)
    nn.init.ones_(block.gamma_2)
features["timm"] = models["timm"].forward_features
seen = {}
for name, model in models.items():
    seen[name] = differences(model, features[name])
    still, one, other, twice = (f"{value:.2g}" for value in seen[name])
    print(f"{name}: eval twice {still}; train against eval {one}, {other}; train twice {twice}")
still, *moved = seen["transformers"]
others = [value for name in ("transformers, pos_embed_rescale None", "timm") for value in seen[name]]
sys.exit(0 if still == 0 and min(moved) > 1e-4 and not any(others) else 1)
PYTHON
