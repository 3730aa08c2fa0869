#!/usr/bin/env bash
# Believed: what MultiheadAttention returns for a query that may attend to no key is NaN, or, since the softmax of such rows was made safe, 0; need_weights
#           only says whether the weights are returned as well.
# True:     with need_weights=True, the default, the row is NaN and one such query makes the gradient of every weight NaN; with need_weights=False it
#           is the bias of the output and all gradients are finite; and with a mask of the smallest number for -inf, as many codes write it, it is the mean of
#           all values, those of forbidden keys. Other rows are the same in all three.
# Versions: torch 2.14.1, numpy 2.4.6, Python 3.11; CPU.
# Why it matters: decoders that attend within predicted masks (Mask2Former and its medical kin), windows over padded slices, and batches of volumes of different
#           numbers of slices all make such rows. To look at the attention of a network that trains well turns it to NaN.
# Seen:     need_weights=True: [nan, nan, nan], gradients NaN
#           need_weights=False: [0.5, 0.5, 0.5], gradients finite
#           smallest number for -inf: [0.736, 0.676, 0.699], gradients finite
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet torch==2.14.1 numpy==2.4.6
"$work/env/bin/python" -W ignore - <<'PYTHON'
import sys

import torch

torch.manual_seed(0)
tokens = torch.randn(1, 4, 8)
attention = torch.nn.MultiheadAttention(8, 2, batch_first=True)
torch.nn.init.constant_(attention.out_proj.bias, 0.5)
forbidden = torch.zeros(4, 4, dtype=torch.bool)
forbidden[1] = True
smallest = torch.zeros(4, 4).masked_fill(forbidden, torch.finfo(torch.float32).min)


def rows(mask: torch.Tensor, need_weights: bool) -> tuple[torch.Tensor, torch.Tensor, bool]:
    """Return the row of the query without keys, the other rows, and whether all gradients are finite."""
    attention.zero_grad()
    out = attention(tokens, tokens, tokens, attn_mask=mask, need_weights=need_weights)[0]
    out.sum().backward()
    finite = all(parameter.grad.isfinite().all() for parameter in attention.parameters())
    return out[0, 1].detach(), out[0, [0, 2, 3]].detach(), finite


found = {
    "need_weights=True": rows(forbidden, True),
    "need_weights=False": rows(forbidden, False),
    "smallest number for -inf": rows(smallest, False),
}
for name, (row, _, finite) in found.items():
    print(f"{name}: {[round(value, 3) for value in row[:3].tolist()]}, gradients {'finite' if finite else 'NaN'}")
values = torch.nn.functional.linear(tokens, attention.in_proj_weight[16:], attention.in_proj_bias[16:])
mean_of_all = attention.out_proj(values.mean(dim=1))[0]
(weights, *_), (none, *_), (mean, *_) = found.values()
others = [other for _, other, _ in found.values()]
expected = [
    weights.isnan().all() and not found["need_weights=True"][2],
    torch.equal(none, attention.out_proj.bias) and found["need_weights=False"][2],
    torch.allclose(mean, mean_of_all, atol=1e-6),
    all(torch.allclose(other, others[0], atol=1e-6) for other in others),
]
sys.exit(0 if all(expected) else 1)
PYTHON
