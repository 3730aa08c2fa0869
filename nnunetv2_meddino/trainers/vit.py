"""What every trainer with a pretrained DINOv3 ViT shares: which one, its weights, and the recipe of MedDINOv3."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from nnunetv2_meddino.networks.vit import ViTConfig, evenly_spaced_blocks, layer_index
from nnunetv2_meddino.trainers.base import BaseTrainer
from nnunetv2_meddino.trainers.fine_tuning import LAYER_DECAY
from nnunetv2_meddino.weights.backbones import VIT

DINOV3_WEIGHTS: Mapping[str, str] = MappingProxyType(
    {
        "vitb16": "dinov3_vitb16_lvd1689m",
        "vits16": "dinov3_vits16_lvd1689m",
        "vitl16": "dinov3_vitl16_lvd1689m",
    }
)


class ViTTrainer(BaseTrainer):
    """Trainer for a network whose ``encoder`` is a ``VisionTransformer``.

    Values: (paper) MedDINOv3, Li et al. 2025, arXiv:2509.02379; (code) its released nnU-Net fork.
    """

    encoder_lr = 3e-5  # paper, code
    decoder_lr = 3e-4  # paper, code
    betas = (0.9, 0.98)  # code
    decay = 5e-2  # code

    family = VIT

    multi_scale = True
    """Read the tokens of four evenly spaced blocks; otherwise of the last block alone."""

    def network_options(self, backbone: ViTConfig) -> dict[str, Any]:
        """Return the blocks whose tokens the network reads."""
        depth = backbone.depth
        return {"blocks": list(evenly_spaced_blocks(depth) if self.multi_scale else (depth - 1,))}

    def encoder_lr_scale(self, name: str) -> float:
        """Return 1, or with layer-wise decay that of a parameter's layer: 1 for the final norm, least for the stem."""
        chosen = self.chosen_fine_tuning()
        if chosen["name"] != LAYER_DECAY:
            return 1.0
        depth = self.plain_network.encoder.config.depth
        return chosen["decay"] ** (depth + 1 - layer_index(name, depth))
