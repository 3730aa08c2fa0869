"""Weights of every published layout, translated to and from the names of our ``VisionTransformer``.

Every tensor of a checkpoint ends up translated, dropped for a stated reason (``layouts``), or named in an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nnunetv2_meddino.errors import WeightsError
from nnunetv2_meddino.networks.layers import STEM_CHANNELS
from nnunetv2_meddino.networks.rope import ROPE_BASE
from nnunetv2_meddino.networks.vit import VisionTransformer, ViTConfig
from nnunetv2_meddino.weights.formats import TABLES, drop_reason, find_backbone, flatten, listing, translate, unwrapped

FORMATS = tuple(TABLES)
"""Formats that can be written: ``meddino``, ``timm``, ``meta``, ``meddinov3``, ``transformers``."""
HEAD_DIM = 64
"""Width of an attention head in every released DINOv3; used where a file does not show it."""
PERIODS_TOLERANCE = 0.02
"""Relative. Periods computed in bfloat16 are up to 1.2 % off; another base is further off."""
CANNOT_HOLD = {
    "timm": ("k_bias", "untied_cls_norm"),
    "transformers": ("untied_cls_norm",),
    "meddinov3": ("qkv_bias", "k_bias", "untied_cls_norm", "swiglu"),
}
"""Settings for which a format, or the code that reads it, has no place."""


@dataclass(frozen=True)
class Converted:
    """A checkpoint in our names."""

    tensors: dict[str, Tensor]
    """Exactly the state dict of ``VisionTransformer(config)``."""
    config: ViTConfig
    dropped: dict[str, str]
    """Name in the checkpoint -> why it was left behind."""
    format: str


def to_native(tensors: Mapping[str, Any], declared: ViTConfig | None = None) -> Converted:
    """Translate a checkpoint of any known layout into our names and infer its architecture.

    What the tensors do not show is taken from ``declared``, else: heads are as wide as the stored rotary periods say,
    64 without them; ``norm_eps`` is 1e-6 in the MedDINOv3 release layout (whose code builds it so) and 1e-5 otherwise
    (every DINOv3 release); RoPE is computed in float32.

    Args:
        tensors: Name -> tensor, nested or not, wrappers and prefixes as the file has them.
        declared: The architecture that a header or the catalog states.

    Raises:
        WeightsError: A tensor is unknown, missing, not finite or of a wrong shape, or the architecture is not the
            declared one.
    """
    flat = flatten(tensors)
    prefix, layout = find_backbone(unwrapped(name) for name in flat)
    kept: dict[str, Tensor] = {}
    dropped: dict[str, str] = {}
    unknown: list[str] = []
    head_dim = None
    for name, value in flat.items():
        clean = unwrapped(name)
        reason = drop_reason(clean, prefix, value)
        native = _native_name(clean, prefix, layout)
        if reason:
            dropped[name] = reason
            if clean.startswith(prefix) and clean.endswith((".periods", ".inv_freq")) and isinstance(value, Tensor):
                head_dim = _head_dim(name, value if clean.endswith(".periods") else 1 / value)
        elif native is None or native in kept:
            unknown.append(name)
        else:
            kept[native] = value
    if unknown:
        msg = (
            f"These weights ({layout} layout) hold tensors that a DINOv3 ViT does not have, or has once: "
            f"{listing(unknown)}. Nothing was loaded, because leaving them out could change the features. If they "
            "belong to something else, save the backbone on its own."
        )
        raise WeightsError(msg)
    _normalise(kept, dropped)
    if declared is not None and not declared.qkv_bias:
        dropped |= drop_zero_biases(kept)
    require_finite(kept)
    config = _infer(kept, head_dim, 1e-6 if layout == "meddinov3" else 1e-5, declared)
    require_architecture(kept, config)
    return Converted(kept, config, dropped, layout)


def from_native(tensors: Mapping[str, Tensor], config: ViTConfig, format: str) -> dict[str, Any]:  # noqa: A002
    """Translate our weights into another format: the inverse of ``to_native``.

    What the format needs and we do not keep is made anew: the mask token is zero, rotary periods are computed from
    base 100 (in bfloat16 for ``meddinov3``, as that release stores them).

    Args:
        tensors: The state dict of ``VisionTransformer(config)``.
        config: The architecture.
        format: One of ``FORMATS``.

    Returns:
        Name -> tensor, ready to be saved; ``{"teacher": {...}}`` for ``meddinov3``.

    Raises:
        WeightsError: The format is unknown or cannot hold these weights.
    """
    if format not in FORMATS:
        raise WeightsError(f"Unknown weights format {format!r}; choose one of {', '.join(FORMATS)}.")
    require_architecture(tensors, config)
    tensors = dict(tensors)
    for setting in CANNOT_HOLD.get(format, ()):
        if getattr(config, setting) and not (setting.endswith("bias") and drop_zero_biases(tensors)):
            msg = (
                f"The {format} format cannot hold these weights: they have {setting}, it has no place for it. Choose "
                f"another format ({', '.join(f for f in FORMATS if setting not in CANNOT_HOLD.get(f, ()))})."
            )
            raise WeightsError(msg)
    if format in ("meta", "meddinov3"):
        return _to_meta(tensors, config, release=format == "meddinov3")
    if format == "transformers":
        return _to_transformers(tensors, config)
    return tensors


def backbone_shapes(config: ViTConfig, in_channels: int = STEM_CHANNELS) -> dict[str, torch.Size]:
    """Return name and shape of every tensor that a network of this architecture has."""
    with torch.device("meta"):
        network = VisionTransformer(config, in_channels)
    return {name: tensor.shape for name, tensor in network.state_dict().items()}


def require_architecture(tensors: Mapping[str, Tensor], config: ViTConfig) -> None:
    """Check that tensors are exactly the state dict of this architecture (any number of stem channels).

    Raises:
        WeightsError: One is missing, has no place, or has another shape.
    """
    stem = tensors.get("patch_embed.proj.weight")
    channels = stem.shape[1] if stem is not None and stem.ndim == 4 else STEM_CHANNELS
    expected = backbone_shapes(config, channels)
    problems = []
    if missing := expected.keys() - tensors.keys():
        problems.append(f"missing: {listing(missing)}")
    if extra := tensors.keys() - expected.keys():
        problems.append(f"without a place: {listing(extra)}")
    for name in expected.keys() & tensors.keys():
        if tensors[name].shape != expected[name]:
            problems.append(f"{name} has shape {tuple(tensors[name].shape)} instead of {tuple(expected[name])}")
    if problems:
        msg = (
            f"The weights do not make up a ViT of width {config.embed_dim} with {config.depth} blocks: "
            f"{'; '.join(sorted(problems)[:4])}. The file is incomplete or of another model; get it again, or name the "
            "right one."
        )
        raise WeightsError(msg)


def require_finite(tensors: Mapping[str, Tensor]) -> None:
    """Check that every tensor holds floating point numbers, none of them NaN or infinite.

    Raises:
        WeightsError: One does not; the message names it.
    """
    bad = [name for name, tensor in tensors.items() if not (tensor.is_floating_point() and tensor.isfinite().all())]
    if bad:
        msg = (
            f"Weights hold NaN, infinity or no floating point numbers in {listing(bad)}. The training that wrote them "
            "diverged, or the file is damaged: use an earlier checkpoint, or get the file again."
        )
        raise WeightsError(msg)


def drop_zero_biases(tensors: dict[str, Tensor], kinds: str = "qkv") -> dict[str, str]:
    """Take out the biases of queries, keys and values if all of them are zero, which changes no feature.

    Args:
        tensors: Our names; changed in place.
        kinds: Which biases to look at.

    Returns:
        Name -> reason of what was taken out; empty where there is no bias or one is not zero.
    """
    names = [name for name in tensors for kind in kinds if name.endswith(f".attn.{kind}_bias")]
    if any(tensors[name].any() for name in names):
        return {}
    for name in names:
        del tensors[name]
    return dict.fromkeys(names, "zero, as good as absent")


def _native_name(clean: str, prefix: str, layout: str) -> str | None:
    if not clean.startswith(prefix):
        return None
    name = clean[len(prefix) :]
    if layout == "transformers":  # version 5 puts "model." before its blocks
        name = name.removeprefix("model.")
    return translate(TABLES[layout], name)


def _head_dim(name: str, periods: Tensor) -> int:
    """Return the head width that stored rotary periods are for, after checking that we would compute the same."""
    count = periods.numel()
    if not count or not torch.allclose(periods.flatten().float(), _periods(4 * count), rtol=PERIODS_TOLERANCE, atol=0):
        msg = (
            f"{name} are not the rotary periods of base {ROPE_BASE:g} that DINOv3 uses, so positions would be "
            "read wrongly. These weights belong to another model, or the file is damaged; they cannot be used."
        )
        raise WeightsError(msg)
    return 4 * count


def _periods(head_dim: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return ROPE_BASE ** (2 * torch.arange(head_dim // 4, dtype=dtype) / (head_dim // 2))


def _blocks(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the prefixes of the blocks."""
    return sorted({".".join(name.split(".")[:2]) for name in tensors if name.startswith("blocks.")})


def _normalise(tensors: dict[str, Tensor], dropped: dict[str, str]) -> None:
    """Bring what no table can express into our form: joined and masked biases, separate projections, the gate."""
    for block in _blocks(tensors):
        parts = [f"{block}.attn.{part}.weight" for part in "qkv"]
        if all(part in tensors for part in parts):
            tensors[f"{block}.attn.qkv.weight"] = torch.cat([tensors.pop(part) for part in parts])
        joint, mask_name = tensors.pop(f"{block}.attn.qkv.bias", None), f"{block}.attn.qkv.bias_mask"
        if joint is not None:
            mask = tensors.pop(mask_name, None)
            if mask is not None:
                if mask.shape != joint.shape:
                    raise WeightsError(f"{mask_name} and its bias differ in shape; the file is damaged. Get it again.")
                joint = joint * mask
                dropped[mask_name] = "multiplied into the bias"
            for kind, part in zip("qkv", joint.chunk(3), strict=True):
                tensors[f"{block}.attn.{kind}_bias"] = part.clone()
        if f"{block}.mlp.fc1_g.weight" in tensors:  # transformers calls it up_proj with and without a gate
            for kind in ("weight", "bias"):
                if f"{block}.mlp.fc1.{kind}" in tensors:
                    tensors[f"{block}.mlp.fc1_x.{kind}"] = tensors.pop(f"{block}.mlp.fc1.{kind}")
    dropped |= drop_zero_biases(tensors, kinds="k")
    if "reg_token" in tensors and tensors["reg_token"].numel() == 0:  # transformers without registers
        del tensors["reg_token"]
        dropped["reg_token"] = "empty"


def _infer(
    tensors: Mapping[str, Tensor], head_dim: int | None, norm_eps: float, declared: ViTConfig | None
) -> ViTConfig:
    """Read the architecture from the tensors' names and shapes, the rest from what is declared."""
    needed = {"cls_token": 3, "patch_embed.proj.weight": 4, "blocks.0.mlp.fc2.weight": 2}
    for name, rank in needed.items():
        if name not in tensors or tensors[name].ndim != rank or not tensors[name].numel():
            msg = f"The weights have no usable {name}: they are incomplete. Get the file again, or name another."
            raise WeightsError(msg)
    width = tensors["cls_token"].shape[-1]
    if head_dim is None:
        head_dim = declared.embed_dim // declared.num_heads if declared else HEAD_DIM
    if width % head_dim:
        msg = (
            f"The width of these weights, {width}, is no multiple of the head width {head_dim}, so the number of heads "
            "cannot be told. Use a file that shows it: Meta's layout (rotary periods) or our own safetensors (header)."
        )
        raise WeightsError(msg)
    registers = tensors.get("reg_token")
    inferred = ViTConfig(
        embed_dim=width,
        depth=len(_blocks(tensors)),
        num_heads=width // head_dim,
        mlp_hidden=tensors["blocks.0.mlp.fc2.weight"].shape[1],
        patch_size=tensors["patch_embed.proj.weight"].shape[-1],
        num_registers=0 if registers is None or registers.ndim < 2 else registers.shape[1],
        swiglu="blocks.0.mlp.fc1_g.weight" in tensors,
        qkv_bias=any(name.endswith((".q_bias", ".k_bias", ".v_bias")) for name in tensors),
        k_bias=any(name.endswith(".k_bias") for name in tensors),
        untied_cls_norm="cls_norm.weight" in tensors,
        norm_eps=declared.norm_eps if declared else norm_eps,
        rope_dtype=declared.rope_dtype if declared else "float32",
        layer_scale=declared.layer_scale if declared else ViTConfig.layer_scale,
    )
    if declared is not None and inferred != declared:
        found, stated = inferred.to_dict(), declared.to_dict()
        differing = [f"{key} is {found[key]}, not {stated[key]}" for key in found if found[key] != stated[key]]
        msg = (
            f"The weights are not of the architecture that they are declared to have: {'; '.join(differing)}. The file "
            "was mixed up or has changed; get it again, or name it by its path to use it as what it is."
        )
        raise WeightsError(msg)
    return inferred


def _to_meta(tensors: dict[str, Tensor], config: ViTConfig, *, release: bool) -> dict[str, Any]:
    """Write Meta's names; with ``release`` inside the MedDINOv3 release's wrapper."""
    other_mlp = (".mlp.fc1.", ".mlp.fc2.") if config.swiglu else (".mlp.w1.", ".mlp.w2.", ".mlp.w3.")
    table = {ours: theirs for theirs, ours in TABLES["meta"].items() if not any(part in theirs for part in other_mlp)}
    for block in _blocks(tensors):
        if f"{block}.attn.q_bias" in tensors:
            query, value = (tensors.pop(f"{block}.attn.{kind}_bias") for kind in "qv")
            key = tensors.pop(f"{block}.attn.k_bias", torch.zeros_like(query))
            tensors[f"{block}.attn.qkv.bias"] = torch.cat([query, key, value])
            if not config.k_bias:
                ones = torch.ones_like(query)
                tensors[f"{block}.attn.qkv.bias_mask"] = torch.cat([ones, torch.zeros_like(ones), ones])
    written = {str(translate(table, name)): tensor for name, tensor in tensors.items()}
    written["mask_token"] = torch.zeros(1, config.embed_dim)
    head_dim = config.embed_dim // config.num_heads
    written["rope_embed.periods"] = _periods(head_dim, torch.bfloat16 if release else torch.float32)
    return {"teacher": {f"backbone.{name}": tensor for name, tensor in written.items()}} if release else written


def _to_transformers(tensors: dict[str, Tensor], config: ViTConfig) -> dict[str, Tensor]:
    """Write transformers' names."""
    table = {ours: theirs for theirs, ours in TABLES["transformers"].items()}
    for block in _blocks(tensors):
        for kind, part in zip("qkv", tensors.pop(f"{block}.attn.qkv.weight").chunk(3), strict=True):
            tensors[f"{block}.attn.{kind}.weight"] = part.clone()
        for kind in ("weight", "bias") if config.swiglu else ():
            tensors[f"{block}.mlp.fc1.{kind}"] = tensors.pop(f"{block}.mlp.fc1_x.{kind}")
    tensors.setdefault("reg_token", torch.zeros(1, 0, config.embed_dim))
    written = {str(translate(table, name)): tensor for name, tensor in tensors.items()}
    written["embeddings.mask_token"] = torch.zeros(1, 1, config.embed_dim)
    return written
