"""Every layout to our names and back: golden checkpoints, timm's own converter, names of the real transformers."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import partial

import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.models.eva import Eva, checkpoint_filter_fn
from torch import Tensor, nn

from nnunetv2_meddino.errors import WeightsError
from nnunetv2_meddino.networks.vit import BACKBONES, VisionTransformer, ViTConfig
from nnunetv2_meddino.weights.convert import FORMATS, from_native, to_native
from nnunetv2_meddino.weights.formats import flatten
from tests.conftest import shared_path
from tests.weights.checkpoints import SMALL, features, random_tensors

VARIANTS = ("hub_init_ls1e-5", "hub_rand", "medrel_rand", "noreg_untied_rand", "sevenb_like_rand")
OUTPUT = {"atol": 5e-5, "rtol": 1e-5}  # README of the golden data
EVERYTHING = replace(SMALL, swiglu=True, qkv_bias=True, k_bias=True, untied_cls_norm=True)


def golden_state(variant: str) -> dict[str, Tensor]:
    return load_file(shared_path(f"golden/backbone/{variant}.state.safetensors"))


@pytest.mark.parametrize("variant", VARIANTS)
def test_golden_architectures_are_inferred(variant):
    built_with = json.loads(shared_path(f"golden/backbone/{variant}.config.json").read_text())["ctor"]
    converted = to_native(golden_state(variant))
    config = converted.config
    assert converted.format == "meta"
    assert (config.embed_dim, config.depth) == (built_with["embed_dim"], built_with["depth"])
    assert (config.num_heads, config.patch_size) == (built_with["num_heads"], built_with["patch_size"])
    assert config.num_registers == built_with["n_storage_tokens"]
    assert config.qkv_bias == built_with["qkv_bias"]
    assert config.k_bias == (built_with["qkv_bias"] and not built_with["mask_k_bias"])
    assert config.swiglu == built_with.get("ffn_layer", "mlp").startswith("swiglu")
    assert config.untied_cls_norm == built_with.get("untie_cls_and_patch_norms", False)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("size", ["64x64", "48x80"])
def test_golden_features_are_reproduced(variant, size):
    io = load_file(shared_path(f"golden/backbone/{variant}.io.safetensors"))
    converted = to_native(golden_state(variant))
    norm_eps = 1e-6 if variant in ("medrel_rand", "noreg_untied_rand") else 1e-5  # no tensor shows it
    config = replace(converted.config, norm_eps=norm_eps)
    tokens = features(config, converted.tensors, io[f"{size}/image"].float())
    prefix = 1 + config.num_registers
    torch.testing.assert_close(tokens[:, prefix:], io[f"{size}/out/x_norm_patchtokens"], **OUTPUT)
    torch.testing.assert_close(tokens[:, 0], io[f"{size}/out/x_norm_clstoken"], **OUTPUT)


def test_every_golden_tensor_is_accounted_for():
    state = golden_state("sevenb_like_rand")
    dropped = to_native(state).dropped
    assert set(dropped) == {"mask_token", "rope_embed.periods", "local_cls_norm.weight", "local_cls_norm.bias"}


@pytest.mark.parametrize("swiglu", [False, True])
def test_our_conversion_of_meta_weights_is_timms(swiglu):
    config = replace(SMALL, qkv_bias=True, swiglu=swiglu)
    meta = from_native(random_tensors(config), config, "meta")
    oracle = Eva(
        num_classes=0, patch_size=16, embed_dim=64, depth=2, num_heads=1, mlp_ratio=1.5, qkv_bias=True,
        swiglu_mlp=swiglu, init_values=1e-5, num_reg_tokens=4, use_abs_pos_emb=False, use_rot_pos_emb=True,
        rope_type="dinov3", rope_temperature=100, rope_rotate_half=True, dynamic_img_size=True, use_fc_norm=False,
        swiglu_align_to=1 if swiglu else 0, norm_layer=partial(nn.LayerNorm, eps=1e-5),
    ).eval()  # fmt: skip
    oracle.load_state_dict(checkpoint_filter_fn(dict(meta), oracle), strict=True)
    converted = to_native(meta)
    assert converted.config == config
    image = torch.randn(2, 3, 48, 80, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = oracle.forward_features(image)
    torch.testing.assert_close(features(config, converted.tensors, image), expected, atol=1e-5, rtol=1e-5)


def test_state_dict_of_timms_dinov3_is_ours():
    model = timm.create_model("vit_small_patch16_dinov3", pretrained=False, num_classes=0, depth=2)
    converted = to_native(model.state_dict())
    assert converted.format == "timm"
    assert converted.config == ViTConfig(embed_dim=384, depth=2, num_heads=6, mlp_hidden=1536)
    assert not converted.dropped


# What DINOv3ViTModel.save_pretrained of transformers 4.56.0 and 5.23.0 writes (one block of a plain and of a gated
# MLP); both versions' own features were compared with ours to 4e-7 when this list was made.
TRANSFORMERS_NAMES = """
embeddings.cls_token embeddings.mask_token embeddings.patch_embeddings.bias embeddings.patch_embeddings.weight
embeddings.register_tokens norm.bias norm.weight layer.0.attention.k_proj.weight layer.0.attention.o_proj.bias
layer.0.attention.o_proj.weight layer.0.attention.q_proj.bias layer.0.attention.q_proj.weight
layer.0.attention.v_proj.bias layer.0.attention.v_proj.weight layer.0.layer_scale1.lambda1 layer.0.layer_scale2.lambda1
layer.0.mlp.down_proj.bias layer.0.mlp.down_proj.weight layer.0.mlp.up_proj.bias layer.0.mlp.up_proj.weight
layer.0.norm1.bias layer.0.norm1.weight layer.0.norm2.bias layer.0.norm2.weight
"""
TRANSFORMERS_GATE = "layer.0.mlp.gate_proj.bias layer.0.mlp.gate_proj.weight"


@pytest.mark.parametrize("swiglu", [False, True])
def test_transformers_export_has_exactly_the_real_names(swiglu):
    config = replace(SMALL, depth=1, qkv_bias=True, swiglu=swiglu)
    written = from_native(random_tensors(config), config, "transformers")
    assert set(written) == set((TRANSFORMERS_NAMES + (TRANSFORMERS_GATE if swiglu else "")).split())
    assert written["embeddings.mask_token"].shape == (1, 1, 64)
    attention = "layer.0.attention"
    joined = torch.cat([written[f"{attention}.{part}_proj.weight"] for part in "qkv"])
    assert torch.equal(joined, random_tensors(config)["blocks.0.attn.qkv.weight"])


def test_state_dict_of_transformers_5_is_read():
    written = from_native(random_tensors(), SMALL, "transformers")
    in_memory = {re.sub(r"^layer\.", "model.layer.", name): tensor for name, tensor in written.items()}
    assert_same(to_native(in_memory).tensors, random_tensors())


def test_transformers_model_and_ours_agree():
    transformers = pytest.importorskip("transformers")
    config = transformers.DINOv3ViTConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=1, intermediate_size=96, num_register_tokens=4
    )
    model = transformers.DINOv3ViTModel(config).eval()
    converted = to_native(model.state_dict())
    image = torch.randn(1, 3, 48, 80)
    with torch.no_grad():
        expected = model(image).last_hidden_state
    torch.testing.assert_close(features(converted.config, converted.tensors, image), expected, atol=1e-5, rtol=1e-5)


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    different = [name for name in expected if not torch.equal(actual[name], expected[name])]
    assert not different


@pytest.mark.parametrize("layout", FORMATS)
def test_every_format_and_back_is_bit_equal(layout):
    config = {
        "meddino": EVERYTHING,
        "meta": EVERYTHING,
        "timm": replace(SMALL, swiglu=True, qkv_bias=True),
        "transformers": replace(EVERYTHING, untied_cls_norm=False),
        "meddinov3": replace(SMALL, norm_eps=1e-6),
    }[layout]
    tensors = random_tensors(config)
    written = from_native(tensors, config, layout)
    back = to_native(written)
    assert back.format == {"meddino": "timm"}.get(layout, layout)
    assert back.config == config
    assert_same(back.tensors, tensors)


def test_no_registers_survive_every_layout():
    config = replace(SMALL, num_registers=0)
    for layout in ("meta", "timm", "transformers"):
        assert to_native(from_native(random_tensors(config), config, layout)).config == config


def test_key_bias_is_masked_where_the_file_says_so():
    config = replace(SMALL, qkv_bias=True)
    meta = from_native(random_tensors(config), config, "meta")
    meta["blocks.0.attn.qkv.bias"][64:128] = 5.0  # a trained but masked bias, as Meta's files may hold
    converted = to_native(meta)
    assert converted.config == config
    assert_same(converted.tensors, random_tensors(config))
    for block in range(2):
        del meta[f"blocks.{block}.attn.qkv.bias_mask"]
    unmasked = to_native(meta)
    assert unmasked.config.k_bias
    assert (unmasked.tensors["blocks.0.attn.k_bias"] == 5).all()
    assert not unmasked.tensors["blocks.1.attn.k_bias"].any()


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "backbone.", "model.", "state_dict.module.", "model.module.backbone.", "student."],
)
def test_wrappers_and_prefixes_are_seen_through(prefix):
    meta = from_native(random_tensors(), SMALL, "meta")
    prefixed = {f"{prefix}{name}".replace("norm1", "_checkpoint_wrapped_module.norm1"): t for name, t in meta.items()}
    assert_same(to_native(prefixed).tensors, random_tensors())
    nested = {"model": {"inner": prefixed}, "epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}}
    converted = to_native(nested)
    assert_same(converted.tensors, random_tensors())
    assert converted.dropped["epoch"] == "not a tensor (int)"
    assert converted.dropped["optimizer.state.0.exp_avg"] == "training state"


def test_of_several_networks_the_teacher_is_used():
    nested = {
        name: {"backbone": from_native(random_tensors(seed=seed), SMALL, "meta"), "dino_head": {"w": torch.ones(1)}}
        for seed, name in enumerate(["student", "gram_teacher", "teacher", "model_ema"])
    }
    converted = to_native(nested)
    assert_same(converted.tensors, random_tensors(seed=2))
    assert converted.dropped["teacher.dino_head.w"] == "a head of pretraining"
    assert "another copy" in converted.dropped["student.backbone.cls_token"]


def test_two_networks_that_cannot_be_told_apart_are_an_error():
    meta = from_native(random_tensors(), SMALL, "meta")
    with pytest.raises(WeightsError, match="2 Vision Transformers.*left.*right"):
        to_native({"left": meta, "right": meta})


@pytest.mark.parametrize(
    "name", ["blocks.0.attn.surprise", "teacher.mystery", "decoder.weight", "blocks.9.norm1.weight"]
)
def test_an_unknown_tensor_is_an_error_that_names_it(name):
    written = flatten(from_native(random_tensors(), SMALL, "meddinov3"))
    if name.startswith("blocks"):
        name = f"teacher.backbone.{name}"
    with pytest.raises(WeightsError, match=re.escape(name.removeprefix("teacher.backbone."))):
        to_native(written | {name: torch.ones(64)})


@pytest.mark.parametrize("layout", ["meddinov3", "transformers"])
def test_a_missing_tensor_is_an_error_that_names_it(layout):
    complete = flatten(from_native(random_tensors(), SMALL, layout))
    optional = ("mask_token", "periods", "reg_token", "storage_tokens", "register_tokens")  # a ViT may have none
    for name in complete:
        if name.endswith(optional) or "blocks.0" in name or "layer.0" in name:  # block 1 stands for all
            continue
        with pytest.raises(WeightsError, match="missing|no usable|no tensor is called cls_token"):
            to_native({n: t for n, t in complete.items() if n != name})


def test_a_wrong_shape_names_both_shapes():
    meta = from_native(random_tensors(), SMALL, "meta")
    meta["blocks.1.mlp.fc1.bias"] = torch.zeros(95)
    with pytest.raises(WeightsError, match=r"blocks\.1\.mlp\.fc1\.bias has shape \(95,\) instead of \(96,\)"):
        to_native(meta)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_is_an_error_that_names_the_tensor(value):
    meta = from_native(random_tensors(), SMALL, "meta")
    meta["blocks.1.ls2.gamma"][3] = value
    with pytest.raises(WeightsError, match=r"NaN.*blocks\.1\.gamma_2"):
        to_native(meta)


def test_integers_are_an_error():
    meta = from_native(random_tensors(), SMALL, "meta")
    meta["norm.bias"] = meta["norm.bias"].int()
    with pytest.raises(WeightsError, match=r"norm\.bias"):
        to_native(meta)


def test_another_rope_base_is_an_error():
    meta = from_native(random_tensors(), SMALL, "meta")
    meta["rope_embed.periods"] = 10_000 ** (torch.arange(16) / 16)
    with pytest.raises(WeightsError, match="rotary periods of base 100"):
        to_native(meta)
    meta["rope_embed.periods"] = torch.empty(0)
    with pytest.raises(WeightsError, match="rotary periods of base 100"):
        to_native(meta)
    meta["rope_embed.periods"] = (100 ** (torch.arange(16) / 16)).bfloat16()
    assert to_native(meta).config == SMALL


def test_width_without_known_heads_is_an_error():
    config = replace(SMALL, embed_dim=96, num_heads=3)
    timm_like = from_native(random_tensors(config), config, "timm")
    with pytest.raises(WeightsError, match="96.*multiple of the head width 64"):
        to_native(timm_like)
    assert to_native(timm_like, declared=config).config == config
    assert to_native(from_native(random_tensors(config), config, "meta")).config == config


def test_declared_architecture_is_held_to():
    meta = from_native(random_tensors(), SMALL, "meta")
    with pytest.raises(WeightsError, match="depth is 2, not 12"):
        to_native(meta, declared=replace(SMALL, depth=12))
    declared = replace(SMALL, norm_eps=1e-6, rope_dtype="bfloat16")
    assert to_native(meta, declared=declared).config == declared


def test_zero_biases_may_be_declared_absent_and_others_may_not():
    config = replace(SMALL, qkv_bias=True)
    tensors = random_tensors(config)
    with pytest.raises(WeightsError, match="qkv_bias is True, not False"):
        to_native(tensors, declared=SMALL)
    zero = {n: torch.zeros_like(t) if n.endswith("_bias") else t for n, t in tensors.items()}
    converted = to_native(zero, declared=SMALL)
    assert converted.config == SMALL
    assert sorted(converted.dropped) == sorted(n for n in tensors if n.endswith("_bias"))


def test_layer_norm_epsilon_follows_the_release():
    assert to_native(from_native(random_tensors(), SMALL, "meddinov3")).config.norm_eps == 1e-6
    for layout in ("meta", "timm", "transformers"):
        assert to_native(from_native(random_tensors(), SMALL, layout)).config.norm_eps == 1e-5


@pytest.mark.parametrize(
    ("layout", "setting"),
    [
        ("timm", "k_bias"),
        ("timm", "untied_cls_norm"),
        ("transformers", "untied_cls_norm"),
        ("meddinov3", "qkv_bias"),
        ("meddinov3", "swiglu"),
    ],
)
def test_export_refuses_what_the_format_cannot_hold(layout, setting):
    config = replace(SMALL, **{setting: True}, **({"qkv_bias": True} if setting == "k_bias" else {}))
    with pytest.raises(WeightsError, match=f"{layout} format cannot hold.*{setting}"):
        from_native(random_tensors(config), config, layout)


def test_export_leaves_out_zero_biases_that_the_format_cannot_hold():
    config = replace(SMALL, qkv_bias=True)
    tensors = {n: torch.zeros_like(t) if n.endswith("_bias") else t for n, t in random_tensors(config).items()}
    back = to_native(from_native(tensors, config, "meddinov3"))
    assert back.config == replace(SMALL, norm_eps=1e-6)


def test_unknown_format_lists_the_known():
    with pytest.raises(WeightsError, match="'onnx'.*transformers"):
        from_native(random_tensors(), SMALL, "onnx")


@pytest.mark.parametrize(
    "tensors", [{}, {"conv1.weight": torch.ones(1)}, {"cls_token": torch.ones(1, 1, 4), "pos_embed": torch.ones(1)}]
)
def test_other_models_are_refused(tensors):
    with pytest.raises(WeightsError, match="no DINOv3 ViT|not a DINOv3 ViT"):
        to_native(tensors)


def test_where_blocks_started_is_no_difference_of_architecture():
    config = BACKBONES["tiny"]
    with pytest.raises(WeightsError, match="declared to have: depth is 4, not 5. The file"):
        to_native(VisionTransformer(config).state_dict(), replace(config, depth=5))
