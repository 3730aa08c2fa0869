"""Pretrained weights of the Mix Transformer, for the SegFormer baseline."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nnunetv2_meddino.errors import WeightsError
from nnunetv2_meddino.networks.layers import STEM_CHANNELS, adapt_stem
from nnunetv2_meddino.networks.mit import MIT_BACKBONES, MiTConfig
from nnunetv2_meddino.weights.backbones import BackboneFamily
from nnunetv2_meddino.weights.convert import require_finite
from nnunetv2_meddino.weights.files import read_file
from nnunetv2_meddino.weights.formats import listing
from nnunetv2_meddino.weights.hub import fetch
from nnunetv2_meddino.weights.load import LoadReport, PretrainedWeights
from nnunetv2_meddino.weights.resolve import file_provenance, resolve
from nnunetv2_meddino.weights.trained import FORMAT, trained_model

if TYPE_CHECKING:
    from nnunetv2_meddino.networks.segformer import MixTransformer

STEM = "stages.0.patch_embeddings.proj.weight"

_BLOCK = r"^encoder\.block\.(\d)\.(\d+)\."
PUBLISHED_NAMES = (
    (r"^encoder\.patch_embeddings\.(\d)\.", r"stages.\1.patch_embeddings."),
    (r"^encoder\.layer_norm\.(\d)\.", r"stages.\1.layer_norm."),
    (_BLOCK + r"layer_norm_1\.", r"stages.\1.blocks.\2.layernorm_before."),
    (_BLOCK + r"layer_norm_2\.", r"stages.\1.blocks.\2.layernorm_after."),
    (_BLOCK + r"attention\.self\.query\.", r"stages.\1.blocks.\2.attention.q_proj."),
    (_BLOCK + r"attention\.self\.key\.", r"stages.\1.blocks.\2.attention.k_proj."),
    (_BLOCK + r"attention\.self\.value\.", r"stages.\1.blocks.\2.attention.v_proj."),
    (_BLOCK + r"attention\.self\.sr\.", r"stages.\1.blocks.\2.attention.sequence_reduction.sequence_reduction."),
    (_BLOCK + r"attention\.self\.layer_norm\.", r"stages.\1.blocks.\2.attention.sequence_reduction.layer_norm."),
    (_BLOCK + r"attention\.output\.dense\.", r"stages.\1.blocks.\2.attention.o_proj."),
    (_BLOCK + r"mlp\.dense1\.", r"stages.\1.blocks.\2.mlp.fc1."),
    (_BLOCK + r"mlp\.dense2\.", r"stages.\1.blocks.\2.mlp.fc2."),
    (_BLOCK + r"mlp\.dwconv\.", r"stages.\1.blocks.\2.mlp.dwconv."),
)
"""Names in the files on the hub (transformers 4) and in the library that builds the network (transformers 5)."""

HEADS = ("classifier.", "decode_head.")
"""Parts of the published files that are no encoder."""


def mit_architecture_of(spec: str) -> MiTConfig:
    """Return the architecture of pretrained weights; a catalog name reads no file.

    Raises:
        WeightsError: As ``read_mit_weights``.
    """
    _, entry = resolve(spec)
    if entry is not None and isinstance(entry.architecture, MiTConfig):
        return entry.architecture
    return read_mit_weights(spec).config


def read_mit_weights(spec: str) -> PretrainedWeights:
    """Read pretrained MiT weights in the layout of the transformers library, downloading them if need be.

    Args:
        spec: A path, a catalog name, or a hub id: ``org/name`` or ``org/name:filename``.

    Raises:
        WeightsError: They are unknown, missing, damaged, or no Mix Transformer.
    """
    path, entry = resolve(spec)
    if entry is not None and not isinstance(entry.architecture, MiTConfig):
        raise _no_mit(spec, f"it is {entry.backbone}")
    path = path or fetch(spec)
    tensors: dict[str, Tensor] = {}
    dropped: dict[str, str] = {}
    content = read_file(path).content
    trained = trained_model(content, path, "mit")
    for name, tensor in (trained.tensors if trained else content).items():
        own = name.removeprefix("segformer.")
        if own.startswith(HEADS):
            dropped[name] = "part of a head, not of the encoder"
            continue
        for pattern, replacement in PUBLISHED_NAMES:
            own = re.sub(pattern, replacement, own)
        tensors[own] = tensor
    require_finite(tensors)
    config = _architecture(tensors, path)
    if trained:
        provenance = file_provenance(path, spec, entry, FORMAT, trained.provenance)
        return PretrainedWeights(config, tensors, trained.dropped, provenance)
    return PretrainedWeights(config, tensors, dropped, file_provenance(path, spec, entry, "transformers"))


def load_into_mit(encoder: MixTransformer, weights: PretrainedWeights) -> LoadReport:
    """Copy pretrained weights into an encoder's own tensors, all or nothing; the stem is adapted to its channels.

    Raises:
        WeightsError: The encoder is of another architecture.
    """
    source = dict(weights.tensors)
    source[STEM] = adapt_stem(source[STEM], encoder.in_channels)
    target = encoder.state_dict()
    if {name: tensor.shape for name, tensor in source.items()} != {n: t.shape for n, t in target.items()}:
        msg = f"The weights are {mit_name(weights.config)}, the network is not. Nothing was loaded; build it for them."
        raise WeightsError(msg)
    with torch.no_grad():
        for name, tensor in source.items():
            target[name].copy_(tensor)
    return LoadReport(sorted(source), weights.dropped)


def mit_name(config: MiTConfig) -> str | None:
    """Return the key of ``MIT_BACKBONES`` with this architecture, or None."""
    return next((name for name, known in MIT_BACKBONES.items() if known == config), None)


def _architecture(tensors: dict[str, Tensor], path: Path) -> MiTConfig:
    """Find the architecture whose tensors these are, by name and shape."""
    from nnunetv2_meddino.networks.segformer import MixTransformer  # the transformers library takes seconds to import

    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    for config in MIT_BACKBONES.values():
        with torch.device("meta"):
            known = MixTransformer(config, STEM_CHANNELS).state_dict()
        if shapes == {name: tensor.shape for name, tensor in known.items()}:
            return config
    raise _no_mit(str(path), f"it holds {listing(tensors)}")


def _no_mit(spec: str, found: str) -> WeightsError:
    return WeightsError(
        f"{spec} holds no Mix Transformer that SegFormer knows ({', '.join(MIT_BACKBONES)}): {found}. Unset "
        "MEDDINO_WEIGHTS to use this trainer's own, or name weights such as mit_b2_imagenet1k or nvidia/mit-b2."
    )


MIT = BackboneFamily("mit", MIT_BACKBONES, "mit_b2", mit_architecture_of, mit_name, read_mit_weights, load_into_mit)
