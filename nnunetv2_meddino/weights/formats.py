"""The layouts in which DINOv3 weights are published, as tables from their names to ours.

In a table ``{n}`` stands for a block's number and ``{p}`` for ``weight`` or ``bias``. The names on the right are those
of our ``VisionTransformer``, which are timm's. Sources: the state dicts of Meta's ``DinoVisionTransformer``, of timm's
``Eva`` and of ``DINOv3ViTModel`` in transformers 4.56 and 5.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from torch import Tensor

from nnunetv2_meddino.errors import WeightsError

_TIMM = {
    name: name
    for name in (
        *("cls_token", "reg_token", "patch_embed.proj.{p}", "norm.{p}", "cls_norm.{p}"),
        *("blocks.{n}.norm1.{p}", "blocks.{n}.norm2.{p}", "blocks.{n}.gamma_1", "blocks.{n}.gamma_2"),
        *("blocks.{n}.attn.qkv.weight", "blocks.{n}.attn.q_bias", "blocks.{n}.attn.k_bias", "blocks.{n}.attn.v_bias"),
        *("blocks.{n}.attn.proj.{p}", "blocks.{n}.mlp.fc1.{p}", "blocks.{n}.mlp.fc2.{p}"),
        *("blocks.{n}.mlp.fc1_g.{p}", "blocks.{n}.mlp.fc1_x.{p}"),
    )
}
_META = {
    "cls_token": "cls_token",
    "storage_tokens": "reg_token",
    "patch_embed.proj.{p}": "patch_embed.proj.{p}",
    "blocks.{n}.norm1.{p}": "blocks.{n}.norm1.{p}",
    "blocks.{n}.attn.qkv.weight": "blocks.{n}.attn.qkv.weight",
    "blocks.{n}.attn.qkv.bias": "blocks.{n}.attn.qkv.bias",  # joint; convert splits it into q_bias, k_bias, v_bias
    "blocks.{n}.attn.qkv.bias_mask": "blocks.{n}.attn.qkv.bias_mask",  # convert multiplies it into the bias
    "blocks.{n}.attn.proj.{p}": "blocks.{n}.attn.proj.{p}",
    "blocks.{n}.ls1.gamma": "blocks.{n}.gamma_1",
    "blocks.{n}.norm2.{p}": "blocks.{n}.norm2.{p}",
    "blocks.{n}.mlp.fc1.{p}": "blocks.{n}.mlp.fc1.{p}",
    "blocks.{n}.mlp.fc2.{p}": "blocks.{n}.mlp.fc2.{p}",
    "blocks.{n}.mlp.w1.{p}": "blocks.{n}.mlp.fc1_g.{p}",  # SwiGLU: w3(silu(w1 x) * w2 x)
    "blocks.{n}.mlp.w2.{p}": "blocks.{n}.mlp.fc1_x.{p}",
    "blocks.{n}.mlp.w3.{p}": "blocks.{n}.mlp.fc2.{p}",
    "blocks.{n}.ls2.gamma": "blocks.{n}.gamma_2",
    "norm.{p}": "norm.{p}",
    "cls_norm.{p}": "cls_norm.{p}",
}
_TRANSFORMERS = {
    "embeddings.cls_token": "cls_token",
    "embeddings.register_tokens": "reg_token",
    "embeddings.patch_embeddings.{p}": "patch_embed.proj.{p}",
    "layer.{n}.norm1.{p}": "blocks.{n}.norm1.{p}",
    "layer.{n}.attention.q_proj.weight": "blocks.{n}.attn.q.weight",  # convert joins the three into qkv
    "layer.{n}.attention.k_proj.weight": "blocks.{n}.attn.k.weight",
    "layer.{n}.attention.v_proj.weight": "blocks.{n}.attn.v.weight",
    "layer.{n}.attention.q_proj.bias": "blocks.{n}.attn.q_bias",
    "layer.{n}.attention.k_proj.bias": "blocks.{n}.attn.k_bias",
    "layer.{n}.attention.v_proj.bias": "blocks.{n}.attn.v_bias",
    "layer.{n}.attention.o_proj.{p}": "blocks.{n}.attn.proj.{p}",
    "layer.{n}.layer_scale1.lambda1": "blocks.{n}.gamma_1",
    "layer.{n}.norm2.{p}": "blocks.{n}.norm2.{p}",
    "layer.{n}.mlp.gate_proj.{p}": "blocks.{n}.mlp.fc1_g.{p}",
    "layer.{n}.mlp.up_proj.{p}": "blocks.{n}.mlp.fc1.{p}",  # convert: fc1_x where there is a gate
    "layer.{n}.mlp.down_proj.{p}": "blocks.{n}.mlp.fc2.{p}",
    "layer.{n}.layer_scale2.lambda1": "blocks.{n}.gamma_2",
    "norm.{p}": "norm.{p}",
}
TABLES = {"meddino": _TIMM, "timm": _TIMM, "meta": _META, "meddinov3": _META, "transformers": _TRANSFORMERS}
"""Format -> its names -> ours. ``meddino`` is our own file, ``meddinov3`` the layout of the MedDINOv3 release."""

_INSIDE_DROPS = {
    r"(embeddings\.)?mask_token": "stands for masked patches in pretraining; segmentation masks none",
    r"local_cls_norm\.(weight|bias)": "normalises local crops in pretraining only",
    r"rope(_embed)?\.periods|rope_embeddings\.inv_freq": "recomputed from base 100, with which it agrees",
    r"head\.(weight|bias)": "a classification head",
}
_OUTSIDE_DROPS = {
    r"(.*\.)?(dino|ibot)_head\..*": "a head of pretraining",
    r"(.*\.)?(dino|ibot_patch)_loss\..*": "a loss's running centre in pretraining",
    r"(optimi[sz]er|optim|(lr_)?scheduler|(grad_|fp16_)?scaler)\..*": "training state",
}
_NETWORK = re.compile(r"(model\.)?(teacher|student|model_ema|gram_teacher)\.")
_PREFERENCE = ("teacher", "model_ema", "student")
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod|_checkpoint_wrapped_module)\.")


def flatten(checkpoint: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Turn nested dictionaries into one, with dotted names."""
    flat: dict[str, Any] = {}
    for key, value in checkpoint.items():
        name = f"{prefix}{key}"
        flat.update(flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value})
    return flat


def unwrapped(name: str) -> str:
    """Take out what data parallelism, ``torch.compile`` and activation checkpointing put into names."""
    return _WRAPPERS.sub("", name)


def listing(names: Iterable[str], limit: int = 4) -> str:
    """Write a few names for an error message."""
    names = sorted(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def find_backbone(names: Iterable[str]) -> tuple[str, str]:
    """Find the ViT among unwrapped, dotted names.

    Returns:
        The prefix of its names (what stands before the class token's), and its format.

    Raises:
        WeightsError: There is none, there are several and none is the teacher, or its layout is unknown.
    """
    names = set(names)
    prefixes = {n[: -len("cls_token")].removesuffix("embeddings.") for n in names if re.search(r"(^|\.)cls_token$", n)}
    if not prefixes:
        msg = (
            f"These weights are not a DINOv3 ViT: no tensor is called cls_token; there is {listing(names) or 'nothing'}"
            ". Known layouts are Meta's .pth, the MedDINOv3 release, timm, transformers and our own safetensors."
        )
        raise WeightsError(msg)
    for wanted in _PREFERENCE if len(prefixes) > 1 else ():
        chosen = {prefix for prefix in prefixes if wanted in prefix.split(".")}
        if chosen:
            prefixes = chosen
            break
    if len(prefixes) > 1:
        msg = (
            f"These weights hold {len(prefixes)} Vision Transformers (below {listing(prefixes)}), and which one is "
            "meant cannot be told. Save that one on its own."
        )
        raise WeightsError(msg)
    prefix = prefixes.pop()
    inside = {name[len(prefix) :] for name in names if name.startswith(prefix)}
    if "embeddings.cls_token" in inside:
        return prefix, "transformers"
    if any(name.endswith(".ls1.gamma") for name in inside):
        return prefix, "meddinov3" if "teacher" in prefix.split(".") else "meta"
    if any(name.endswith(".gamma_1") for name in inside):
        return prefix, "timm"
    msg = (
        f"These weights have a class token but no LayerScale, so they are no DINOv3 ViT; there is {listing(inside)}. "
        "MAE, DINO and supervised ViTs cannot be used here."
    )
    raise WeightsError(msg)


def drop_reason(name: str, prefix: str, value: Any) -> str | None:
    """Return why a checkpoint entry is left behind, or None where it belongs to the backbone or is unknown.

    Args:
        name: Unwrapped name.
        prefix: What the backbone's names begin with.
        value: The entry.
    """
    if not isinstance(value, Tensor):
        return f"not a tensor ({type(value).__name__})"
    rules = dict(_OUTSIDE_DROPS)
    if name.startswith(prefix):
        rules |= {re.escape(prefix) + f"({pattern})": reason for pattern, reason in _INSIDE_DROPS.items()}
    for pattern, reason in rules.items():
        if re.fullmatch(pattern, name):
            return reason
    network = _NETWORK.match(name)
    if network and not prefix.startswith(network.group()):
        return f"another copy of the network; the one below {prefix} is used"
    return None


@cache
def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.escape(template).replace(r"\{n\}", r"(?P<n>\d+)").replace(r"\{p\}", "(?P<p>weight|bias)"))


def translate(table: Mapping[str, str], name: str) -> str | None:
    """Return a name's counterpart in a table, or None."""
    for source, target in table.items():
        match = _pattern(source).fullmatch(name)
        if match:
            return target.format(**match.groupdict())
    return None
