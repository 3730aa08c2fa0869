"""A DINOv3 training step as the papers define it, with nothing done to make it fast: what ours is compared with.

One forward pass for each crop, stochastic depth that computes every sample and multiplies by zero (timm's DropPath),
Sinkhorn-Knopp that divides the whole assignment matrix again and again, cross-entropies and similarity matrices of all
rows at once, AdamW and moving average one parameter after the other. From DINO (Caron et al. 2021), iBOT (Zhou et al.
2022), KoLeo (Sablayrolles et al. 2019), SwAV (Caron et al. 2020) and DINOv3 (Simeoni et al. 2025). Backbone and heads
have the names of ours, so that they take its weights.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_meddino.networks.vit import VisionTransformer, ViTConfig
from pretraining.config import RunConfig
from pretraining.losses import LossConfig
from pretraining.model.config import ModelConfig
from pretraining.model.heads import ProjectionHead
from pretraining.model.student_teacher import StudentTeacher
from pretraining.optim import set_step
from pretraining.optim.param_groups import parameter_groups
from pretraining.schedules import StepValues
from pretraining.views.pipeline import Views


class PlainViT(VisionTransformer):
    """timm's ViT with masked patches, and positions that are rescaled anew for every block in training."""

    def __init__(self, vit: ViTConfig, drop_path: float = 0.0, rope_rescale: float | None = None) -> None:
        super().__init__(vit, in_channels=1, drop_path=drop_path)
        self.mask_token = nn.Parameter(torch.zeros(1, vit.embed_dim))
        self.rope_rescale = rope_rescale

    def forward(self, image: Tensor, masks: Tensor | None = None) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Return class tokens ``(B, D)`` and patch tokens ``(B, P, D)`` after the norm."""
        rows, columns = (side // self.config.patch_size for side in image.shape[-2:])
        tokens = self.embed(image)
        if masks is not None:
            tokens = torch.where(masks[..., None], self.mask_token.to(tokens.dtype), tokens)
        tokens = self.with_prefix(tokens)
        table = self.rotation((rows, columns), image.device)
        for block in self.blocks:
            if self.rope_rescale is not None:
                scale = self.rope_rescale ** (2 * torch.rand(1, device=image.device) - 1)
                table = self.rotation((rows, columns), image.device, scale)[0]
            tokens = block(tokens, rope=table)
        tokens = self.norm(tokens)
        return tokens[:, 0], tokens[:, self.num_prefix_tokens :]


class PlainNetwork(nn.Module):
    """A backbone and its two heads."""

    def __init__(self, vit: ViTConfig, config: ModelConfig, *, student: bool) -> None:
        super().__init__()
        random = (config.drop_path, config.rope_rescale) if student else ()
        self.backbone = PlainViT(vit, *random)
        self.dino_head = ProjectionHead(vit.embed_dim, config.dino_head)
        self.ibot_head = ProjectionHead(vit.embed_dim, config.ibot_head)


class PlainStep:
    """Takes views and changes the weights, which begin as those of ``model``."""

    def __init__(self, model: StudentTeacher, config: RunConfig, autocast: torch.dtype | None) -> None:
        vit, device = model.student.backbone.config, model.student.backbone.mask_token.device
        self.losses, self.clip_norm, self.autocast = config.losses, config.optim.clip_norm, autocast
        self.student = PlainNetwork(vit, config.model, student=True)
        self.teacher = PlainNetwork(vit, config.model, student=False)
        self.student.load_state_dict(model.student.state_dict())
        self.teacher.load_state_dict(model.teacher.state_dict())
        self.student.to(device).train()
        self.teacher.to(device).eval()
        self.gram_teacher = None
        if model.gram_teacher is not None:
            self.gram_teacher = PlainViT(vit)
            self.gram_teacher.load_state_dict(model.gram_teacher.state_dict())
            self.gram_teacher.to(device).eval()
        optim = config.optim
        groups = parameter_groups(
            self.student, layer_decay=optim.layer_decay, patch_embed_lr_multiplier=optim.patch_embed_lr_multiplier
        )
        self.optimizer = torch.optim.AdamW(
            groups, lr=0.0, betas=optim.betas, weight_decay=0.0, foreach=False, fused=False
        )

    def __call__(self, views: Views, values: StepValues) -> dict[str, Tensor]:
        """Return the objective, its terms, and the norms of the gradients before clipping."""
        terms = self._terms(views, values.teacher_temperature)
        total = _total(terms, views, self.losses, values)
        total.backward()
        norms = {
            name: nn.utils.clip_grad_norm_(part.parameters(), self.clip_norm, foreach=False)
            for name, part in self.student.named_children()
        }
        found = {name: term.detach() for name, term in {"total": total, **terms, **norms}.items()}
        if all(torch.isfinite(value) for value in found.values()):
            set_step(self.optimizer, values)
            self.optimizer.step()
            with torch.no_grad():
                for old, new in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                    old.mul_(values.momentum).add_(new, alpha=1 - values.momentum)
        self.optimizer.zero_grad()
        return found

    def _terms(self, views: Views, temperature: float) -> dict[str, Tensor]:
        batch = len(views.global_crops) // 2
        crops, masks = views.global_crops.split(batch), views.masks.masks.split(batch)
        device_type = views.global_crops.device.type
        with nullcontext() if self.autocast is None else torch.autocast(device_type, self.autocast):
            with torch.no_grad():
                taught = [self.teacher.backbone(crop) for crop in crops]
                their_cls = [self.teacher.dino_head(cls) for cls, _ in taught]
                their_patches = [self.teacher.ibot_head(x[mask]) for (_, x), mask in zip(taught, masks, strict=True)]
            seen = [self.student.backbone(crop, mask) for crop, mask in zip(crops, masks, strict=True)]
            global_ = [self.student.dino_head(cls) for cls, _ in seen]
            local = [self.student.dino_head(self.student.backbone(crop)[0]) for crop in views.local_crops.split(batch)]
            patches = [self.student.ibot_head(x[mask]) for (_, x), mask in zip(seen, masks, strict=True)]
            gram = None
            if self.gram_teacher is not None and views.gram_crops is not None:
                with torch.no_grad():
                    gram = torch.cat([self.gram_teacher(crop)[1] for crop in views.gram_crops.split(batch)])
        rounds, ours = self.losses.sinkhorn_iterations, self.losses.student_temperature
        targets = sinkhorn(torch.cat(their_cls), temperature, rounds).split(batch)
        patch_targets = sinkhorn(torch.cat(their_patches), temperature, rounds)
        pairs = [cross_entropy(s, t, ours).mean() for s, t in product(local, targets)]
        crossed = [cross_entropy(s, t, ours).mean() for s, t in zip(global_, reversed(targets), strict=True)]
        of_patches = cross_entropy(torch.cat(patches), patch_targets, ours)
        terms = {
            "dino_local": torch.stack(pairs).mean(),
            "dino_global": torch.stack(crossed).mean(),
            "koleo": torch.stack([koleo(cls) for cls, _ in seen]).mean(),
            "ibot": (of_patches * views.masks.weights).sum() / (2 * batch),
        }
        return terms if gram is None else terms | {"gram": gram_difference(torch.cat([x for _, x in seen]), gram)}


def _total(terms: dict[str, Tensor], views: Views, losses: LossConfig, values: StepValues) -> Tensor:
    """Weight the terms; each pair of crops counts alike but for the weight of the local ones."""
    local_pairs = 2 * 2 * len(views.local_crops) // len(views.global_crops)
    dino = local_pairs * values.local_weight * terms["dino_local"] + 2 * terms["dino_global"]
    total = losses.dino_weight * dino / (local_pairs + 2) + losses.ibot_weight * terms["ibot"]
    total = total + losses.koleo_weight * 2 * terms["koleo"]
    return total + values.gram_weight * terms["gram"] if "gram" in terms else total


def sinkhorn(logits: Tensor, temperature: float, iterations: int) -> Tensor:
    """Divide prototypes, then samples, by their sums, in turn."""
    q = torch.exp((logits.float() - logits.max()) / temperature).T  # less the largest: nothing overflows
    prototypes, samples = q.shape
    q = q / q.sum()
    for _ in range(iterations):
        q = q / q.sum(1, keepdim=True) / prototypes
        q = q / q.sum(0, keepdim=True) / samples
    return (q * samples).T


def cross_entropy(logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Return the cross-entropy of each row ``(N,)``."""
    return -(targets * F.log_softmax(logits.float() / temperature, dim=-1)).sum(-1)


def koleo(tokens: Tensor) -> Tensor:
    """Return minus the mean logarithm of the distance to the nearest neighbour; 1e-8 is where the reference has it."""
    tokens = F.normalize(tokens.float(), dim=-1)
    with torch.no_grad():
        neighbours = torch.cdist(tokens, tokens).fill_diagonal_(math.inf).argmin(1)
    return -((tokens - tokens[neighbours] + 1e-8).norm(dim=-1) + 1e-8).log().mean()


def gram_difference(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared difference of cosine similarities, the teacher's grid resized to the student's."""
    old, new = math.isqrt(teacher.shape[1]), math.isqrt(student.shape[1])
    grid = teacher.float().transpose(1, 2).unflatten(2, (old, old))
    resized = F.interpolate(grid, (new, new), mode="bicubic").flatten(2).transpose(1, 2)
    ours, theirs = F.normalize(student.float(), dim=-1), F.normalize(resized, dim=-1)
    return F.mse_loss(ours @ ours.mT, theirs @ theirs.mT)
