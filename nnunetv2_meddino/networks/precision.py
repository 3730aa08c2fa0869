"""The one place that decides in which 16-bit type the networks compute."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch


def autocast_dtype(device_type: str) -> torch.dtype:
    """Return the autocast type for a device: bfloat16 where the hardware has it, float16 otherwise.

    bfloat16 has float32's range, so a fine-tuned ViT cannot overflow in it and no loss scaling is needed. nnU-Net's own
    autocast is float16 throughout.
    """
    if device_type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16
    return torch.bfloat16


def needs_loss_scaling(device_type: str) -> bool:
    """Tell whether gradients must be scaled: only where training runs in float16, so only on older GPUs."""
    return device_type == "cuda" and autocast_dtype(device_type) == torch.float16


def network_autocast(device_type: str) -> AbstractContextManager:
    """Return the autocast context for a forward pass: our type where the caller enabled autocast, none otherwise.

    nnU-Net enables autocast (as float16) around training, validation and prediction on GPUs; nesting ours inside the
    network's forward covers all three alike.
    """
    return torch.autocast(
        device_type, dtype=autocast_dtype(device_type), enabled=torch.is_autocast_enabled(device_type)
    )
