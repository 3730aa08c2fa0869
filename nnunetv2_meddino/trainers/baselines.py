"""The methods that MedDINOv3 is compared with, on equal terms.

Plan, patches, batch, augmentation, loss, length, validation and prediction are those of every other row; what is a
method's own is its network, its pretrained weights and its optimizer, as its authors published them. nnU-Net itself is
the stock ``nnUNetTrainer``.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import torch

from nnunetv2_meddino.networks.mit import MiTConfig
from nnunetv2_meddino.trainers.base import BaseTrainer
from nnunetv2_meddino.trainers.lr_schedules import IterationSchedule, LRCurve, LRScheduler, polynomial
from nnunetv2_meddino.trainers.vit import DINOV3_WEIGHTS, ViTTrainer
from nnunetv2_meddino.weights.mit import MIT


class SegFormerTrainer(IterationSchedule, BaseTrainer):
    """SegFormer-B2 from ImageNet weights, with its authors' optimizer.

    Source: Xie et al. 2021, arXiv:2105.15203, and its released ADE20K configuration: AdamW at 6e-5, ten times that for
    the head, weight decay 0.01, linear decay after a linear warm-up of 1500 of 160 000 iterations (here the same share
    of the training), stochastic depth 0.1.
    """

    encoder_lr = 6e-5
    decoder_lr = 6e-4
    betas = (0.9, 0.999)
    decay = 0.01
    network_class = "nnunetv2_meddino.networks.segformer.SegFormer"
    family = MIT
    pretrained: ClassVar[Mapping[str, str]] = MappingProxyType({"mit_b2": "mit_b2_imagenet1k"})

    drop_path = 0.1
    """Stochastic depth of the encoder's last block."""

    def lr_curve(self) -> LRCurve:
        """Return the linear decay after a warm-up."""
        return polynomial(warmup=1500 / 160_000)

    def network_options(self, backbone: MiTConfig) -> dict[str, Any]:
        """Return stochastic depth."""
        return {"drop_path": self.drop_path}


class SegFormerScratchTrainer(SegFormerTrainer):
    """SegFormer as the MedDINOv3 paper's table has it: random weights, one rate of 2e-5 (its released code).

    Betas 0.9 and 0.98, weight decay 5e-2, polynomial decay of power 0.9 without warm-up. The released code's own
    variant of the encoder (another feed-forward network) is not reproduced: this is the published SegFormer-B2.
    """

    encoder_lr = 2e-5
    decoder_lr = 2e-5
    betas = (0.9, 0.98)
    decay = 5e-2
    pretrained: ClassVar[Mapping[str, str]] = MappingProxyType({})

    def lr_curve(self) -> LRCurve:
        """Return nnU-Net's polynomial decay."""
        return polynomial(0.9)


class DINOUNetTrainer(ViTTrainer):
    """DINO U-Net-B: the DINOv3 ViT frozen, adapter, projection and decoder trained.

    Source: Gao et al. 2025, arXiv:2508.20909, and its released code: nnU-Net's optimizer, SGD with Nesterov momentum
    0.99, rate 1e-2, weight decay 3e-5, polynomial decay of power 0.9.
    """

    encoder_lr = 0.0  # frozen
    decoder_lr = 1e-2
    decay = 3e-5
    pretrained = DINOV3_WEIGHTS
    network_class = "nnunetv2_meddino.networks.dino_unet.DINOUNet"

    def lr_curve(self) -> LRCurve:
        """Return nnU-Net's polynomial decay."""
        return polynomial(0.9)

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, LRScheduler]:
        """Return SGD over everything but the ViT, and its schedule."""
        trained = [p for p in self.plain_network.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(
            trained, self.initial_lr, momentum=0.99, nesterov=True, weight_decay=self.weight_decay
        )
        return optimizer, self.make_scheduler(optimizer)
