"""Which networks are trained. Every default names its source."""

from __future__ import annotations

from dataclasses import dataclass, field

from nnunetv2_meddino.errors import ConfigurationError
from nnunetv2_meddino.networks.vit import BACKBONES

RANDOM_WEIGHTS = "none"
"""Value of ``ModelConfig.weights`` that asks for random initialisation."""


@dataclass(frozen=True)
class HeadConfig:
    """A projection head: an MLP to a unit-norm bottleneck, then a linear layer to the prototypes."""

    prototypes: int = 65536
    """Prototypes K (this and the other sizes as DINOv3's ViT-L: the heads of its 7B model are larger than a ViT-B)."""
    bottleneck: int = 256
    """Width of the bottleneck."""
    hidden: int = 2048
    """Width of the hidden layers."""
    layers: int = 3
    """Linear layers of the MLP."""

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            if getattr(self, name) < 1:
                raise ConfigurationError(f"head: {name} {getattr(self, name)} must be at least 1")


@dataclass(frozen=True)
class ModelConfig:
    """The student, of which the teachers are copies."""

    backbone: str = "vitb16"
    """Architecture: ``tiny``, ``vits16``, ``vitb16`` or ``vitl16``; that of ``weights``, where they are given."""
    weights: str = "dinov3_vitb16_lvd1689m"
    """What a first stage starts from: a catalog name, a file, a hub id, or ``none`` (random)."""
    qkv_bias: bool = False
    """Biases of queries and values; the MedDINOv3 release has none, those of the DINOv3 releases are zero."""
    norm_eps: float = 1e-5
    """LayerNorm epsilon; 1e-5 as the DINOv3 releases that training starts from."""
    rope_dtype: str = "float32"
    """Type of the rotary angles: ``float32``, or ``bfloat16``, which reproduces the MedDINOv3 release."""
    layer_scale: float = 1e-5
    """What residual branches are multiplied by at the start of a training from random weights; 1e-5 as DINOv3.

    The blocks then do next to nothing for hundreds of steps, and heads wait for them (docs/evidence.md). A small
    training starts with 1.
    """
    drop_path: float = 0.3
    """Share of samples that skip each residual branch (DINOv3's ViT-L configuration)."""
    rope_rescale: float | None = 2.0
    """Patch coordinates are multiplied or divided by up to this, drawn for each block and crop size; none: by nothing.

    2 as DINOv3's 7B configurations and releases.
    """
    untied_local_norm: bool = False
    """Whether class and register tokens of local crops have a final norm of their own, as in DINOv3's 7B; the MedDINOv3
    release has none."""
    dino_head: HeadConfig = field(default_factory=HeadConfig)
    """Head of the class token."""
    ibot_head: HeadConfig = field(default_factory=HeadConfig)
    """Head of masked patch tokens."""

    def __post_init__(self) -> None:
        if self.backbone not in BACKBONES:
            raise ConfigurationError(f"model: backbone {self.backbone!r} is none of {', '.join(BACKBONES)}")
        if not 0 <= self.drop_path < 1:
            raise ConfigurationError(f"model: drop_path {self.drop_path} must be from 0 to below 1")
        if self.rope_rescale is not None and self.rope_rescale < 1:
            raise ConfigurationError(f"model: rope_rescale {self.rope_rescale} must be at least 1, or none")
