"""Low-rank adapters: a frozen ViT changed by a product of two narrow matrices in every attention layer.

"LoRA", Hu et al. 2021, arXiv:2106.09685. The sum takes the place of the layer's weight (torch's parametrizations), so
whatever reads ``weight`` reads it: timm's attention with biases does, past the layer's own ``forward``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from nnunetv2_meddino.networks.vit import VisionTransformer

_ADAPTED = ".parametrizations.weight."
_BASE = f"{_ADAPTED}original"
_UPDATE = f"{_ADAPTED}0."


class LowRankUpdate(nn.Module):
    """Adds ``alpha / rank * up @ down`` to a weight (paper, 4.1); zero at first, as ``up`` is.

    Args:
        shape: Rows and columns of the weight.
        rank: Rows of ``down`` and columns of ``up``.
        alpha: What the product is multiplied with, over the rank.
    """

    def __init__(self, shape: tuple[int, int], rank: int, alpha: float) -> None:
        super().__init__()
        rows, columns = shape
        self.scale = alpha / rank
        self.down = nn.Parameter(torch.empty(rank, columns))
        self.up = nn.Parameter(torch.zeros(rows, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))  # as the authors' code; their text has a normal

    def forward(self, weight: Tensor) -> Tensor:
        """Return the sum, of the weight's shape, in its precision under autocast too: it is what a merge gives."""
        with torch.autocast(weight.device.type, enabled=False):
            return weight + self.scale * (self.up @ self.down)


def add_adapters(vit: VisionTransformer, rank: int, alpha: float) -> None:
    """Freeze a ViT and put adapters on the two linear layers of each attention: the joint qkv, and proj."""
    vit.requires_grad_(False)
    for block in vit.blocks:
        for layer in (block.attn.qkv, block.attn.proj):
            update = LowRankUpdate(tuple(layer.weight.shape), rank, alpha)
            parametrize.register_parametrization(layer, "weight", update)


def is_adapter(name: str) -> bool:
    """Tell whether a parameter of this name is an adapter's."""
    return _UPDATE in name


def base_tensors(vit: VisionTransformer) -> dict[str, Tensor]:
    """Return the tensors of a ViT under the names that they have without adapters, which are left out."""
    return {name.replace(_BASE, ".weight"): t for name, t in vit.state_dict().items() if not is_adapter(name)}


def merge_adapters(tensors: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """Return the state dict of the ViT without adapters that computes the same.

    Args:
        tensors: Of a ViT with adapters.
        alpha: Theirs.
    """
    merged = {}
    for name, tensor in tensors.items():
        if is_adapter(name):
            continue
        if name.endswith(_BASE):
            layer = name.removesuffix(_BASE)
            down, up = tensors[f"{layer}{_UPDATE}down"], tensors[f"{layer}{_UPDATE}up"]
            name, tensor = f"{layer}.weight", tensor + alpha / len(down) * (up @ down)
        merged[name] = tensor
    return merged
