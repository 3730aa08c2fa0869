"""ViT-Adapter: a small convolutional pyramid that reads a frozen ViT's features through deformable attention.

Papers: "Vision Transformer Adapter for Dense Predictions", Chen et al. 2023, arXiv:2205.08534 (the modules);
"Deformable DETR", Zhu et al. 2021, arXiv:2010.04159 (the attention); "DINOv3", Simeoni et al. 2025, arXiv:2508.10104
(the ViT stays frozen, so nothing is injected into it and only the extractors remain). The sampling is
``grid_sample``: no compiled extension is needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from nnunetv2_meddino.networks.layers import stem_input_channels

SPATIAL_WIDTH = 64
"""Channels of the first stage of the spatial prior (ViT-Adapter)."""
HEADS, POINTS = 16, 4
"""Heads of the deformable attention and the points each samples (ViT-Adapter of DINOv3)."""
VALUE_RATIO, FFN_RATIO = 0.5, 0.25
"""Width of the attention's values and of the feed-forward network, relative to the tokens (ViT-Adapter)."""
DROP_PATH = 0.3
"""Stochastic depth of the feed-forward networks (ViT-Adapter of DINOv3)."""
PYRAMID = (8, 16, 32)
"""Strides in pixels of the three maps that query the ViT."""

Grid = tuple[int, int]


class DeformableAttention(nn.Module):
    """Attention of each query to a few points around it, at offsets that the query itself predicts.

    Args:
        dim: Width D of queries and features.
        heads: Attention heads.
        points: Points that each head samples.
        value_ratio: Width of the values relative to D.
    """

    def __init__(self, dim: int, heads: int = HEADS, points: int = POINTS, value_ratio: float = VALUE_RATIO) -> None:
        super().__init__()
        self.heads, self.points = heads, points
        values = int(dim * value_ratio)
        self.sampling_offsets = nn.Linear(dim, heads * points * 2)
        self.attention_weights = nn.Linear(dim, heads * points)
        self.value_proj = nn.Linear(dim, values)
        self.output_proj = nn.Linear(values, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start with equal weights, point k of each head k steps away in the head's own direction (paper)."""
        angles = torch.arange(self.heads) * (2 * math.pi / self.heads)
        directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
        directions = directions / directions.abs().amax(dim=-1, keepdim=True)
        steps = directions[:, None, :] * torch.arange(1, self.points + 1)[None, :, None]
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(steps.flatten())
        for parameter in (self.sampling_offsets.weight, *self.attention_weights.parameters()):
            nn.init.zeros_(parameter)
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, queries: Tensor, reference_points: Tensor, features: Tensor, grid: Grid) -> Tensor:
        """Return what the queries read.

        Args:
            queries: ``(B, Q, D)``.
            reference_points: ``(Q, 2)``, where each query looks: x and y as fractions of the feature map.
            features: ``(B, h * w, D)``, row by row.
            grid: H and w.

        Returns:
            ``(B, Q, D)``. Outside the feature map there are zeros.
        """
        batch, count, _ = queries.shape
        height, width = grid
        values = self.value_proj(features).transpose(1, 2).reshape(batch * self.heads, -1, height, width)
        shape = (batch, count, self.heads, self.points)
        # positions need float32: half precision would move a point by whole pixels of a large image
        offsets = self.sampling_offsets(queries).float().view(*shape, 2)
        # not over a tensor of both: it would be a constant of the size in what torch.export traces
        offsets = torch.stack([offsets[..., 0] / width, offsets[..., 1] / height], dim=-1)
        positions = 2 * (reference_points[:, None, None, :] + offsets) - 1
        positions = positions.permute(0, 2, 1, 3, 4).flatten(0, 1)  # (B * heads, Q, points, 2)
        sampled = F.grid_sample(values.float(), positions, align_corners=False)  # (B * heads, d, Q, points)
        weights = self.attention_weights(queries).view(shape).float().softmax(dim=-1)
        weights = weights.transpose(1, 2).flatten(0, 1)  # (B * heads, Q, points)
        read = torch.einsum("bdqp,bqp->bdq", sampled, weights)
        read = read.reshape(batch, -1, count).transpose(1, 2)
        return self.output_proj(read.to(queries.dtype))


def pixel_centres(grids: Sequence[Grid], device: torch.device) -> Tensor:
    """Return x and y of every pixel centre as fractions of its map, map after map, row by row: ``(sum h * w, 2)``."""
    centres = []
    for height, width in grids:
        y = (torch.arange(height, device=device) + 0.5) / height
        x = (torch.arange(width, device=device) + 0.5) / width
        centres.append(torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)], dim=-1).flatten(0, 1))
    return torch.cat(centres)


class PyramidFeedForward(nn.Module):
    """Feed-forward network with a depth-wise convolution over each map of the pyramid (ViT-Adapter)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = int(dim * FFN_RATIO)
        self.fc1 = nn.Linear(dim, hidden)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, tokens: Tensor, grids: Sequence[Grid]) -> Tensor:
        """Map the tokens of all maps, ``(B, sum h * w, D)``, to tokens of the same shape."""
        parts = self.fc1(tokens).split([h * w for h, w in grids], dim=1)
        maps = [self.depthwise(to_map(part, grid)) for part, grid in zip(parts, grids, strict=True)]
        return self.fc2(self.act(torch.cat([to_tokens(m) for m in maps], dim=1)))


class Extractor(nn.Module):
    """One reading of the ViT by the pyramid: deformable attention, then the feed-forward network."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.query_norm = nn.LayerNorm(dim, eps=1e-6)
        self.feature_norm = nn.LayerNorm(dim, eps=1e-6)
        self.attention = DeformableAttention(dim)
        self.ffn_norm = nn.LayerNorm(dim, eps=1e-6)
        self.ffn = PyramidFeedForward(dim)
        self.drop_path = DropPath(DROP_PATH)

    def forward(
        self, tokens: Tensor, reference_points: Tensor, grids: Sequence[Grid], features: Tensor, grid: Grid
    ) -> Tensor:
        """Return the tokens ``(B, sum h * w, D)`` after reading the ViT's ``features`` ``(B, N, D)`` on ``grid``."""
        tokens = tokens + self.attention(self.query_norm(tokens), reference_points, self.feature_norm(features), grid)
        return tokens + self.drop_path(self.ffn(self.ffn_norm(tokens), grids))


class SpatialPrior(nn.Module):
    """Convolutions that see the image itself, at 1/4, 1/8, 1/16 and 1/32 of its size (ViT-Adapter)."""

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__()
        width = SPATIAL_WIDTH
        self.stem = nn.Sequential(
            *_conv_norm_act(in_channels, width, stride=2),
            *_conv_norm_act(width, width),
            *_conv_norm_act(width, width),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        widths = (width, 2 * width, 4 * width, 4 * width)
        self.stages = nn.ModuleList(
            nn.Sequential(*_conv_norm_act(before, after, stride=2))
            for before, after in zip(widths[:-1], widths[1:], strict=True)
        )
        self.projections = nn.ModuleList(nn.Conv2d(w, dim, 1) for w in widths)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Map ``(B, C, H, W)`` to four maps of D channels."""
        maps = [self.stem(image)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return [project(m) for project, m in zip(self.projections, maps, strict=True)]


class ViTAdapter(nn.Module):
    """Four feature maps of D channels from a frozen ViT and the image.

    Args:
        dim: Width D of the ViT.
        in_channels: Channels of the images; one is repeated to three, as for the ViT.
        readings: Blocks of the ViT that are read, one after the other; the last is read three times (ViT-Adapter).
    """

    def __init__(self, dim: int, in_channels: int, readings: int) -> None:
        super().__init__()
        self.stem_channels = stem_input_channels(in_channels)
        self.level_embedding = nn.Parameter(torch.empty(len(PYRAMID), dim))
        self.spatial_prior = SpatialPrior(self.stem_channels, dim)
        self.read_blocks = (*range(readings), readings - 1, readings - 1)
        self.extractors = nn.ModuleList(Extractor(dim) for _ in self.read_blocks)
        self.up = nn.ConvTranspose2d(dim, dim, 2, stride=2)
        self.norms = nn.ModuleList(nn.BatchNorm2d(dim) for _ in range(1 + len(PYRAMID)))
        self.apply(_init)
        nn.init.normal_(self.level_embedding)

    def forward(self, image: Tensor, features: Sequence[Tensor]) -> list[Tensor]:
        """Return maps of D channels at 1/4, 1/8, 1/16 and 1/32 of the image's size.

        Args:
            image: ``(B, C, H, W)``; H and W multiples of 32.
            features: Normed maps of the ViT's blocks, shallow first: each ``(B, D, H / 16, W / 16)``.
        """
        finest, *pyramid = self.spatial_prior(image.expand(-1, self.stem_channels, -1, -1))
        grids: list[Grid] = [(m.shape[2], m.shape[3]) for m in pyramid]
        parts = [to_tokens(m) + e for m, e in zip(pyramid, self.level_embedding, strict=True)]
        tokens = torch.cat(parts, dim=1)
        reference_points = pixel_centres(grids, image.device)
        for extractor, block in zip(self.extractors, self.read_blocks, strict=True):
            grid = (features[block].shape[2], features[block].shape[3])
            tokens = extractor(tokens, reference_points, grids, to_tokens(features[block]), grid)
        parts = tokens.split([h * w for h, w in grids], dim=1)
        pyramid = [to_map(part, grid) for part, grid in zip(parts, grids, strict=True)]
        maps = [finest + self.up(pyramid[0]), *pyramid]
        resized = [
            F.interpolate(f, size=m.shape[2:], mode="bilinear", align_corners=False)
            for f, m in zip(features, maps, strict=True)
        ]
        return [norm(m + f) for norm, m, f in zip(self.norms, maps, resized, strict=True)]


def to_map(tokens: Tensor, grid: Grid) -> Tensor:
    """Turn ``(B, h * w, D)`` into ``(B, D, h, w)``."""
    return tokens.transpose(1, 2).unflatten(2, grid)


def to_tokens(feature_map: Tensor) -> Tensor:
    """Turn ``(B, D, h, w)`` into ``(B, h * w, D)``."""
    return feature_map.flatten(2).transpose(1, 2)


def _conv_norm_act(before: int, after: int, stride: int = 1) -> tuple[nn.Module, ...]:
    return nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()


def _init(module: nn.Module) -> None:
    """Initialise as ViT-Adapter: convolutions by fan-out, linear layers with deviation 0.02, attention its own way."""
    if isinstance(module, DeformableAttention):
        module.reset_parameters()
    elif isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
