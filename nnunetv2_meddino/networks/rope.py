"""Rotary position embedding of DINOv3 (axial, on patch tokens, half-split rotation)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

ROPE_BASE = 100.0
"""Base of the rotary periods in every released DINOv3."""


def rope_table(
    height: int,
    width: int,
    head_dim: int,
    *,
    scales: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> Tensor:
    """Return sine and cosine of every patch's rotation angles.

    Patch centres ``(i + 0.5) / height`` and ``(j + 0.5) / width`` are mapped to ``[-1, 1]``; an angle is
    ``2 pi x coordinate / period`` with periods ``ROPE_BASE ** (2k / (head_dim / 2))``, ``k < head_dim / 4``. A token's
    angles are those of its row, then those of its column, the whole repeated once (DINOv3, section on RoPE; the
    order of operations is the reference's, so that float32 agrees bit for bit and bfloat16 to one unit).

    Args:
        height: Rows of the patch grid.
        width: Columns of the patch grid.
        head_dim: Width of one attention head, a multiple of 4.
        scales: ``(S,)``; one table for each, its coordinates multiplied by it (an augmentation of pretraining).
        dtype: Every step is computed in this type; the released MedDINOv3 used bfloat16.
        device: Where the table is made.

    Returns:
        ``(height * width, 2 * head_dim)``: the sines, then the cosines. With scales ``(S, height * width, ...)``.
    """
    factory = {"dtype": dtype, "device": device}
    periods = ROPE_BASE ** (2 * torch.arange(head_dim // 4, **factory) / (head_dim // 2))
    rows = torch.arange(0.5, height, **factory) / height
    columns = torch.arange(0.5, width, **factory) / width
    coordinates = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).flatten(0, 1)
    coordinates = 2.0 * coordinates - 1.0
    if scales is not None:
        coordinates = coordinates * scales.to(device, dtype)[:, None, None]
    angles = (2 * math.pi * coordinates[..., None] / periods).flatten(-2)
    angles = torch.cat([angles, angles], dim=-1)
    return torch.cat([torch.sin(angles), torch.cos(angles)], dim=-1)


class RotationDtype(nn.Module):
    """Rounds queries and keys to the type in which they are rotated.

    It takes the place of timm's (absent) query and key norm, which is the last thing that happens before the
    rotation. The reference rounds all tokens, registers included, and so does this.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` in the rotation's type."""
        return x.to(self.dtype)
