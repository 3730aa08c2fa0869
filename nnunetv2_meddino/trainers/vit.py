"""What every trainer with a pretrained DINOv3 ViT shares: which one, its weights, and the recipe of MedDINOv3."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

from nnunetv2_meddino.networks.vit import evenly_spaced_blocks
from nnunetv2_meddino.trainers.base import PluginTrainer
from nnunetv2_meddino.weights.backbones import choose_backbone
from nnunetv2_meddino.weights.load import LoadReport, load_into, read_weights

DINOV3_WEIGHTS: Mapping[str, str] = MappingProxyType(
    {
        "vitb16": "dinov3_vitb16_lvd1689m",
        "vits16": "dinov3_vits16_lvd1689m",
        "vitl16": "dinov3_vitl16_lvd1689m",
    }
)


class ViTTrainer(PluginTrainer):
    """Trainer for a network whose ``encoder`` is a ``VisionTransformer``.

    Values: (paper) MedDINOv3, Li et al. 2025, arXiv:2509.02379; (code) its released nnU-Net fork.
    """

    encoder_lr = 3e-5  # paper, code
    decoder_lr = 3e-4  # paper, code
    betas = (0.9, 0.98)  # code
    decay = 5e-2  # code

    pretrained: ClassVar[Mapping[str, str]]
    """Backbone name and the catalog weights for it, the default first; empty for random initialisation."""

    network_class: ClassVar[str]
    """Where nnU-Net finds the network."""

    multi_scale = True
    """Read the tokens of four evenly spaced blocks; otherwise of the last block alone."""

    def new_architecture(self) -> dict[str, Any]:
        """Return the network for the chosen backbone."""
        vit = choose_backbone(self.pretrained).config
        blocks = evenly_spaced_blocks(vit.depth) if self.multi_scale else (vit.depth - 1,)
        return {
            "network_class_name": self.network_class,
            "arch_kwargs": {"vit": vit.to_dict(), "blocks": list(blocks), **self.network_options()},
            "_kw_requires_import": [],
        }

    def network_options(self) -> dict[str, Any]:
        """Return the network's other arguments, as JSON values."""
        return {}

    def weights(self) -> str | None:
        """Return the weights that ``MEDDINO_WEIGHTS`` names, else this trainer's own."""
        return choose_backbone(self.pretrained).weights

    def load_encoder(self, spec: str) -> tuple[LoadReport, dict[str, Any]]:
        """Copy pretrained weights into the ViT."""
        weights = read_weights(spec)
        return load_into(self.plain_network.encoder, weights), weights.provenance
