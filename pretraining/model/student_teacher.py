"""Student, EMA teacher and Gram teacher."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from nnunetv2_meddino.networks.vit import BACKBONES, ViTConfig
from pretraining.groups import Share
from pretraining.model.backbone import PretrainingViT
from pretraining.model.config import ModelConfig
from pretraining.model.heads import ProjectionHead


class StudentOutputs(NamedTuple):
    """What the losses see of the student; crop-major."""

    global_cls: Tensor
    """``(2B, D)``: class tokens of the global crops after the norm, before the head."""
    patches: Tensor
    """``(2B, P, D)``: patch tokens of the global crops after the norm, masked ones among them."""
    dino_global: Tensor
    """``(2B, K)`` logits."""
    dino_local: Tensor
    """``(LB, K)`` logits."""
    ibot: Tensor
    """``(M, K)`` logits of the masked patches."""


class TeacherOutputs(NamedTuple):
    """What the teacher says of the global crops, before the layers to the prototypes."""

    dino: Tensor
    """``(2B, bottleneck)`` unit vectors of the class tokens."""
    ibot: Tensor
    """``(M, bottleneck)`` unit vectors of the patches that are masked for the student."""


class Network(nn.Module):
    """A backbone and its two heads: the student, and the teacher."""

    def __init__(self, config: ModelConfig, vit: ViTConfig, *, teacher: bool = False) -> None:
        super().__init__()
        self.backbone = _backbone(config, vit, teacher=teacher)
        self.dino_head = ProjectionHead(vit.embed_dim, config.dino_head)
        self.ibot_head = ProjectionHead(vit.embed_dim, config.ibot_head)

    def forward(
        self,
        global_crops: Tensor,
        local_crops: Tensor,
        masks: Tensor,
        indices: Tensor,
        generator: Generator | None = None,
        share: Share | None = None,
    ) -> StudentOutputs:
        """Return the student's outputs.

        Args:
            global_crops: ``(2B, C, g, g)``.
            local_crops: ``(LB, C, l, l)``.
            masks: ``(2B, P)`` bool.
            indices: ``(M,)`` positions of masked patches in the flattened masks.
            generator: Source of what is random in training; None for nothing random.
            share: What the B slices are of their group; by default all of it.
        """
        share = share or Share.whole(len(global_crops) // 2)
        seen = self.backbone(global_crops, masks, generator=generator, share=share)
        local = self.backbone(local_crops, generator=generator, share=share, local=True)
        dino = self.dino_head(torch.cat([seen.cls, local.cls]))
        ibot = self.ibot_head(seen.patches.flatten(0, 1).index_select(0, indices))
        count = len(seen.cls)
        return StudentOutputs(seen.cls, seen.patches, dino[:count], dino[count:], ibot)

    @torch.no_grad()
    def teacher_forward(self, global_crops: Tensor, indices: Tensor) -> TeacherOutputs:
        """Return the teacher's outputs; nothing is masked for it."""
        seen = self.backbone(global_crops)
        masked = seen.patches.flatten(0, 1)[indices]
        return TeacherOutputs(self.dino_head.bottleneck(seen.cls), self.ibot_head.bottleneck(masked))


def _backbone(config: ModelConfig, vit: ViTConfig, *, teacher: bool) -> PretrainingViT:
    if teacher:
        return PretrainingViT(vit, untied_local_norm=config.untied_local_norm)
    return PretrainingViT(
        vit, drop_path=config.drop_path, rope_rescale=config.rope_rescale, untied_local_norm=config.untied_local_norm
    )


def vit_config(config: ModelConfig) -> ViTConfig:
    """Return the architecture of the backbone."""
    named = BACKBONES[config.backbone]
    own = {name: getattr(config, name) for name in ("qkv_bias", "norm_eps", "rope_dtype", "layer_scale")}
    return replace(named, **own)


class StudentTeacher(nn.Module):
    """All networks of a training. Teachers start as copies of the student, are never trained, and stay in eval mode.

    Args:
        config: The networks.
        vit: Architecture of the backbones; by default what ``config`` names.
        gram: Whether there is a Gram teacher.
    """

    def __init__(self, config: ModelConfig, vit: ViTConfig | None = None, *, gram: bool = False) -> None:
        super().__init__()
        vit = vit or vit_config(config)
        self.student = Network(config, vit)
        self.teacher = Network(config, vit, teacher=True).requires_grad_(False)
        self.gram_teacher = _backbone(config, vit, teacher=True).requires_grad_(False) if gram else None
        self.teacher.load_state_dict(self.student.state_dict())
        if self.gram_teacher is not None:
            self.gram_teacher.load_state_dict(self.student.backbone.state_dict())
        self.train()

    def train(self, mode: bool = True) -> StudentTeacher:
        """Set the student's mode; teachers are always in eval mode."""
        super().train(mode)
        self.teacher.eval()
        if self.gram_teacher is not None:
            self.gram_teacher.eval()
        return self
