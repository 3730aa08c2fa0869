"""MedDINOv3 and the rows of its ablation, on equal terms: they differ in the two class attributes and nothing else.

Sources of the values: (paper) MedDINOv3, Li et al. 2025, arXiv:2509.02379; (code) its released nnU-Net fork; (ours).
Number of epochs and iterations, batch composition, augmentation, loss and gradient clipping at 12 are nnU-Net's (paper,
code). The released code trains its DINOv3 rows with a ViT rate of 1e-4 and MedDINOv3 with 3e-5; here all have 3e-5, so
that rows differ only in what they are named for (ours).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

from nnunetv2_meddino.networks.vit import ViTConfig
from nnunetv2_meddino.trainers.fine_tuning import FULL
from nnunetv2_meddino.trainers.vit import DINOV3_WEIGHTS, ViTTrainer


class MedDINOv3Trainer(ViTTrainer):
    """MedDINOv3: ViT-B/16 pretrained on CT, tokens of blocks 2, 5, 8 and 11 concatenated (paper).

    ViT rate 3e-5, decoder rate 3e-4 (paper, code), AdamW with betas 0.9 and 0.98 and weight decay 5e-2 on all
    parameters, linear decay to 0 without warm-up, stochastic depth 0.2, final norm applied to every tapped block
    (code).
    Register tokens are kept (ours: the released DINOv3 rows drop them on loading, without a message).
    """

    pretrained: ClassVar[Mapping[str, str]] = MappingProxyType({"vitb16": "meddinov3_vitb16_ct3m"})

    network_class = "nnunetv2_meddino.networks.meddinov3.MedDINOv3"

    fine_tuning: ClassVar[str | None] = FULL  # paper, code

    drop_path = 0.2
    """Stochastic depth of the ViT (code)."""

    def network_options(self, backbone: ViTConfig) -> dict[str, Any]:
        """Return the blocks, stochastic depth, how tokens are aggregated (paper: concatenated) and the precision."""
        own = {"drop_path": self.drop_path, "aggregation": "concat", "precision": self.precision}
        return super().network_options(backbone) | own


class DINOv3Trainer(MedDINOv3Trainer):
    """The same network from DINOv3's natural-image weights (ablation: before CT pretraining)."""

    pretrained = DINOV3_WEIGHTS


class DINOv3PrimusTrainer(DINOv3Trainer):
    """DINOv3 weights, tokens of the last block only (ablation: before multi-scale aggregation)."""

    multi_scale = False


class DINOv3PrimusScratchTrainer(DINOv3PrimusTrainer):
    """Random weights, tokens of the last block only (ablation: the first row)."""

    pretrained: ClassVar[Mapping[str, str]] = MappingProxyType({})
