"""The student's optimizer: AdamW over the parameter groups, its settings of each step, and gradient clipping."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from pretraining.optim.config import OptimConfig
from pretraining.optim.param_groups import parameter_groups, parameters_by_module
from pretraining.schedules import StepValues

FUSED_DEVICES = ("cpu", "cuda")


def build_optimizer(student: nn.Module, config: OptimConfig, device: torch.device) -> torch.optim.AdamW:
    """Return AdamW over the student. Its learning rates are 0 until ``set_step`` has been called.

    Args:
        student: ``backbone``, ``dino_head`` and ``ibot_head``, compiled and sharded already.
        config: Betas and multipliers.
        device: Where the student is; on CPU and CUDA one fused kernel updates many tensors.
    """
    groups = parameter_groups(
        student, layer_decay=config.layer_decay, patch_embed_lr_multiplier=config.patch_embed_lr_multiplier
    )
    # 1e-8 is the epsilon of every DINOv3 run
    fused = device.type in FUSED_DEVICES
    return torch.optim.AdamW(groups, lr=0.0, betas=config.betas, eps=1e-8, weight_decay=0.0, fused=fused)


def set_step(optimizer: torch.optim.Optimizer, values: StepValues) -> None:
    """Write learning rate and weight decay of a step into every group of ``build_optimizer``'s."""
    for group in optimizer.param_groups:
        lr = values.last_layer_lr if group["is_last_layer"] else values.lr
        group["lr"] = lr * group["lr_multiplier"]
        group["weight_decay"] = values.weight_decay * group["wd_multiplier"]


def clip_gradients(student: nn.Module, max_norm: float) -> dict[str, Tensor]:
    """Scale the gradients of the backbone and of each head, each by itself, down to a largest norm.

    Args:
        student: Its parameters may be sharded (FSDP2); every process must call this.
        max_norm: Largest L2 norm; ``inf`` only measures.

    Returns:
        For each part of the student its norm before clipping, of all shards: scalars on the gradients' device, so that
        nothing waits for the accelerator.
    """
    norms = {}
    for part, parameters in parameters_by_module(student).items():
        gradients = [p.grad for p in parameters.values() if p.grad is not None]
        # without foreach=True torch would go tensor by tensor over shards
        norm = get_total_norm(gradients, foreach=True)
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        clip_grads_with_norm_(parameters.values(), max_norm, norm, foreach=True)
        norms[part] = norm
    return norms
