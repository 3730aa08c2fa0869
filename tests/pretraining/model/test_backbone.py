"""The ViT of pretraining against golden backbones: masks, lists of crops, stochastic depth, rescaled positions."""

from __future__ import annotations

import json
import math
from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from nnunetv2_meddino.networks.rope import rope_table
from nnunetv2_meddino.networks.vit import VisionTransformer, ViTConfig
from pretraining.groups import Share
from pretraining.model.backbone import KeptRows, PretrainingViT, SubsetBlock
from tests.conftest import shared_path
from tests.pretraining.golden import native_backbone, under

VARIANTS = ["hub_init_ls1e-5", "hub_rand", "medrel_rand", "noreg_untied_rand", "sevenb_like_rand"]
OUTPUT = {"atol": 5e-5, "rtol": 1e-5}  # of the golden data
SMALL = ViTConfig(embed_dim=32, depth=3, num_heads=2, mlp_hidden=64)


def golden(variant):
    folder = shared_path("golden/backbone")
    settings = json.loads((folder / f"{variant}.config.json").read_text())["ctor"]
    norm_eps = 1e-5 if settings.get("norm_layer") == "layernormbf16" else 1e-6
    tensors, config = native_backbone(load_file(folder / f"{variant}.state.safetensors"), norm_eps=norm_eps)
    vit = PretrainingViT(config, untied_local_norm="local_cls_norm.weight" in tensors, in_channels=3).eval()
    vit.load_state_dict(tensors)
    return vit, load_file(folder / f"{variant}.io.safetensors")


def check(features, io, tag):
    torch.testing.assert_close(features.cls, io[f"{tag}/x_norm_clstoken"], **OUTPUT)
    torch.testing.assert_close(features.patches, io[f"{tag}/x_norm_patchtokens"], **OUTPUT)
    if features.registers.shape[1]:
        torch.testing.assert_close(features.registers, io[f"{tag}/x_storage_tokens"], **OUTPUT)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("size", ["64x64", "48x80", "70x50"])
def test_masked_and_plain_outputs_equal_golden(variant, size):
    vit, io = golden(variant)
    image = io[f"{size}/image"].float()
    with torch.no_grad():
        check(vit(image), io, f"{size}/out")
        if f"{size}/mask" in io:
            check(vit(image, io[f"{size}/mask"]), io, f"{size}/masked_out")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("mode", ["list_eval", "list_train"])
def test_global_and_local_crops_equal_golden(variant, mode):
    vit, io = golden(variant)
    vit.train(mode == "list_train")
    with torch.no_grad():
        check(vit(io["64x64/image"].float(), io["64x64/mask"]), io, f"{mode}/global")
        check(vit(io["list/local_image"].float(), local=True), io, f"{mode}/local")


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_equal_golden(variant):
    vit, io = golden(variant)
    image = io["64x64/image"].float().requires_grad_()
    features = vit(image, io["64x64/mask"])
    ((io["grad/w_cls"] * features.cls).sum() + (io["grad/w_patch"] * features.patches).sum()).backward()
    for name, actual in {"d_image": image.grad, "d_param/mask_token": vit.mask_token.grad}.items():
        expected = io[f"grad/{name}"]
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4 * expected.abs().max().item() + 1e-5)


@pytest.mark.parametrize("entry", [0, 1])
def test_block_with_left_out_samples_equals_golden(entry):
    data = load_file(shared_path("golden/ops/block_stochastic_depth.safetensors"))
    x, cos, sin = (data[f"{name}/{entry}"] for name in ("x", "rope_cos", "rope_sin"))
    width, heads = x.shape[-1], int(data["num_heads"])
    prefix = x.shape[1] - len(cos)
    norm = partial(nn.LayerNorm, eps=1e-5)
    block = SubsetBlock(
        width, heads, num_prefix_tokens=prefix, rotate_half=True, init_values=1.0, norm_layer=norm, qkv_bias=True
    )
    state = under(data, "state/")
    bias = state.pop("attn.qkv.bias") * state.pop("attn.qkv.bias_mask")
    state["attn.q_bias"], _, state["attn.v_bias"] = bias.chunk(3)
    state["gamma_1"], state["gamma_2"] = state.pop("ls1.gamma"), state.pop("ls2.gamma")
    block.load_state_dict(state)
    kept = int(data[f"kept/{entry}"])
    rows = KeptRows(*(data[f"perm_{branch}/{entry}"][:kept] for branch in ("attn", "mlp")), len(x) / kept)
    table = torch.cat([sin, cos], dim=-1)
    with torch.no_grad():
        torch.testing.assert_close(block(x, table), data[f"eval_out/{entry}"], atol=5e-5, rtol=1e-5)
        torch.testing.assert_close(block(x, table, rows), data[f"train_out/{entry}"], atol=5e-5, rtol=1e-5)


def test_rescaled_positions_equal_golden():
    data = load_file(shared_path("golden/ops/rope.safetensors"))
    scales = torch.cat([data[f"train_rescale/{i}/scale"] for i in range(4)])
    rows = data["train_rescale/0/sin"].shape[0]
    tables = {grid: rope_table(*grid, 32, scales=scales) for grid in ((3, 4), (4, 3), (2, 6), (6, 2))}
    expected = torch.stack([torch.cat([data[f"train_rescale/{i}/{n}"] for n in ("sin", "cos")], 1) for i in range(4)])
    assert rows == 12
    assert min((table - expected).abs().max().item() for table in tables.values()) <= 1e-6


def recorded(vit, image, generator, **arguments):
    """Return what each block was given: table and rows."""
    seen = []
    hooks = [b.register_forward_hook(lambda module, inputs, output: seen.append(inputs[1:])) for b in vit.blocks]
    vit(image, generator=generator, **arguments)
    for hook in hooks:
        hook.remove()
    return seen


def test_every_block_and_crop_size_draws_its_own_scale_and_samples():
    vit = PretrainingViT(SMALL, drop_path=0.3, rope_rescale=2.0)
    generator = torch.Generator().manual_seed(0)
    seen = recorded(vit, torch.randn(10, 1, 32, 32), generator) + recorded(vit, torch.randn(10, 1, 32, 32), generator)
    plain = vit.rotation((2, 2), torch.device("cpu"))
    angles = torch.stack([torch.atan2(t[:, :16], t[:, 16:]) for t, _ in seen])
    assert len({round(float(a[-1, 7]), 6) for a in angles}) == 6  # the longest period tells one scale from another
    scale = angles[:, -1, 7] / torch.atan2(plain[-1, 7], plain[-1, 23])
    assert bool(((scale >= 0.5) & (scale <= 2)).all())
    assert all(len(r) == len(set(r.tolist())) == 7 for _, rows in seen for r in rows[:2])
    assert all(rows.scale == 10 / 7 for _, rows in seen)
    assert len({tuple(r.tolist()) for _, rows in seen for r in rows[:2]}) == 12


def test_scales_are_log_uniform():
    vit = PretrainingViT(SMALL, rope_rescale=2.0)
    generator = torch.Generator().manual_seed(0)
    tables = [t for _ in range(400) for t in vit._tables((2, 2), torch.device("cpu"), generator)]
    base = vit.rotation((2, 2), torch.device("cpu"))
    angle = torch.stack([torch.atan2(t[-1, 7], t[-1, 23]) for t in tables]) / torch.atan2(base[-1, 7], base[-1, 23])
    logs = torch.log2(angle)
    assert abs(logs.mean()) < 0.05
    assert logs.var().item() == pytest.approx(4 / 12, rel=0.06)  # of a uniform distribution on [-1, 1]


def test_nothing_is_random_without_generator():
    vit = PretrainingViT(SMALL, drop_path=0.5, rope_rescale=2.0).train()
    image = torch.randn(4, 1, 32, 32)
    assert all(rows is None for _, rows in recorded(vit, image, None))
    plain = VisionTransformer(SMALL, 1).eval()
    plain.load_state_dict({k: v for k, v in vit.state_dict().items() if k != "mask_token"})
    torch.testing.assert_close(vit(image).patches, plain.forward_tokens(image, [2])[0].patches)


def test_same_generator_state_same_output_and_at_least_one_sample():
    vit = PretrainingViT(SMALL, drop_path=0.9, rope_rescale=2.0)
    image = torch.randn(2, 1, 32, 32)
    first, second, other = (vit(image, generator=torch.Generator().manual_seed(s)).patches for s in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    seen = recorded(vit, image, torch.Generator().manual_seed(0))
    assert all(len(r) == 1 for _, rows in seen for r in rows[:2])


@pytest.mark.parametrize("count", [8, 4, 2, 1])
def test_shares_of_a_group_leave_out_what_the_group_leaves_out(count):
    """Of 16 crops in strata of 4, 11 are computed (0.3 of 16 are left out): 2 or 3 of each stratum."""
    vit = PretrainingViT(SMALL, drop_path=0.3, rope_rescale=2.0)

    def drawn(start, count):
        generator = torch.Generator().manual_seed(0)
        return recorded(vit, torch.zeros(2 * count, 1, 32, 32), generator, share=Share(start, count, 8, 2))

    together, parts = drawn(0, 8), [drawn(start, count) for start in range(0, 8, count)]
    for number, (table, rows) in enumerate(together):
        assert all(torch.equal(part[number][0], table) for part in parts)
        assert {part[number][1].scale for part in parts} == {rows.scale} == {16 / 11}
        for branch in range(2):
            places = [
                crop * 8 + index * count + within
                for index, part in enumerate(parts)
                for crop, within in (divmod(row, count) for row in part[number][1][branch].tolist())
            ]
            assert sorted(places) == rows[branch].tolist()
            assert [sum(place % 8 // 2 == stratum for place in places) // 2 for stratum in range(4)] == [1] * 4


def test_every_sample_of_a_group_is_as_likely_to_be_computed():
    vit = PretrainingViT(SMALL, drop_path=0.3)
    generator = torch.Generator().manual_seed(0)
    times = torch.zeros(16)
    for _ in range(300):
        for rows in vit._kept_rows(16, Share(0, 8, 8, 2), torch.device("cpu"), generator):
            times[rows.attention] += 1
    share = times / (300 * len(vit.blocks))
    assert share.mean().item() == pytest.approx(11 / 16, rel=1e-6)
    assert (share - 11 / 16).abs().max() < 0.06


def test_half_patches_are_cut_off():
    vit = PretrainingViT(SMALL).eval()
    image = torch.randn(1, 1, 40, 56)
    torch.testing.assert_close(vit(image).patches, vit(image[..., :32, :48]).patches)
    assert vit(image).patches.shape == (1, 6, 32)


def test_autocast_with_left_out_samples():
    vit = PretrainingViT(SMALL, drop_path=0.3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = vit(torch.randn(4, 1, 32, 32), generator=torch.Generator().manual_seed(0)).patches
    out.float().sum().backward()
    assert math.isfinite(vit.patch_embed.proj.weight.grad.abs().sum().item())
