#!/usr/bin/env bash
# Believed: a copy.deepcopy of a module, or the average that AveragedModel keeps of it, is a module of its own: weight norm, spectral norm or
#           adapters can be merged into the copy for export, and the training goes on.
# True:     parametrizations replace a module's class, and its copies share that class. remove_parametrizations takes the property off
#           the class, so that the original has no weight any more: its next forward pass raises AttributeError, and
#           its own parametrization cannot be removed either. Merging the original breaks its copies alike.
# Versions: torch 2.14.1, Python 3.11.
# Why it matters: an average of the weights is exported while the training runs, at its best epoch for one: GANs with spectral norm, codecs
#           with weight norm, low-rank adapters. The error comes a step later, from a line that has nothing to do with it.
#           state_dict of the original is whole: save and load it into a new module, or build plain layers of the copy's weights.
# Seen:     weight norm: merged average: works, original: AttributeError, merging the original: AttributeError, its state in a new module: works
#           spectral norm: merged average: works, original: AttributeError, merging the original: AttributeError, its state in a new module: works
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet torch==2.14.1
"$work/env/bin/python" -W ignore - <<'PYTHON'
import sys

import torch
from torch.nn.utils import parametrizations, parametrize
from torch.optim.swa_utils import AveragedModel

KINDS = {"weight norm": parametrizations.weight_norm, "spectral norm": parametrizations.spectral_norm}


def outcome(action) -> str:
    """Return "works" or the name of the error."""
    try:
        action()
    except AttributeError as error:
        return type(error).__name__
    return "works"


seen = {}
for kind, parametrized in KINDS.items():
    model = torch.nn.Sequential(parametrized(torch.nn.Linear(3, 3)))
    average = AveragedModel(model)
    image = torch.ones(1, 3)
    model(image)
    parametrize.remove_parametrizations(average.module[0], "weight")
    seen[kind] = (
        outcome(lambda: average(image)),
        outcome(lambda: model(image)),
        outcome(lambda: parametrize.remove_parametrizations(model[0], "weight")),
        outcome(lambda: torch.nn.Sequential(parametrized(torch.nn.Linear(3, 3))).load_state_dict(model.state_dict())),
    )
    texts = zip(("merged average", "original", "merging the original", "its state in a new module"), seen[kind])
    print(f"{kind}: " + ", ".join(f"{what}: {found}" for what, found in texts))
sys.exit(0 if set(seen.values()) == {("works", "AttributeError", "AttributeError", "works")} else 1)
PYTHON
