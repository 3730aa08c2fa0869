"""SegFormer against the transformers library's whole model and the paper's parameter counts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from nnunetv2_meddino.errors import ConfigurationError
from nnunetv2_meddino.networks.mit import MIT_BACKBONES, MiTConfig
from nnunetv2_meddino.networks.segformer import SegFormer

TINY = MIT_BACKBONES["tiny"].to_dict()


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("name", "encoder", "decoder"),
    # SegFormer paper, table 1a: parameters in millions, with the 150 classes of ADE20K
    [("mit_b0", 3.4, 0.4), ("mit_b1", 13.1, 0.6), ("mit_b2", 24.2, 3.3), ("mit_b3", 44.0, 3.3), ("mit_b5", 81.4, 3.3)],
)
def test_parameter_counts_are_the_published_ones(name, encoder, decoder):
    with torch.device("meta"):
        network = SegFormer(3, 150, mit=MIT_BACKBONES[name].to_dict())
    assert parameters(network.encoder) / 1e6 == pytest.approx(encoder, abs=0.15)
    assert parameters(network.decoder) / 1e6 == pytest.approx(decoder, abs=0.15)


def test_logits_are_those_of_the_library():
    torch.manual_seed(0)
    config = MIT_BACKBONES["tiny"]
    reference = SegformerForSemanticSegmentation(
        SegformerConfig(
            hidden_sizes=list(config.hidden_sizes),
            depths=list(config.depths),
            num_attention_heads=list(config.num_heads),
            decoder_hidden_size=config.decoder_dim,
            num_labels=4,
        )
    ).eval()
    network = SegFormer(3, 4, mit=TINY).eval()
    network.encoder.load_state_dict(reference.segformer.state_dict())
    network.decoder.load_state_dict(reference.decode_head.state_dict())
    image = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected = F.interpolate(reference(image).logits, size=(64, 96), mode="bilinear", align_corners=False)
        torch.testing.assert_close(network(image), expected, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(
            network(image[:, :, :50, :70]), network(F.pad(image[:, :, :50, :70], (0, 26, 0, 14)))[:, :, :50, :70]
        )


def test_a_grey_image_is_three_equal_channels():
    torch.manual_seed(0)
    grey, colour = SegFormer(1, 2, mit=TINY).eval(), SegFormer(3, 2, mit=TINY).eval()
    colour.load_state_dict(grey.state_dict())
    image = torch.randn(1, 1, 32, 32)
    assert torch.equal(grey(image), colour(image.expand(-1, 3, -1, -1)))


def test_architecture_survives_json():
    config = MIT_BACKBONES["mit_b3"]
    assert MiTConfig.from_dict(config.to_dict()) == config
    assert isinstance(config.to_dict()["depths"], list)


def test_wrong_input_is_named():
    with pytest.raises(ConfigurationError, match="2 channels, the network was built for 1"):
        SegFormer(1, 2, mit=TINY)(torch.zeros(1, 2, 32, 32))
    with pytest.raises(ConfigurationError, match="deep supervision"):
        SegFormer(1, 2, mit=TINY, deep_supervision=True)
    with pytest.raises(ConfigurationError, match="0 channels"):
        SegFormer(0, 2, mit=TINY)
