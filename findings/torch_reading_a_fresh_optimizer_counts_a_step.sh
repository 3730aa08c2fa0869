#!/usr/bin/env bash
# Believed: get_state_dict and get_optimizer_state_dict (torch.distributed.checkpoint.state_dict) read; a training that saves a checkpoint
#           before its first step goes on as one that does not.
# True:     of an optimizer without state yet they make it by a step with zero gradients, and leave it. Adam and AdamW then count one
#           step too many, and correct their averages by it: the first update is 0.74 of the learning rate, and all that
#           follows differs. SGD with dampening scales its first gradient down.
# Versions: torch 2.14.1, Python 3.11.
# Why it matters: a checkpoint of step 0, or of a training that is stopped as it begins, is common in pretraining, and so is a dry run that
#           saves. Two trainings of one seed differ, resumed and whole ones are not the same, and the cause is sought in the
#           data. No process group is needed: plain modules are struck as those of FSDP.
# Seen:     AdamW: the first step goes 0.1000, 0.0744 where the state was read before
#           Adam with amsgrad: the first step goes 0.1000, 0.0744 where the state was read before
#           SGD with dampening: the first step goes 0.1000, 0.0500 where the state was read before
#           SGD: the first step goes 0.1000, 0.1000 where the state was read before
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet torch==2.14.1
"$work/env/bin/python" -W ignore - <<'PYTHON'
import sys

import torch
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

KINDS = {
    "AdamW": lambda weights: torch.optim.AdamW(weights, lr=0.1, weight_decay=0.0),
    "Adam with amsgrad": lambda weights: torch.optim.Adam(weights, lr=0.1, amsgrad=True),
    "SGD with dampening": lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9, dampening=0.5),
    "SGD": lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9),
}


def first_step(kind: str, read: bool) -> float:
    """Train a model of one weight for a step; return how far it went."""
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(model.weight)
    optimizer = KINDS[kind](model.parameters())
    if read:
        get_optimizer_state_dict(model, optimizer)
    model(torch.ones(1, 1)).sum().backward()
    optimizer.step()
    return 1 - model.weight.item()


moved = {}
for kind in KINDS:
    moved[kind] = first_step(kind, read=False), first_step(kind, read=True)
    print(f"{kind}: the first step goes {moved[kind][0]:.4f}, {moved[kind][1]:.4f} where the state was read before")
differ = {kind for kind, (plain, after_reading) in moved.items() if abs(plain - after_reading) > 1e-3}
sys.exit(0 if differ == set(KINDS) - {"SGD"} else 1)
PYTHON
