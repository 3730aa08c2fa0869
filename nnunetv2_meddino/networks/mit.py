"""Architectures of the Mix Transformer (MiT), SegFormer's encoder, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class MiTConfig:
    """Architecture of one Mix Transformer and its head; what is not here is the same in all of them.

    Source: "SegFormer", Xie et al. 2021, arXiv:2105.15203, table 6.
    """

    hidden_sizes: tuple[int, ...]
    """Width of each of the four stages."""
    depths: tuple[int, ...]
    """Blocks of each stage."""
    decoder_dim: int
    """Width of the head: 256 in B0 and B1, 768 from B2."""
    num_heads: tuple[int, ...] = (1, 2, 5, 8)
    """Attention heads of each stage."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values; ``from_dict`` reads them back."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> MiTConfig:
        """Read what ``to_dict`` returned."""
        return cls(**{key: value if isinstance(value, int) else tuple(value) for key, value in fields.items()})


_NARROW, _WIDE = (32, 64, 160, 256), (64, 128, 320, 512)

MIT_BACKBONES = {
    "tiny": MiTConfig((16, 32, 40, 64), (1, 1, 1, 1), 64),
    "mit_b0": MiTConfig(_NARROW, (2, 2, 2, 2), 256),
    "mit_b1": MiTConfig(_WIDE, (2, 2, 2, 2), 256),
    "mit_b2": MiTConfig(_WIDE, (3, 4, 6, 3), 768),
    "mit_b3": MiTConfig(_WIDE, (3, 4, 18, 3), 768),
    "mit_b4": MiTConfig(_WIDE, (3, 8, 27, 3), 768),
    "mit_b5": MiTConfig(_WIDE, (3, 6, 40, 3), 768),
}
"""Names that ``MEDDINO_BACKBONE`` takes for SegFormer. ``tiny`` is ours, for trying things out on a CPU."""
