"""The projection head of DINO and iBOT."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from pretraining.model.config import HeadConfig


class ProjectionHead(nn.Module):
    """MLP to a unit-norm bottleneck, then one score for each prototype, without weight normalisation (DINOv3).

    Args:
        in_dim: Width D of the tokens.
        config: Widths, prototypes.
    """

    def __init__(self, in_dim: int, config: HeadConfig) -> None:
        super().__init__()
        widths = [in_dim, *[config.hidden] * (config.layers - 1), config.bottleneck]
        layers: list[nn.Module] = []
        for into, out in zip(widths[:-1], widths[1:], strict=True):
            layers += [nn.GELU(), nn.Linear(into, out)]
        self.mlp = nn.Sequential(*layers[1:])
        self.last_layer = nn.Linear(config.bottleneck, config.prototypes, bias=False)
        self.apply(_initialise)

    def bottleneck(self, tokens: Tensor) -> Tensor:
        """Map ``(N, D)`` to unit vectors ``(N, bottleneck)``."""
        return F.normalize(self.mlp(tokens), dim=-1, eps=1e-12)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map ``(N, D)`` to logits ``(N, K)``."""
        return self.scores(self.bottleneck(tokens))

    def scores(self, bottleneck: Tensor) -> Tensor:
        """Map unit vectors ``(N, bottleneck)`` to logits ``(N, K)``."""
        return self.last_layer(bottleneck)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
