"""Low-rank adapters against the plain ViT with the weights that the paper's formula gives, computed by numpy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from nnunetv2_meddino.networks.lora import add_adapters, base_tensors, is_adapter, merge_adapters
from nnunetv2_meddino.networks.meddinov3 import MedDINOv3
from nnunetv2_meddino.networks.vit import BACKBONES, VisionTransformer, ViTConfig

SMALL = ViTConfig(embed_dim=32, depth=2, num_heads=2, mlp_hidden=64)
BIASED = replace(SMALL, qkv_bias=True)
RANK, ALPHA = 4, 12.0
VIT_B_ENCODER = 85_641_216
"""By hand: tokens 5 x 768; stem 768 x 3 x 16 x 16 + 768; twelve blocks of 2 norms (2 x 768), 2 scales (768), qkv
2304 x 768, proj 768 x 768 + 768 and an MLP of 3072 x 768 + 3072 and 768 x 3072 + 768; a norm."""


def plain_vit(config: ViTConfig = SMALL) -> VisionTransformer:
    """Return a ViT in which every parameter matters."""
    torch.manual_seed(1)
    vit = VisionTransformer(config, in_channels=1).eval()
    for parameter in vit.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return vit


def adapted_vit(config: ViTConfig = SMALL, *, trained: bool) -> VisionTransformer:
    """Return the same with adapters, as they are at first or as if they had been trained."""
    vit = plain_vit(config)
    add_adapters(vit, RANK, ALPHA)
    for name, parameter in vit.named_parameters():
        if trained and is_adapter(name):
            torch.nn.init.normal_(parameter, std=0.3)
    return vit


def features(vit: VisionTransformer) -> torch.Tensor:
    image = torch.randn(2, 1, 48, 32, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        return vit.forward_features(image)


@pytest.mark.parametrize("config", [SMALL, BIASED])
def test_fresh_adapters_change_nothing(config):
    assert torch.equal(features(adapted_vit(config, trained=False)), features(plain_vit(config)))


@pytest.mark.parametrize("config", [SMALL, BIASED])  # with biases, timm reads the weight and calls no layer
def test_adapters_add_alpha_over_rank_times_their_product_to_qkv_and_proj(config):
    vit, expected = adapted_vit(config, trained=True), plain_vit(config)
    for block, reference in zip(vit.blocks, expected.blocks, strict=True):
        for name in ("qkv", "proj"):
            update = getattr(block.attn, name).parametrizations.weight[0]
            up, down = (m.detach().numpy().astype(np.float64) for m in (update.up, update.down))
            assert (up.shape[1], down.shape[0]) == (RANK, RANK)
            weight = getattr(reference.attn, name).weight
            weight.data = torch.from_numpy(weight.detach().numpy() + 12 / 4 * up @ down).float()
    result = features(vit)
    torch.testing.assert_close(result, features(expected), atol=2e-5, rtol=2e-5)
    assert (result - features(plain_vit(config))).abs().max() > 0.1


@pytest.mark.parametrize("config", [SMALL, BIASED])
def test_merged_weights_compute_the_same_to_the_bit(config):
    vit, merged = adapted_vit(config, trained=True), VisionTransformer(config, in_channels=1).eval()
    merged.load_state_dict(merge_adapters(vit.state_dict(), ALPHA))
    assert torch.equal(features(merged), features(vit))


def test_merged_weights_compute_the_same_under_autocast():
    """The product is not rounded to 16 bits, as a matrix product under autocast would be."""
    vit, merged = adapted_vit(trained=True), VisionTransformer(SMALL, in_channels=1).eval()
    merged.load_state_dict(merge_adapters(vit.state_dict(), ALPHA))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(features(merged), features(vit))


def test_the_base_is_the_plain_vit_under_its_names():
    base, plain = base_tensors(adapted_vit(trained=True)), plain_vit().state_dict()
    assert base.keys() == plain.keys()
    assert all(torch.equal(base[name], plain[name]) for name in plain)


def test_compiled_without_a_break_it_computes_the_same():
    vit = adapted_vit(trained=True)
    expected = features(vit)
    vit.forward_features = torch.compile(vit.forward_features, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(features(vit), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "trained"),
    [
        ({}, VIT_B_ENCODER),
        ({"frozen": True}, 0),
        ({"lora": {"rank": 8, "alpha": 16}}, 12 * 8 * ((768 + 2304) + (768 + 768))),
    ],
)
def test_as_many_parameters_of_vit_b_are_trained_as_by_hand(options, trained):
    network = MedDINOv3(1, 3, vit=BACKBONES["vitb16"].to_dict(), blocks=[2, 5, 8, 11], **options)
    counts = [p.numel() for p in network.encoder.parameters() if p.requires_grad]
    assert sum(counts) == trained
    assert all(p.requires_grad for p in network.decoder.parameters())
    frozen = sum(p.numel() for p in network.encoder.parameters()) - trained
    assert frozen == (VIT_B_ENCODER if options else 0)
