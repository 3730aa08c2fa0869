"""Resolve a name, path or hub id to pretrained weights, check them, and copy them into a network."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nnunetv2_meddino.environment import MEDDINO_BACKBONE
from nnunetv2_meddino.errors import ConfigurationError, WeightsError
from nnunetv2_meddino.networks.layers import STEM_CHANNELS, adapt_stem
from nnunetv2_meddino.networks.lora import base_tensors
from nnunetv2_meddino.networks.vit import BACKBONES, VisionTransformer, ViTConfig
from nnunetv2_meddino.weights.catalog import CatalogEntry
from nnunetv2_meddino.weights.contamination import with_counts
from nnunetv2_meddino.weights.convert import (
    FORMATS,
    Converted,
    drop_zero_biases,
    from_native,
    require_architecture,
    require_finite,
    to_native,
)
from nnunetv2_meddino.weights.files import WeightsFile, file_sha256, read_file, write_safetensors, write_torch
from nnunetv2_meddino.weights.formats import listing
from nnunetv2_meddino.weights.hub import fetch
from nnunetv2_meddino.weights.resolve import file_provenance, resolve
from nnunetv2_meddino.weights.trained import FORMAT, trained_model

logger = logging.getLogger(__name__)

FORMAT_NAME = "nnunetv2_meddino"
FORMAT_VERSION = "1"
TORCH_FORMATS = ("meta", "meddinov3")
"""Formats whose readers expect PyTorch's file format; the others are safetensors."""


@dataclass(frozen=True)
class PretrainedWeights:
    """Weights in our names, and where they are from."""

    config: Any
    """The architecture: a ``ViTConfig``, or the one of another family (``backbones``)."""
    tensors: dict[str, Tensor]
    """Exactly the state dict of the encoder with this architecture."""
    dropped: dict[str, str]
    """What the file held besides -> why it was left behind."""
    provenance: dict[str, Any]
    """JSON values: name, source, path, sha256, size_bytes, format, licence, licence_url, input_statistics,
    and derived_from (the provenance that a file written by this package carries)."""


@dataclass(frozen=True)
class LoadReport:
    """What became of every pretrained tensor."""

    loaded: list[str]
    dropped: dict[str, str]
    """Name -> why it was left behind."""


@dataclass(frozen=True)
class FileSummary:
    """What is in a weights file."""

    path: Path
    size_bytes: int
    sha256: str
    format: str
    architecture: ViTConfig
    backbone: str | None
    """Key of ``BACKBONES`` with this architecture (biases and numerical settings aside), or None."""
    tensor_count: int
    parameters: int
    dropped: dict[str, str]
    """Name -> why it would be left behind."""
    metadata: dict[str, str]
    """Header of a safetensors file; lists of seen cases as their numbers."""
    provenance: dict[str, Any] | None
    """What the header, or a trainer's checkpoint, says of where the weights are from."""


def architecture_of(spec: str) -> ViTConfig:
    """Return the architecture of pretrained weights; a catalog name reads no file.

    Args:
        spec: As for ``read_weights``.

    Raises:
        WeightsError: As ``read_weights``.
    """
    path, entry = resolve(spec)
    if entry is not None:
        return _vit_architecture(entry)
    path = path or fetch(spec)
    return _read(path, None).config


def read_weights(spec: str) -> PretrainedWeights:
    """Read pretrained weights, downloading them if need be.

    Args:
        spec: A path, a catalog name, or a hub id: ``org/name`` or ``org/name:filename``.

    Raises:
        WeightsError: They are unknown, missing, gated, damaged, or not what they are declared to be.
    """
    path, entry = resolve(spec)
    declared = _vit_architecture(entry) if entry else None
    path = path or fetch(spec)
    read = _read(path, declared)
    provenance = file_provenance(path, spec, entry, read.format, read.provenance)
    return PretrainedWeights(read.config, read.tensors, read.dropped, provenance)


def load_into(vit: VisionTransformer, weights: PretrainedWeights) -> LoadReport:
    """Copy pretrained weights into a network's own tensors, all or nothing.

    The parameters stay the same objects, so an optimizer that already holds them stays valid. The stem is adapted to
    the network's channels (``adapt_stem``).

    Args:
        vit: The network, as built (not wrapped by ``torch.compile`` or DDP); adapters on it stay as they are.
        weights: What to copy.

    Raises:
        WeightsError: A tensor is missing, left over, not finite or of another shape, or the network computes
            something else with it (number of heads).
    """
    source, dropped = dict(weights.tensors), dict(weights.dropped)
    target = base_tensors(vit)
    require_finite(source)
    if not vit.config.qkv_bias:
        dropped |= drop_zero_biases(source)
    stem = source.get("patch_embed.proj.weight")
    if stem is not None and stem.ndim == 4 and stem.shape[1] == STEM_CHANNELS:
        source["patch_embed.proj.weight"] = adapt_stem(stem, vit.in_channels)
    problems = []
    if vit.config.num_heads != weights.config.num_heads:
        problems.append(f"{weights.config.num_heads} heads in the weights, {vit.config.num_heads} in the network")
    if left_over := source.keys() - target.keys():
        biased = [name for name in left_over if name.endswith("_bias")]
        problems.append(f"the network has no {listing(left_over)}" + (" (and they are not zero)" if biased else ""))
    if missing := target.keys() - source.keys():
        problems.append(f"the weights have no {listing(missing)}")
    for name in sorted(source.keys() & target.keys()):
        if source[name].shape != target[name].shape:
            shapes = f"{tuple(source[name].shape)} in the weights, {tuple(target[name].shape)} in the network"
            problems.append(f"{name} is {shapes}")
    if problems:
        size = backbone_name(weights.config)
        advice = f"to {size}" if size else "to the architecture of these weights"
        msg = (
            f"The weights {weights.provenance.get('name', 'given')} do not fit the network: {'; '.join(problems[:4])}. "
            f"Nothing was loaded. Unset {MEDDINO_BACKBONE.name} or set it {advice}, or choose other weights."
        )
        raise WeightsError(msg)
    if vit.config.norm_eps != weights.config.norm_eps:
        logger.warning(
            "LayerNorm epsilon is %g in the network, the weights were trained with %g; features differ slightly.",
            vit.config.norm_eps,
            weights.config.norm_eps,
        )
    with torch.no_grad():
        for name, tensor in source.items():
            target[name].copy_(tensor)
    return LoadReport(sorted(source), dropped)


def convert_file(src_spec: str, dst_path: Path, format: str) -> PretrainedWeights:  # noqa: A002
    """Read weights of any kind and write them in another format.

    Args:
        src_spec: As for ``read_weights``.
        dst_path: Ends in ``.pth`` for ``meta`` and ``meddinov3``, in ``.safetensors`` for the others.
        format: One of ``convert.FORMATS``.

    Returns:
        What was read.

    Raises:
        WeightsError: They cannot be read, or the format cannot hold them.
    """
    weights = read_weights(src_spec)
    write_weights(dst_path, weights.tensors, weights.config, weights.provenance, format)
    return weights


def inspect_file(path: Path) -> FileSummary:
    """Say what is in a weights file.

    Raises:
        WeightsError: It cannot be read or is no DINOv3 ViT.
    """
    path = Path(path)
    read = _read(path, None)
    metadata = read.metadata
    if "provenance" in metadata and read.provenance is not None:
        metadata = metadata | {"provenance": json.dumps(with_counts(read.provenance))}
    return FileSummary(
        path=path,
        size_bytes=path.stat().st_size,
        sha256=file_sha256(path),
        format=read.format,
        architecture=read.config,
        backbone=backbone_name(read.config),
        tensor_count=len(read.tensors),
        parameters=sum(tensor.numel() for tensor in read.tensors.values()),
        dropped=read.dropped,
        metadata=metadata,
        provenance=read.provenance,
    )


def backbone_name(config: ViTConfig) -> str | None:
    """Return the key of ``BACKBONES`` with this architecture, biases and numerical settings aside, or None."""
    for name, known in BACKBONES.items():
        aside = {key: getattr(known, key) for key in ("qkv_bias", "k_bias", "norm_eps", "rope_dtype")}
        if replace(config, **aside) == known:
            return name
    return None


def _vit_architecture(entry: CatalogEntry) -> ViTConfig:
    if not isinstance(entry.architecture, ViTConfig):
        msg = f"{entry.name} holds no ViT but {entry.backbone}. Choose other weights, or the trainer that they are for."
        raise WeightsError(msg)
    return entry.architecture


@dataclass(frozen=True)
class _Read(Converted):
    """A file in our names, and what it says of itself."""

    metadata: dict[str, str]
    provenance: dict[str, Any] | None


def _read(path: Path, declared: ViTConfig | None) -> _Read:
    """Read and translate a file, holding it to what it or the catalog declares."""
    file = read_file(path)
    content, stated, provenance = file.content, None, None
    layout, dropped = None, {}
    if trained := trained_model(content, path, "vit"):
        content, stated, provenance = trained.tensors, trained.architecture, trained.provenance
        layout, dropped = FORMAT, trained.dropped
    elif _has_header(file):
        stated, provenance = (_header_json(file, key, path) for key in ("architecture", "provenance"))
        layout = "meddino" if file.metadata.get("format") == FORMAT_NAME else None
    if stated is not None:
        try:
            declared = ViTConfig(**stated)
        except (TypeError, ZeroDivisionError, ConfigurationError) as error:
            msg = f"{path} states no architecture that this version knows ({error}). Update the package."
            raise WeightsError(msg) from error
    try:
        converted = to_native(content, declared)
    except (WeightsError, ConfigurationError) as error:
        raise WeightsError(f"{path}: {error}") from error
    return _Read(
        converted.tensors,
        converted.config,
        dropped | converted.dropped,
        layout or converted.format,
        file.metadata,
        provenance,
    )


def _has_header(file: WeightsFile) -> bool:
    """Tell whether this package wrote the file, in its own format or in another."""
    return {"format_version", "architecture", "provenance"} <= file.metadata.keys()


def _header_json(file: WeightsFile, key: str, path: Path) -> dict[str, Any]:
    version = file.metadata["format_version"]
    if version != FORMAT_VERSION:
        msg = f"{path} is in format version {version}, this version reads {FORMAT_VERSION}. Update the package."
        raise WeightsError(msg)
    try:
        value = json.loads(file.metadata[key])
    except json.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        msg = f"The header of {path} is damaged: {key} is no JSON object. Convert or export the weights again."
        raise WeightsError(msg)
    return value


def write_weights(
    path: Path,
    tensors: Mapping[str, Tensor],
    config: ViTConfig,
    provenance: Mapping[str, Any],
    format: str,  # noqa: A002
) -> None:
    """Write weights in any format, with architecture and provenance in the header where the format has one.

    Args:
        path: Ends in ``.pth`` for ``meta`` and ``meddinov3``, in ``.safetensors`` for the others; the file appears
            under this name only when it is complete.
        tensors: The state dict of ``VisionTransformer(config)``.
        config: The architecture.
        provenance: JSON values; ``licence`` and ``input_statistics`` are handed on when the file is read.
        format: One of ``convert.FORMATS``.

    Raises:
        WeightsError: The tensors are not of this architecture or not finite, the name ends otherwise, or the format
            cannot hold them.
    """
    path, to = Path(path), format
    require_architecture(tensors, config)
    require_finite(tensors)
    suffix = ".pth" if to in TORCH_FORMATS else ".safetensors"
    if to in FORMATS and path.suffix != suffix:
        msg = f"The {to} format is written to a {suffix} file, and {path.name} is none. Choose another name."
        raise WeightsError(msg)
    content = from_native(tensors, config, to)
    if to in TORCH_FORMATS:
        write_torch(path, content)
        return
    metadata = {
        "format": FORMAT_NAME if to == "meddino" else "pt",  # transformers asks for "pt"
        "format_version": FORMAT_VERSION,
        "architecture": json.dumps(config.to_dict()),
        "provenance": json.dumps(dict(provenance)),
    }
    write_safetensors(path, content, metadata)
