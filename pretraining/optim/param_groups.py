"""Which parameter gets which share of learning rate and weight decay.

Layer-wise decay: "BEiT", Bao et al. 2021, as the DINOv3 reference applies it. The reference's comment says that class
and register tokens are not decayed; its code decays them, and so does this.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any, NamedTuple

from torch import nn

from nnunetv2_meddino.errors import ConfigurationError
from nnunetv2_meddino.networks.vit import layer_index

BACKBONE = "backbone"
WRAPPERS = frozenset({"_orig_mod", "_checkpoint_wrapped_module", "module"})
"""Parts of parameter names that torch.compile, activation checkpointing and DDP put in."""

_UNDECAYED = ("norm", "gamma")


class Multipliers(NamedTuple):
    """What a parameter's learning rate and weight decay are multiplied with."""

    lr: float
    weight_decay: float
    is_last_layer: bool
    """Whether it is a head's last layer, which has a learning rate of its own."""


def parameters_by_module(student: nn.Module) -> dict[str, dict[str, nn.Parameter]]:
    """Return the trained parameters of each part of the student, by their names in it without those of wrappers."""
    parts: dict[str, dict[str, nn.Parameter]] = defaultdict(dict)
    for name, parameter in student.named_parameters():
        if parameter.requires_grad:
            part, *rest = (word for word in name.split(".") if word not in WRAPPERS)
            parts[part][".".join(rest)] = parameter
    return dict(parts)


def parameter_groups(
    student: nn.Module, *, layer_decay: float, patch_embed_lr_multiplier: float
) -> list[dict[str, Any]]:
    """Return the student's parameters in as few groups as their multipliers allow, each part's apart.

    Args:
        student: Has a ``backbone`` with timm's names of a ViT; everything else in it is a head.
        layer_decay: The multiplier of learning rates shrinks by it from the final norm over the blocks to the tokens.
        patch_embed_lr_multiplier: Of the patch embedding, on top.

    Returns:
        Groups for an optimizer with the keys ``params``, ``lr_multiplier``, ``wd_multiplier`` and ``is_last_layer``.

    Raises:
        ConfigurationError: The student has no backbone with blocks.
    """
    parts = parameters_by_module(student)
    num_blocks = _num_blocks(parts.get(BACKBONE, {}))
    groups: dict[tuple[str, Multipliers], list[nn.Parameter]] = defaultdict(list)
    for part, parameters in parts.items():
        for name, parameter in parameters.items():
            lr = 1.0
            if part == BACKBONE:
                lr = layer_decay ** (num_blocks + 1 - layer_index(name, num_blocks))
                lr *= patch_embed_lr_multiplier if name.startswith("patch_embed") else 1
            groups[part, Multipliers(lr, _weight_decay(name), "last_layer" in name)].append(parameter)
    return [
        {
            "params": parameters,
            "lr_multiplier": multipliers.lr,
            "wd_multiplier": multipliers.weight_decay,
            "is_last_layer": multipliers.is_last_layer,
        }
        for (_, multipliers), parameters in groups.items()
    ]


def _num_blocks(backbone: dict[str, nn.Parameter]) -> int:
    blocks = {name.split(".")[1] for name in backbone if name.startswith("blocks.")}
    if not blocks:
        msg = f"The student has no parameters named {BACKBONE}.blocks.*; give the module that holds backbone and heads."
        raise ConfigurationError(msg)
    return len(blocks)


def _weight_decay(name: str) -> float:
    return 0.0 if name.endswith("bias") or any(word in name for word in _UNDECAYED) else 1.0
