"""MiT weights: the published layout against the transformers library's own reading of it."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import save_file
from transformers import SegformerConfig, SegformerForImageClassification

from nnunetv2_meddino.errors import WeightsError
from nnunetv2_meddino.networks.mit import MIT_BACKBONES
from nnunetv2_meddino.networks.segformer import MixTransformer
from nnunetv2_meddino.networks.vit import BACKBONES, VisionTransformer
from nnunetv2_meddino.weights import mit
from nnunetv2_meddino.weights.load import write_weights
from nnunetv2_meddino.weights.mit import load_into_mit, mit_architecture_of, read_mit_weights

TINY = MIT_BACKBONES["tiny"]
OLD_NAMES = (
    (r"stages\.(\d)\.patch_embeddings\.", r"encoder.patch_embeddings.\1."),
    (r"stages\.(\d)\.layer_norm\.", r"encoder.layer_norm.\1."),
    (r"stages\.(\d)\.blocks\.(\d+)\.", r"encoder.block.\1.\2."),
    (r"layernorm_before", "layer_norm_1"),
    (r"layernorm_after", "layer_norm_2"),
    (r"attention\.q_proj", "attention.self.query"),
    (r"attention\.k_proj", "attention.self.key"),
    (r"attention\.v_proj", "attention.self.value"),
    (r"attention\.o_proj", "attention.output.dense"),
    (r"attention\.sequence_reduction\.sequence_reduction", "attention.self.sr"),
    (r"attention\.sequence_reduction\.layer_norm", "attention.self.layer_norm"),
    (r"mlp\.fc(\d)", r"mlp.dense\1"),
)


def published(seed: int = 0) -> dict[str, torch.Tensor]:
    """A classifier's weights under the names that the files on the hub have."""
    torch.manual_seed(seed)
    state = {}
    for name, tensor in MixTransformer(TINY).state_dict().items():
        for pattern, replacement in OLD_NAMES:
            name = re.sub(pattern, replacement, name)
        state[f"segformer.{name}"] = torch.randn_like(tensor) * 0.1
    return {**state, "classifier.weight": torch.randn(10, 64), "classifier.bias": torch.randn(10)}


@pytest.fixture
def folder(tmp_path):
    """A model folder as on the hub: configuration and weights."""
    config = SegformerConfig(
        hidden_sizes=list(TINY.hidden_sizes),
        depths=list(TINY.depths),
        decoder_hidden_size=TINY.decoder_dim,
        num_labels=10,
    )
    config.architectures = ["SegformerForImageClassification"]
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    save_file(published(), tmp_path / "model.safetensors", {"format": "pt"})
    return tmp_path


def test_published_names_are_read_as_the_library_reads_them(folder):
    reference = SegformerForImageClassification.from_pretrained(folder).segformer.state_dict()
    weights = read_mit_weights(str(folder / "model.safetensors"))
    assert weights.config == TINY
    assert weights.tensors.keys() == reference.keys()
    for name, tensor in reference.items():
        assert torch.equal(weights.tensors[name], tensor), name
    assert set(weights.dropped) == {"classifier.weight", "classifier.bias"}


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_weights_are_copied_into_the_very_tensors(folder, channels):
    weights = read_mit_weights(str(folder / "model.safetensors"))
    encoder = MixTransformer(TINY, channels)
    before = [id(p) for p in encoder.parameters()]
    report = load_into_mit(encoder, weights)
    assert [id(p) for p in encoder.parameters()] == before
    assert len(report.loaded) == len(encoder.state_dict())
    stem = encoder.state_dict()[mit.STEM]
    first = weights.tensors[mit.STEM][:, 0]
    assert torch.allclose(stem[:, 0], first * (3 / 4 if channels == 4 else 1))


def test_pytorch_files_are_read_without_running_code(tmp_path):
    torch.save(published(), tmp_path / "pytorch_model.bin")
    assert read_mit_weights(str(tmp_path / "pytorch_model.bin")).config == TINY
    torch.save({"encoder": MixTransformer(TINY)}, tmp_path / "pickled.bin")
    with pytest.raises(WeightsError, match="would run code"):
        read_mit_weights(str(tmp_path / "pickled.bin"))


@pytest.mark.parametrize("spec", ["mit_b2_imagenet1k", "nvidia/mit-b2"])
def test_catalog_entry_brings_licence_and_needs_no_file(monkeypatch, tmp_path, spec):
    monkeypatch.setattr(mit, "fetch", lambda name: pytest.fail(f"fetched {name}"))
    assert mit_architecture_of(spec) == MIT_BACKBONES["mit_b2"]
    save_file(published(), tmp_path / "model.safetensors")
    monkeypatch.setattr(mit, "fetch", lambda name: tmp_path / "model.safetensors")
    provenance = read_mit_weights(spec).provenance
    assert (provenance["name"], provenance["source"]) == ("mit_b2_imagenet1k", "hub: nvidia/mit-b2/pytorch_model.bin")
    assert "NVIDIA" in provenance["licence"]


def test_what_is_no_mit_is_named(tmp_path):
    vit = VisionTransformer(BACKBONES["tiny"])
    write_weights(tmp_path / "vit.safetensors", vit.state_dict(), BACKBONES["tiny"], {}, "meddino")
    with pytest.raises(WeightsError, match="no Mix Transformer.*mit_b2_imagenet1k"):
        read_mit_weights(str(tmp_path / "vit.safetensors"))
    with pytest.raises(WeightsError, match="it is vitb16.*Unset MEDDINO_WEIGHTS"):
        read_mit_weights("dinov3_vitb16_lvd1689m")
    state = published()
    state["segformer.encoder.layer_norm.0.weight"][0] = torch.nan
    save_file(state, tmp_path / "nan.safetensors")
    with pytest.raises(WeightsError, match="NaN"):
        read_mit_weights(str(tmp_path / "nan.safetensors"))


def test_another_architecture_is_refused_and_nothing_loaded(folder):
    encoder = MixTransformer(MIT_BACKBONES["mit_b0"])
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    with pytest.raises(WeightsError, match="The weights are tiny"):
        load_into_mit(encoder, read_mit_weights(str(folder / "model.safetensors")))
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())
