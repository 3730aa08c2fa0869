"""The Primus decoder in token layout.

Primus (Wald et al. 2025, arXiv:2503.01835) upsamples a ViT's patch features with 2x2 stride-2 transposed convolutions,
each followed by a LayerNorm over channels and a GELU, and a 1x1 convolution to classes. Such a convolution does not
overlap, so every patch token grows into its own 16x16 pixels without seeing its neighbours: the decoder is a tree of
linear layers per token. Computed that way there is no channel-first LayerNorm and no large strided copy, and only the
class logits, the smallest tensor of all, are rearranged into an image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nnunetv2_meddino.errors import ConfigurationError

AGGREGATIONS = ("concat", "project")

NORM_EPS = 1e-6
"""Epsilon of the reference decoder's LayerNorm over channels."""

CHUNK_TOKENS = 256
"""Tokens decoded at a time without gradients: the full-resolution features then exist for a strip of the image only."""


def leaf_order(stages: int, device: torch.device | None = None) -> Tensor:
    """Return, for each pixel of a patch row by row, the index of its leaf in the tree.

    A stage appends the child index ``2 dy + dx`` to a token's path, so leaves stand in Z-order (Morton order).

    Returns:
        ``(4 ** stages,)`` int64.
    """
    order = torch.arange(4**stages, device=device).view([2, 2] * stages)
    rows = list(range(0, 2 * stages, 2))
    columns = list(range(1, 2 * stages, 2))
    return order.permute(*rows, *columns).flatten()


class TokenUpsample(nn.Module):
    """Each token becomes its four children: Linear, LayerNorm over channels, GELU.

    Equal to ``ConvTranspose2d(in, out, 2, stride=2)``, a LayerNorm over channels and an exact GELU. The bias is shared
    by the four children, as it is in the convolution.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(4 * out_channels, in_channels))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.norm = nn.LayerNorm(out_channels, eps=NORM_EPS)
        # He initialisation with slope 1e-2, as nnU-Net's; PyTorch takes a transposed convolution's outputs for its fan
        nn.init.normal_(self.weight, std=math.sqrt(2 / (1 + 1e-2**2) / (4 * out_channels)))

    def forward(self, tokens: Tensor) -> Tensor:
        """Map ``(T, in)`` to ``(4 T, out)``, the children of a token in consecutive rows."""
        dtype = tokens.dtype
        x = F.linear(tokens, self.weight.to(dtype), self.bias.to(dtype).repeat(4))
        x = x.view(-1, self.bias.numel())
        x = F.layer_norm(x, self.norm.normalized_shape, self.norm.weight.to(dtype), self.norm.bias.to(dtype), NORM_EPS)
        return F.gelu(x)


class TokenDecoder(nn.Module):
    """Decodes patch tokens of one or several blocks to class logits at full resolution.

    Under autocast the whole decoder, LayerNorm included, reads and writes the autocast type (statistics are still
    float32 inside the kernel); without autocast it computes in the tokens' type.

    Args:
        embed_dim: Width D of a token.
        num_maps: How many blocks' tokens are aggregated.
        num_classes: Classes (or regions) K of the output.
        patch_size: Side of a patch in pixels, a power of 2.
        aggregation: ``concat`` decodes the concatenated ``num_maps x D`` channels, as MedDINOv3; ``project`` first maps
            them linearly to D channels, at about a tenth of the cost.
        checkpointing: With gradients, decode in strips too and compute them again in the backward.

    Raises:
        ConfigurationError: ``aggregation`` is unknown, the patch size is no power of 2, or the width is too small.
    """

    def __init__(
        self,
        embed_dim: int,
        num_maps: int,
        num_classes: int,
        *,
        patch_size: int = 16,
        aggregation: str = "concat",
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        stages = patch_size.bit_length() - 1
        if patch_size != 2**stages:
            msg = f"The decoder doubles the resolution up to the pixel: patch size {patch_size} is no power of 2."
            raise ConfigurationError(msg)
        if aggregation not in AGGREGATIONS:
            raise ConfigurationError(f"Unknown aggregation {aggregation!r}; choose one of {', '.join(AGGREGATIONS)}.")
        width = embed_dim * num_maps
        self.project = nn.Linear(width, embed_dim) if aggregation == "project" else None
        width = embed_dim if self.project else width
        if width < 2**stages:
            raise ConfigurationError(f"{width} channels cannot be halved {stages} times; choose a wider backbone.")
        channels = [width // 2**i for i in range(stages + 1)]
        self.stages = nn.ModuleList(TokenUpsample(a, b) for a, b in zip(channels, channels[1:], strict=False))
        # nnU-Net's -pretrained_weights transfers everything but parameters whose name contains ".seg_layers."
        self.seg_layers = nn.ModuleList([nn.Linear(channels[-1], num_classes)])
        nn.init.kaiming_normal_(self.seg_layers[0].weight, a=1e-2)
        nn.init.zeros_(self.seg_layers[0].bias)
        self.patch_size = patch_size
        self.num_classes = num_classes
        self.checkpointing = checkpointing
        self.register_buffer("leaves", leaf_order(stages), persistent=False)

    def forward(self, maps: Sequence[Tensor], grid: tuple[int, int]) -> Tensor:
        """Decode tokens to logits.

        Args:
            maps: Patch tokens of each block, ``(B, h * w, D)``.
            grid: Rows h and columns w of the patch grid.

        Returns:
            ``(B, K, h * p, w * p)`` logits in the computing type.
        """
        device_type = maps[0].device.type
        autocast = torch.is_autocast_enabled(device_type)
        dtype = torch.get_autocast_dtype(device_type) if autocast else maps[0].dtype
        with torch.autocast(device_type, enabled=False):
            maps = [m.to(dtype).unflatten(1, grid) for m in maps]
            if torch.is_grad_enabled():
                if not self.checkpointing:
                    return self._decode(*maps)
                strips = [checkpoint(self._decode, *s, use_reentrant=False) for s in self._strips(maps)]
                return torch.cat(strips, dim=2)
            if torch.compiler.is_compiling():
                return self._decode(*maps)
            return self._decode_into_image(maps)

    def _strips(self, maps: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
        """Cut ``(B, h, w, D)`` maps into strips of whole token rows, about ``CHUNK_TOKENS`` tokens each."""
        batch, _, columns, _ = maps[0].shape
        rows = max(1, CHUNK_TOKENS // (batch * columns))
        return list(zip(*(m.split(rows, dim=1) for m in maps), strict=True))

    def _decode_into_image(self, maps: Sequence[Tensor]) -> Tensor:
        """Decode strip by strip, each written to its place in one output."""
        batch, rows, columns, _ = maps[0].shape
        size = self.patch_size
        logits = maps[0].new_empty(batch, self.num_classes, rows * size, columns * size)
        top = 0
        for strip in self._strips(maps):
            bottom = top + strip[0].shape[1] * size
            logits[:, :, top:bottom] = self._decode(*strip)
            top = bottom
        return logits

    def _decode(self, *maps: Tensor) -> Tensor:
        """Decode ``(B, h, w, D)`` maps to ``(B, K, h * p, w * p)`` logits."""
        batch, rows, columns, _ = maps[0].shape
        tokens = torch.cat(maps, dim=-1).flatten(0, 2)
        if self.project is not None:
            tokens = F.linear(tokens, self.project.weight.to(tokens.dtype), self.project.bias.to(tokens.dtype))
        for stage in self.stages:
            tokens = stage(tokens)
        head = self.seg_layers[0]
        logits = F.linear(tokens, head.weight.to(tokens.dtype), head.bias.to(tokens.dtype))
        size = self.patch_size
        logits = logits.view(batch * rows * columns, size * size, -1).index_select(1, self.leaves)
        logits = logits.view(batch, rows, columns, size, size, -1).permute(0, 5, 1, 3, 2, 4)
        return logits.reshape(batch, -1, rows * size, columns * size)
