"""Resolving, reading, loading in place, saving, converting and inspecting."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from nnunetv2_meddino.errors import WeightsError
from nnunetv2_meddino.networks.vit import BACKBONES, VisionTransformer
from nnunetv2_meddino.weights import load
from nnunetv2_meddino.weights.catalog import CATALOG
from nnunetv2_meddino.weights.convert import from_native
from nnunetv2_meddino.weights.files import file_sha256, read_file
from nnunetv2_meddino.weights.load import (
    architecture_of,
    convert_file,
    inspect_file,
    load_into,
    read_weights,
    write_weights,
)
from tests.conftest import shared_path
from tests.weights.checkpoints import SMALL, features, pretrained, random_tensors

GOLDEN = "golden/checkpoint/meddinov3_layout_tiny"
OUTPUT = {"atol": 5e-5, "rtol": 1e-5}  # README of the golden data


@pytest.fixture
def release(tmp_path):
    """A file in the layout of the MedDINOv3 release."""
    path = tmp_path / "model.pth"
    torch.save(from_native(random_tensors(), SMALL, "meddinov3"), path)
    return path


def test_golden_release_checkpoint_gives_the_golden_features():
    weights = read_weights(str(shared_path(f"{GOLDEN}.pth")))
    stated = json.loads(shared_path(f"{GOLDEN}.json").read_text())["encoder"]
    config = weights.config
    assert (config.embed_dim, config.depth, config.num_heads) == (24, stated["depth"], stated["num_heads"])
    assert config.norm_eps == stated["norm_eps"]
    assert not config.qkv_bias
    io = load_file(shared_path(f"{GOLDEN}.io.safetensors"))
    network = VisionTransformer(config).eval()
    load_into(network, weights)
    with torch.no_grad():
        tokens = network.forward_tokens(io["image"].float(), [config.depth - 1])[0]
    torch.testing.assert_close(tokens.patches, io["rope_fp32_exact/x_norm_patchtokens"], **OUTPUT)
    torch.testing.assert_close(tokens.prefix[:, 0], io["rope_fp32_exact/x_norm_clstoken"], **OUTPUT)


def test_golden_release_checkpoint_survives_export(tmp_path):
    source = shared_path(f"{GOLDEN}.pth")
    weights = convert_file(str(source), tmp_path / "again.pth", "meddinov3")
    original, again = read_file(source).content["teacher"], read_file(tmp_path / "again.pth").content["teacher"]
    backbone = {name for name in original if name.startswith("backbone.")}
    assert set(again) == backbone
    assert set(weights.dropped) == {f"teacher.{n}" for n in set(original) - backbone} | {
        "teacher.backbone.mask_token",
        "teacher.backbone.rope_embed.periods",
    }
    for name in backbone - {"backbone.mask_token"}:
        assert again[name].dtype == original[name].dtype
        assert torch.equal(again[name], original[name]), name
    assert again["backbone.mask_token"].shape == original["backbone.mask_token"].shape


def test_our_own_file_keeps_architecture_and_origin(tmp_path, release):
    first = read_weights(str(release))
    config = replace(first.config, rope_dtype="bfloat16")
    path = tmp_path / "ours.safetensors"
    write_weights(path, first.tensors, config, {"licence": "mine", "steps": 7}, "meddino")
    weights = read_weights(str(path))
    assert weights.config == config == architecture_of(str(path))
    assert weights.provenance["format"] == "meddino"
    assert weights.provenance["licence"] == "mine"
    assert weights.provenance["derived_from"] == {"licence": "mine", "steps": 7}
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    assert (header["format"], header["format_version"]) == ("nnunetv2_meddino", "1")
    assert json.loads(header["architecture"]) == config.to_dict()


def test_provenance_says_what_was_read(release):
    weights = read_weights(str(release))
    assert weights.provenance["sha256"] == file_sha256(release)
    assert weights.provenance["size_bytes"] == release.stat().st_size
    assert weights.provenance["path"] == str(release)
    assert weights.provenance["format"] == "meddinov3"
    json.dumps(weights.provenance)


@pytest.mark.parametrize("layout", ["timm", "transformers"])
def test_exported_safetensors_keep_what_the_layout_cannot_show(tmp_path, release, layout):
    convert_file(str(release), tmp_path / "a.safetensors", layout)
    weights = read_weights(str(tmp_path / "a.safetensors"))
    assert weights.provenance["format"] == layout
    assert weights.config.norm_eps == 1e-6
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        assert file.metadata()["format"] == "pt"


def test_formats_have_their_own_file_ending(tmp_path, release):
    with pytest.raises(WeightsError, match=r"meta format is written to a \.pth file"):
        convert_file(str(release), tmp_path / "a.safetensors", "meta")
    with pytest.raises(WeightsError, match=r"written to a \.safetensors file"):
        write_weights(tmp_path / "a.pth", random_tensors(), SMALL, {}, "meddino")


def test_saving_refuses_what_is_not_the_architecture(tmp_path):
    tensors = random_tensors()
    tensors["norm.bias"] = tensors["norm.bias"] * float("nan")
    with pytest.raises(WeightsError, match=r"NaN.*norm\.bias"):
        write_weights(tmp_path / "a.safetensors", tensors, SMALL, {}, "meddino")
    with pytest.raises(WeightsError, match="missing"):
        write_weights(tmp_path / "a.safetensors", random_tensors(), replace(SMALL, depth=3), {}, "meddino")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("format_version", "2", "format version 2"),
        ("architecture", "{", "header.*damaged"),
        ("architecture", "[]", "header.*damaged"),
        ("architecture", '{"width": 3}', "no architecture that this version knows"),
        ("architecture", json.dumps(replace(SMALL, depth=3).to_dict()), "depth is 2, not 3"),
        ("provenance", "x", "header.*damaged"),
    ],
)
def test_a_header_that_is_wrong_is_an_error(tmp_path, key, value, expected):
    path = tmp_path / "a.safetensors"
    write_weights(path, random_tensors(), SMALL, {}, "meddino")
    header = read_file(path).metadata
    save_file(random_tensors(), path, header | {key: value})
    with pytest.raises(WeightsError, match=expected):
        read_weights(str(path))


def test_loading_is_in_place_and_complete():
    network = VisionTransformer(SMALL)
    before = {name: (p, p.data_ptr()) for name, p in network.named_parameters()}
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    weights = pretrained()
    report = load_into(network, weights)
    assert report.loaded == sorted(weights.tensors)
    assert all(p is before[n][0] and p.data_ptr() == before[n][1] for n, p in network.named_parameters())
    assert all(torch.equal(tensor, weights.tensors[name]) for name, tensor in network.state_dict().items())
    network.norm.bias.grad = torch.ones(64)
    optimizer.step()
    assert torch.equal(network.state_dict()["norm.bias"], weights.tensors["norm.bias"] - 1)
    assert network.norm.weight.requires_grad


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6])
def test_the_stem_fits_any_number_of_channels(channels):
    weights = pretrained()
    network = VisionTransformer(SMALL, in_channels=channels).eval()
    load_into(network, weights)
    grey = torch.randn(1, 1, 32, 32)
    with torch.no_grad():
        tokens = torch.cat(network.forward_tokens(grey.expand(-1, channels, -1, -1), [1])[0], dim=1)
    if channels % 3 == 0 or channels == 1:
        expected = features(SMALL, weights.tensors, grey.expand(-1, 3, -1, -1))
        torch.testing.assert_close(tokens, expected, atol=1e-5, rtol=1e-5)


def test_zero_biases_are_dropped_for_a_network_without(caplog):
    biased = replace(SMALL, qkv_bias=True)
    weights = pretrained(biased)
    zeroed = {n: torch.zeros_like(t) if n.endswith("_bias") else t for n, t in weights.tensors.items()}
    report = load_into(VisionTransformer(SMALL), replace(weights, tensors=zeroed))
    assert report.dropped["blocks.0.attn.q_bias"].startswith("zero")
    assert "blocks.0.attn.q_bias" in zeroed
    zeroed["blocks.1.attn.v_bias"][5] = 1e-8
    with pytest.raises(WeightsError, match=r"the network has no .*blocks\.1\.attn\.v_bias.*not zero"):
        load_into(VisionTransformer(SMALL), replace(weights, tensors=zeroed))


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (replace(SMALL, embed_dim=128, num_heads=2), r"is \(.*64.*\) in the weights, \(.*128.*\) in the network"),
        (replace(SMALL, depth=3), r"the weights have no blocks\.2"),
        (replace(SMALL, depth=1), r"the network has no blocks\.1"),
        (replace(SMALL, num_heads=2), "1 heads in the weights, 2 in the network"),
        (replace(SMALL, qkv_bias=True), r"the weights have no blocks\.0\.attn\.q_bias"),
        (replace(SMALL, num_registers=2), r"reg_token is \(1, 4, 64\) in the weights, \(1, 2, 64\)"),
    ],
)
def test_another_network_is_an_error_and_stays_untouched(target, expected):
    network = VisionTransformer(target)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(WeightsError, match=expected) as caught:
        load_into(network, pretrained())
    assert "MEDDINO_BACKBONE" in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_extra_missing_and_nan_tensors_are_errors():
    weights = pretrained()
    extra = replace(weights, tensors=weights.tensors | {"surprise": torch.ones(1)})
    with pytest.raises(WeightsError, match="the network has no surprise"):
        load_into(VisionTransformer(SMALL), extra)
    fewer = {n: t for n, t in weights.tensors.items() if n != "reg_token"}
    with pytest.raises(WeightsError, match="the weights have no reg_token"):
        load_into(VisionTransformer(SMALL), replace(weights, tensors=fewer))
    nan = weights.tensors | {"norm.bias": torch.full((64,), float("nan"))}
    with pytest.raises(WeightsError, match=r"NaN.*norm\.bias"):
        load_into(VisionTransformer(SMALL), replace(weights, tensors=nan))


def test_another_epsilon_is_warned_about(caplog):
    with caplog.at_level(logging.WARNING):
        load_into(VisionTransformer(replace(SMALL, norm_eps=1e-6)), pretrained())
    assert "epsilon" in caplog.text


def test_catalog_architectures_need_no_file(monkeypatch):
    monkeypatch.setattr(load, "fetch", lambda name: pytest.fail(f"fetched {name}"))
    for name, entry in CATALOG.items():
        if entry.backbone not in BACKBONES:
            with pytest.raises(WeightsError, match=f"holds no ViT but {entry.backbone}"):
                architecture_of(name)
            continue
        assert architecture_of(name) == entry.architecture
        assert architecture_of(entry.repository) == entry.architecture


@pytest.fixture
def small_catalog(monkeypatch, tmp_path):
    """The catalog with an entry of the small architecture, and a folder in place of the hub."""
    entry = replace(CATALOG["dinov3_vitb16_lvd1689m"], name="small", repository="org/small", architecture=SMALL)
    monkeypatch.setitem(CATALOG, "small", entry)
    monkeypatch.setattr(load, "fetch", lambda name: tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize("spec", ["small", "org/small", "hf-hub:org/small", "org/small:model.safetensors"])
def test_a_catalog_name_brings_licence_and_statistics(small_catalog, spec):
    save_file(from_native(random_tensors(), SMALL, "timm"), small_catalog)
    weights = read_weights(spec)
    assert weights.config == SMALL
    assert weights.provenance["name"] == "small"
    assert weights.provenance["source"] == "hub: org/small/model.safetensors"
    assert weights.provenance["licence"] == "DINOv3 License"
    assert weights.provenance["input_statistics"]["mean"] == (0.485, 0.456, 0.406)


def test_a_catalog_file_of_another_size_is_an_error(small_catalog):
    other = replace(SMALL, depth=3)
    save_file(from_native(random_tensors(other), other, "timm"), small_catalog)
    with pytest.raises(WeightsError, match="depth is 3, not 2"):
        read_weights("small")


def test_a_catalog_file_may_have_zero_biases_only(small_catalog):
    biased = replace(SMALL, qkv_bias=True)
    tensors = from_native(random_tensors(biased), biased, "transformers")
    save_file(tensors, small_catalog)
    with pytest.raises(WeightsError, match="qkv_bias is True, not False"):
        read_weights("small")
    save_file({n: torch.zeros_like(t) if "_proj.bias" in n and "attention" in n else t for n, t in tensors.items()
               if "o_proj.bias" not in n} | {n: t for n, t in tensors.items() if "o_proj.bias" in n},
              small_catalog)  # fmt: skip
    weights = read_weights("small")
    assert weights.config == SMALL
    assert len([name for name in weights.dropped if name.endswith("_bias")]) == 4


def test_an_existing_file_wins_over_a_catalog_name(small_catalog, monkeypatch, release):
    monkeypatch.chdir(release.parent)
    release.rename(release.parent / "small")
    assert read_weights("small").provenance["format"] == "meddinov3"


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(WeightsError, match="Did you mean dinov3_vitb16_lvd1689m"):
        read_weights("dinov3_vitb16_lvd")
    with pytest.raises(WeightsError, match="meddinov3_vitb16_ct3m") as caught:
        read_weights("xyz")
    assert "Did you mean" not in str(caught.value)


@pytest.mark.parametrize("spec", ["weights/model.pth", "./absent", "/absent/model.bin", "~/absent.pth", "a/b/c"])
def test_a_missing_file_is_not_looked_for_on_the_hub(spec, monkeypatch):
    monkeypatch.setattr(load, "fetch", lambda name: pytest.fail(f"fetched {name}"))
    with pytest.raises(WeightsError, match="no such file|No such file"):
        read_weights(spec)


def test_inspection_summarises(release):
    summary = inspect_file(release)
    assert (summary.format, summary.backbone) == ("meddinov3", None)
    assert summary.architecture == replace(SMALL, norm_eps=1e-6)
    assert summary.parameters == sum(tensor.numel() for tensor in random_tensors().values())
    assert summary.tensor_count == len(random_tensors())
    assert len(summary.dropped) == 2
    assert summary.sha256 == file_sha256(release)


def test_the_backbone_of_known_sizes_is_named():
    for name, config in BACKBONES.items():
        assert load.backbone_name(replace(config, norm_eps=1e-6, qkv_bias=True)) == name
    assert load.backbone_name(replace(BACKBONES["vitb16"], depth=3)) is None
