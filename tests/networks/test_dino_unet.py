"""DINO U-Net: parameter counts against closed forms and the published ones, and the contract nnU-Net has with it."""

from __future__ import annotations

import pytest
import torch

from nnunetv2_meddino.errors import ConfigurationError
from nnunetv2_meddino.networks.dino_unet import FEATURES, RANK, DINOUNet, FidelityAwareProjection, UNetDecoder
from nnunetv2_meddino.networks.vit import BACKBONES, ViTConfig, evenly_spaced_blocks

SEVEN_B = ViTConfig(embed_dim=4096, depth=40, num_heads=32, mlp_hidden=8192, swiglu=True, untied_cls_norm=True)


def network(config: ViTConfig = BACKBONES["tiny"], channels: int = 1, classes: int = 3, **kwargs) -> DINOUNet:
    blocks = evenly_spaced_blocks(config.depth)
    return DINOUNet(channels, classes, **{"vit": config.to_dict(), "blocks": blocks, **kwargs})


def count(*modules: torch.nn.Module, trained: bool = True) -> int:
    return sum(p.numel() for m in modules for p in m.parameters() if p.requires_grad == trained)


@pytest.mark.parametrize(
    ("config", "frozen", "active"),
    # the released code's table: the ViT, and the "active" parameters, in millions; it leaves out the projection
    [(BACKBONES["vits16"], 22, 5), (BACKBONES["vitb16"], 86, 11), (BACKBONES["vitl16"], 300, 18), (SEVEN_B, 7000, 220)],
)
def test_parameter_counts_are_the_published_ones(config, frozen, active):
    with torch.device("meta"):
        built = network(config, channels=3, classes=2)
    assert count(built.encoder, trained=False) / 1e6 == pytest.approx(frozen, rel=0.05)
    assert count(built.encoder) == 0
    assert count(built.adapter, built.upsamplings, built.decoder) / 1e6 == pytest.approx(active, rel=0.05)


def test_trained_parameters_of_size_s_equal_the_released_codes():
    """Counted on the released code: 6 195 402 with 4 classes, 776 of them in two heads that are never used."""
    with torch.device("meta"):
        built = network(BACKBONES["vits16"], channels=3, classes=4)
    assert count(built) == 6_195_402 - 776


def test_projection_has_the_parameters_of_its_formula():
    dim = 96
    projection = FidelityAwareProjection(dim)
    expected = (dim + 1) * RANK  # the basis that all scales share
    for width in FEATURES:
        own, modulation = (dim + 1) * RANK, (RANK + 1) * 2 * RANK
        reduce, depthwise, pointwise = (RANK + 1) * width, 10 * width, (width + 1) * width
        norms, hidden = 4 * width, width // 16
        squeeze = (width + 1) * hidden + (hidden + 1) * width
        shortcut = 0 if width == RANK else reduce
        expected += own + modulation + reduce + depthwise + 2 * pointwise + norms + squeeze + shortcut
    assert count(projection) == expected


def test_projection_modulates_each_scale_by_the_shared_basis():
    torch.manual_seed(0)
    projection = FidelityAwareProjection(8).eval()
    maps = [torch.randn(1, 8, s, s) for s in (8, 4, 4, 4)]
    outputs = projection(maps)
    assert [m.shape[1] for m in outputs] == list(FEATURES)
    gain, shift = projection.modulations[3](projection.shared_basis(maps[3])).chunk(2, dim=1)
    modulated = gain * projection.bases[3](maps[3]) + shift
    expected = projection.refinements[3](modulated) + modulated  # 256 channels stay: the shortcut is the identity
    torch.testing.assert_close(outputs[3], expected)


def test_decoder_equals_nnunets_own():
    """The same weights in the U-Net decoder of dynamic-network-architectures give the same logits."""
    from dynamic_network_architectures.building_blocks.plain_conv_encoder import PlainConvEncoder
    from dynamic_network_architectures.building_blocks.unet_decoder import UNetDecoder as Reference
    from torch import nn

    torch.manual_seed(0)
    encoder = PlainConvEncoder(
        1, 4, FEATURES, nn.Conv2d, 3, [1, 2, 2, 2], 1, True, nn.InstanceNorm2d, {"affine": True}, nonlin=nn.LeakyReLU,
        return_skips=True,
    )  # fmt: skip
    reference = Reference(encoder, 5, 2, False)
    ours = UNetDecoder(5)
    state = reference.state_dict()
    renamed = {}
    for name in ours.state_dict():
        part, *rest = name.split(".")
        if part == "stages":
            position = int(rest[1])
            layer = ("conv", "norm")[position % 3]
            key = f"stages.{rest[0]}.convs.{position // 3}.{layer}.{rest[2]}"
        elif part == "ups":
            key = "transpconvs." + ".".join(rest)
        else:
            key = "seg_layers.2." + ".".join(rest)
        renamed[name] = state[key]
    ours.load_state_dict(renamed)
    skips = [torch.randn(2, width, 32 // 2**i, 32 // 2**i) for i, width in enumerate(FEATURES)]
    torch.testing.assert_close(ours(skips), reference(skips), atol=1e-5, rtol=1e-5)


def test_gradients_reach_everything_but_the_vit():
    built = network()
    built(torch.randn(2, 1, 64, 64)).square().mean().backward()
    for name, parameter in built.named_parameters():
        assert (parameter.grad is None) == name.startswith("encoder."), name


def test_wrong_arguments_are_named():
    for blocks in ([0, 1, 2], [0, 1, 1, 2], [0, 1, 2, 4], [-1, 0, 1, 2]):
        with pytest.raises(ConfigurationError, match="reads four of the 4 blocks"):
            network(blocks=blocks)
    with pytest.raises(ConfigurationError, match="deep supervision"):
        network(deep_supervision=True)
