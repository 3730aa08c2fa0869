"""Golden networks in our names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from nnunetv2_meddino.networks.vit import ViTConfig
from nnunetv2_meddino.weights.convert import to_native

KEPT = ("mask_token", "local_cls_norm.weight", "local_cls_norm.bias")
"""What pretraining needs and the plugin drops."""


def native_backbone(state: Mapping[str, Tensor], **settings: object) -> tuple[dict[str, Tensor], ViTConfig]:
    """Return the state of a reference backbone in our names, and its architecture with some settings replaced."""
    converted = to_native(state)
    own = {name: state[name] for name in KEPT if name in state}
    return converted.tensors | own, replace(converted.config, **settings)


def under(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the entries below a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
