"""The ViT against the golden DINOv3 backbones, timm's own forward, and closed forms of the stem."""

from __future__ import annotations

import inspect
import json
from dataclasses import replace

import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.models.eva import Eva

from nnunetv2_meddino.errors import ConfigurationError
from nnunetv2_meddino.networks.layers import adapt_stem, stem_input_channels
from nnunetv2_meddino.networks.rope import rope_table
from nnunetv2_meddino.networks.vit import BACKBONES, VisionTransformer, ViTConfig, evenly_spaced_blocks
from nnunetv2_meddino.weights.convert import to_native
from tests.conftest import shared_path

VARIANTS = ["hub_init_ls1e-5", "hub_rand", "medrel_rand", "noreg_untied_rand", "sevenb_like_rand"]
SMALL = ViTConfig(embed_dim=32, depth=2, num_heads=2, mlp_hidden=64)
OUTPUT = {"atol": 5e-5, "rtol": 1e-5}  # README of the golden data


def golden(variant: str) -> tuple[VisionTransformer, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return our network with a golden backbone's weights, that backbone's state, and its inputs and outputs."""
    folder = shared_path("golden/backbone")
    state = load_file(folder / f"{variant}.state.safetensors")
    settings = json.loads((folder / f"{variant}.config.json").read_text())["ctor"]
    converted = to_native(state)
    norm_eps = 1e-5 if "norm_layer" in settings and settings["norm_layer"] == "layernormbf16" else 1e-6
    vit = VisionTransformer(replace(converted.config, norm_eps=norm_eps)).eval()
    vit.load_state_dict(converted.tensors)
    return vit, state, load_file(folder / f"{variant}.io.safetensors")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("size", ["64x64", "48x80", "70x50"])
def test_outputs_and_intermediates_equal_golden(variant, size):
    vit, _, io = golden(variant)
    image = io[f"{size}/image"].float()
    height, width = (16 * (n // 16) for n in image.shape[-2:])  # the reference drops an incomplete patch
    image = image[..., :height, :width]
    depth = vit.config.depth
    with torch.no_grad():
        outputs = vit.forward_tokens(image, range(depth))
        maps = vit(image, [depth - 2, depth - 1])
        raw = vit.forward_tokens(image, [0], norm=False)[0]
    for i, tokens in enumerate(outputs):
        torch.testing.assert_close(tokens.patches, io[f"{size}/inter/{i}/patch"], **OUTPUT)
        torch.testing.assert_close(tokens.prefix[:, 0], io[f"{size}/inter/{i}/cls"], **OUTPUT)
        if vit.config.num_registers:
            torch.testing.assert_close(tokens.prefix[:, 1:], io[f"{size}/inter/{i}/storage"], **OUTPUT)
    torch.testing.assert_close(outputs[-1].prefix[:, 0], io[f"{size}/out/x_norm_clstoken"], **OUTPUT)
    if vit.config.num_registers:
        torch.testing.assert_close(outputs[-1].prefix[:, 1:], io[f"{size}/out/x_storage_tokens"], **OUTPUT)
    torch.testing.assert_close(outputs[-1].patches, io[f"{size}/out/x_norm_patchtokens"], **OUTPUT)
    torch.testing.assert_close(raw.patches, io[f"{size}/inter_nonorm/0/patch"], **OUTPUT)
    if f"{size}/inter_reshaped/{depth - 1}" in io:
        torch.testing.assert_close(maps[0], io[f"{size}/inter_reshaped/{depth - 2}"], **OUTPUT)
        torch.testing.assert_close(maps[1], io[f"{size}/inter_reshaped/{depth - 1}"], **OUTPUT)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_equal_golden(variant):
    vit, state, io = golden(variant)
    image = io["64x64/image"].float().requires_grad_()
    mask = io["64x64/mask"].view(-1, 1, 4, 4)
    token = state["mask_token"].view(1, -1, 1, 1).clone().requires_grad_()
    # the golden gradients are those of a masked image; masking itself is no part of this network
    vit.patch_embed.proj.register_forward_hook(lambda module, inputs, output: torch.where(mask, token, output))
    tokens = vit.forward_tokens(image, [vit.config.depth - 1])[0]
    ((io["grad/w_cls"] * tokens.prefix[:, 0]).sum() + (io["grad/w_patch"] * tokens.patches).sum()).backward()

    def check(actual: torch.Tensor, name: str) -> None:
        expected = io[name]
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4 * expected.abs().max().item() + 1e-5, msg=name)

    check(image.grad, "grad/d_image")
    check(token.grad.view(1, -1), "grad/d_param/mask_token")
    parameters = dict(vit.named_parameters())
    for name in (n for n in io if n.startswith("grad/d_param/") and not n.endswith("mask_token")):
        ours = name.removeprefix("grad/d_param/").replace("storage_tokens", "reg_token")
        ours = ours.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2")
        if ours.endswith("attn.qkv.bias"):
            block = ours.removesuffix("qkv.bias")
            thirds = dict(zip("qkv", io[name].chunk(3), strict=True))
            limit = 1e-4 * io[name].abs().max().item() + 1e-5
            for third in "qkv" if vit.config.k_bias else "qv":
                grad = parameters[f"{block}{third}_bias"].grad
                torch.testing.assert_close(grad, thirds[third], rtol=0, atol=limit)
        else:
            check(parameters[ours].grad, name)


@pytest.mark.parametrize("name", ["vits16", "vitb16", "vitl16"])
def test_named_backbones_are_timms(name):
    full = {"vits16": "small", "vitb16": "base", "vitl16": "large"}[name]
    with torch.device("meta"):
        reference = timm.create_model(f"vit_{full}_patch16_dinov3", num_classes=0)
        ours = VisionTransformer(BACKBONES[name])
    shapes = {k: v.shape for k, v in ours.state_dict().items()}
    assert shapes == {k: v.shape for k, v in reference.state_dict().items()}


def test_equals_timm_with_random_weights():
    torch.manual_seed(0)
    reference = timm.create_model("vit_small_patch16_dinov3", depth=3, num_classes=0).eval()
    ours = VisionTransformer(replace(BACKBONES["vits16"], depth=3)).eval()
    for parameter in reference.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    ours.load_state_dict(reference.state_dict())
    image = torch.randn(2, 3, 48, 64)
    with torch.no_grad():
        expected = reference.forward_intermediates(image, indices=[0, 2], norm=True, intermediates_only=True)
        for a, b in zip(ours(image, [0, 2]), expected, strict=True):
            assert torch.equal(a, b)


def timm_and_ours() -> tuple[torch.nn.Module, VisionTransformer]:
    """Return a small DINOv3 as timm builds it, LayerScale and all else random, and ours with its weights."""
    torch.manual_seed(0)
    reference = timm.create_model("vit_small_patch16_dinov3_qkvb", depth=4, num_classes=0).eval()
    for parameter in reference.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    ours = VisionTransformer(replace(BACKBONES["vits16"], depth=4, qkv_bias=True)).eval()
    ours.load_state_dict(reference.state_dict())
    return reference, ours


@torch.no_grad()
def test_forward_features_are_timms():
    reference, ours = timm_and_ours()
    image = torch.randn(2, 3, 48, 64)
    torch.testing.assert_close(ours.forward_features(image), reference.forward_features(image), rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"indices": 2},
        {"indices": [0, 2]},
        {"indices": (-1, 1)},  # in the order of the blocks
        {"indices": [1], "norm": True},
        {"indices": [1], "stop_early": True},
        {"indices": [0, 3], "return_prefix_tokens": True, "norm": True},
        {"indices": 1, "output_fmt": "NLC"},
        {"indices": 3, "intermediates_only": True},
    ],
    ids=str,
)
def test_forward_intermediates_are_timms(arguments):
    reference, ours = timm_and_ours()
    image = torch.randn(2, 3, 48, 64)
    expected = reference.forward_intermediates(image, **arguments)
    torch.testing.assert_close(ours.forward_intermediates(image, **arguments), expected, rtol=0, atol=1e-5)


def test_forward_intermediates_take_timms_arguments_by_position():
    ours, reference = (inspect.signature(c.forward_intermediates).parameters for c in (VisionTransformer, Eva))
    assert list(ours) == list(reference)
    assert [p.default for p in ours.values()] == [p.default for p in reference.values()]


@torch.no_grad()
def test_features_with_a_class_norm_of_their_own_and_of_any_size():
    torch.manual_seed(0)
    vit = VisionTransformer(replace(SMALL, untied_cls_norm=True), in_channels=1).eval()
    torch.nn.init.constant_(vit.cls_norm.weight, 3.0)
    image = torch.randn(1, 1, 20, 40)
    tokens, (features,) = vit.forward_intermediates(image, [1], norm=True)
    assert features.shape == (1, 32, 2, 3)
    expected = vit.forward_tokens(image, [1])[0]
    assert torch.equal(tokens, torch.cat(expected, dim=1))
    assert torch.equal(features.flatten(2).transpose(1, 2), expected.patches)
    with pytest.raises(ConfigurationError, match="NCHW or NLC"):
        vit.forward_intermediates(image, output_fmt="NHWC")


def test_every_public_method_is_our_own_or_torchs():
    # what is inherited from another network must work, and timm's classifiers and pruning have no place here
    public = {name for name in dir(VisionTransformer) if not name.startswith("_")} - set(dir(torch.nn.Module))
    assert public == {"block_class", "embed", "forward_features", "forward_intermediates", "forward_tokens"} | {
        *("grid_size", "rotation", "with_prefix")
    }


@pytest.mark.parametrize("tag", ["fp32_hd64", "fp32_hd32", "bf16_hd64"])
def test_rope_table_equals_golden_exactly(tag):
    io = load_file(shared_path("golden/ops/rope.safetensors"))
    dtype = torch.bfloat16 if tag.startswith("bf16") else torch.float32
    for height, width in ((2, 2), (3, 5), (7, 4)):
        sine, cosine = rope_table(height, width, int(tag[-2:]), dtype=dtype).chunk(2, dim=-1)
        assert torch.equal(sine, io[f"{tag}/{height}x{width}/sin"])
        assert torch.equal(cosine, io[f"{tag}/{height}x{width}/cos"])


def test_grey_stem_equals_repeating_the_image_in_forward_and_training():
    torch.manual_seed(0)
    grey, colour = VisionTransformer(SMALL, 1).double(), VisionTransformer(SMALL, 3).double()
    colour.load_state_dict(grey.state_dict())
    optimizers = [torch.optim.AdamW(v.parameters(), lr=1e-3, weight_decay=0.05) for v in (grey, colour)]
    for _ in range(5):
        image = torch.randn(2, 1, 32, 32, dtype=torch.float64)
        losses = [v(x, [1])[0].square().mean() for v, x in ((grey, image), (colour, image.expand(-1, 3, -1, -1)))]
        torch.testing.assert_close(*losses, rtol=1e-12, atol=0)
        for loss, optimizer in zip(losses, optimizers, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    torch.testing.assert_close(grey.patch_embed.proj.weight, colour.patch_embed.proj.weight, rtol=1e-9, atol=1e-12)


def test_stem_of_other_channel_counts():
    weight = torch.randn(8, 3, 16, 16, dtype=torch.float64)
    assert torch.equal(adapt_stem(weight, 1), weight)
    assert torch.equal(adapt_stem(weight, 3), weight)
    five = adapt_stem(weight, 5)
    assert torch.equal(five[:, 3], weight[:, 0] * (3 / 5))
    # equal channels: six of them respond as three did
    image = torch.randn(1, 1, 16, 16, dtype=torch.float64)
    six = torch.nn.functional.conv2d(image.expand(-1, 6, -1, -1), adapt_stem(weight, 6))
    torch.testing.assert_close(six, torch.nn.functional.conv2d(image.expand(-1, 3, -1, -1), weight))
    assert [stem_input_channels(c) for c in (1, 2, 3, 4)] == [3, 2, 3, 4]


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [(8, 9), (40, 56), (33, 16)])
def test_any_channels_and_any_size(channels, size):
    vit = VisionTransformer(SMALL, channels).eval()
    image = torch.randn(2, channels, *size)
    rows, columns = -(-size[0] // 16), -(-size[1] // 16)
    padded = torch.zeros(2, channels, rows * 16, columns * 16)
    padded[..., : size[0], : size[1]] = image
    with torch.no_grad():
        (out,) = vit(image, [1])
        assert out.shape == (2, 32, rows, columns)
        assert torch.equal(out, vit(padded, [1])[0])


def test_drop_path_has_the_same_rate_in_every_block_and_acts_in_training_only():
    vit = VisionTransformer(SMALL, drop_path=0.2)
    assert {b.drop_path1.drop_prob for b in vit.blocks} == {0.2} == {b.drop_path2.drop_prob for b in vit.blocks}
    for gamma in (g for b in vit.blocks for g in (b.gamma_1, b.gamma_2)):
        torch.nn.init.ones_(gamma)
    image = torch.randn(1, 3, 32, 32).expand(64, -1, -1, -1)
    with torch.no_grad():
        assert vit.train()(image, [1])[0].std(0).max() > 0.01
        assert vit.eval()(image, [1])[0].std(0).max() < 1e-4


def test_bfloat16_rotation_rounds_queries_and_keys():
    torch.manual_seed(0)
    exact = VisionTransformer(SMALL).eval()
    rounded = VisionTransformer(replace(SMALL, rope_dtype="bfloat16")).eval()
    for parameter in exact.parameters():
        torch.nn.init.normal_(parameter, std=1.0)
    rounded.load_state_dict(exact.state_dict())
    image = torch.randn(1, 3, 32, 48)
    with torch.no_grad():
        difference = (exact(image, [1])[0] - rounded(image, [1])[0]).abs().max()
    assert 1e-3 < difference < 10


def test_evenly_spaced_blocks_are_the_published_ones():
    assert evenly_spaced_blocks(12) == (2, 5, 8, 11)
    assert evenly_spaced_blocks(24) == (5, 11, 17, 23)
    assert evenly_spaced_blocks(4) == (0, 1, 2, 3)
    with pytest.raises(ConfigurationError, match="deeper backbone"):
        evenly_spaced_blocks(3)


def test_wrong_channels_and_impossible_widths_are_refused():
    with pytest.raises(ConfigurationError, match="has 2 channels, the network was built for 1"):
        VisionTransformer(SMALL, 1)(torch.zeros(1, 2, 32, 32), [1])
    with pytest.raises(ConfigurationError, match="channel_names"):
        VisionTransformer(SMALL, 0)
    with pytest.raises(ConfigurationError, match="multiple of 4"):
        ViTConfig(embed_dim=30, depth=2, num_heads=4, mlp_hidden=64)
    with pytest.raises(ConfigurationError, match="float32, bfloat16"):
        replace(SMALL, rope_dtype="float16")


def test_projections_start_with_the_same_spread_in_every_block():
    # DINOv3: truncated normal of 0.02 throughout; timm's EVA divides by sqrt(2 x block)
    torch.manual_seed(0)
    for block in VisionTransformer(BACKBONES["tiny"]).blocks:
        for weight in (block.attn.proj.weight, block.mlp.fc2.weight):
            assert weight.std().item() == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize(("name", "start"), [("tiny", 1.0), ("vits16", 1e-5)])
def test_blocks_of_a_new_network_start_at_the_layer_scale_and_those_of_weights_where_they_were(name, start):
    config = replace(BACKBONES[name], embed_dim=32, num_heads=2, mlp_hidden=64)
    vit = VisionTransformer(config)
    for block in vit.blocks:
        assert torch.equal(block.gamma_1, torch.full((32,), start))
        assert torch.equal(block.gamma_2, torch.full((32,), start))
    other = replace(config, layer_scale=0.5)
    assert other == config, "weights do not show it: networks of one architecture may have started anywhere"
    loaded = VisionTransformer(other)
    loaded.load_state_dict(vit.state_dict())
    assert torch.equal(loaded.blocks[0].gamma_1, vit.blocks[0].gamma_1)


@torch.no_grad()
def test_blocks_that_start_low_leave_tokens_as_they_are():
    image = torch.randn(2, 3, 64, 64)
    changes = []
    for scale in (1e-5, 1.0):
        torch.manual_seed(0)
        vit = VisionTransformer(replace(SMALL, layer_scale=scale))
        embedded = vit.embed(image)
        patches = vit.forward_tokens(image, [1], norm=False)[0].patches
        changes.append(float((patches - embedded).norm() / embedded.norm()))
    assert changes[0] < 1e-6
    assert changes[1] > 0.01
