"""The one place that decides in which 16-bit type the networks compute."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

PRECISIONS = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def autocast_dtype(device_type: str, precision: str | None = None) -> torch.dtype:
    """Return the autocast type for a device: ``precision``, else bfloat16 where the hardware has it, else float16.

    bfloat16 has float32's range, so a fine-tuned ViT cannot overflow in it and no loss scaling is needed. nnU-Net's own
    autocast is float16 throughout.
    """
    if precision is not None:
        return PRECISIONS[precision]
    if device_type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16
    return torch.bfloat16


def needs_loss_scaling(device_type: str, precision: str | None = None) -> bool:
    """Tell whether gradients must be scaled: where training runs in float16, by choice or on an older GPU."""
    return device_type == "cuda" and autocast_dtype(device_type, precision) == torch.float16


def network_autocast(device_type: str, precision: str | None = None) -> AbstractContextManager:
    """Return the autocast context for a forward pass: our type where the caller enabled autocast, none otherwise.

    nnU-Net enables autocast (as float16) around training, validation and prediction on GPUs; nesting ours inside the
    network's forward covers all three alike.
    """
    return torch.autocast(
        device_type, dtype=autocast_dtype(device_type, precision), enabled=torch.is_autocast_enabled(device_type)
    )
