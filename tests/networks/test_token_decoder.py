"""The token decoder against a plain convolutional one, the golden Primus networks, and a closed form."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.plain_primus import ChannelFirstDecoder, load_published
from nnunetv2_meddino.errors import ConfigurationError
from nnunetv2_meddino.networks import token_decoder
from nnunetv2_meddino.networks.token_decoder import TokenDecoder, leaf_order


def randomised(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


def pair(num_maps: int = 2, dim: int = 32, num_classes: int = 5, **kwargs) -> tuple[ChannelFirstDecoder, TokenDecoder]:
    """A convolutional decoder with random weights, and the token decoder with the same ones."""
    reference = randomised(ChannelFirstDecoder(dim * num_maps, num_classes))
    decoder = TokenDecoder(dim, num_maps, num_classes, **kwargs)
    load_published(decoder, reference.state_dict())
    return reference, decoder


def tokens(batch: int, grid: tuple[int, int], num_maps: int = 2, dim: int = 32) -> list[torch.Tensor]:
    return [torch.randn(batch, grid[0] * grid[1], dim) for _ in range(num_maps)]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("kwargs", [{}, {"checkpointing": True}], ids=["plain", "checkpointed"])
def test_equals_convolutional_decoder_with_gradients(monkeypatch, kwargs):
    monkeypatch.setattr(token_decoder, "CHUNK_TOKENS", 7)
    reference, decoder = (m.double() for m in pair(**kwargs))
    grid = (3, 5)
    maps = [m.double().requires_grad_() for m in tokens(2, grid)]
    weight = torch.randn(2, 5, 48, 80, dtype=torch.float64)
    expected = reference(maps, grid)
    expected_grads = torch.autograd.grad((expected * weight).sum(), [*maps, *reference.parameters()])
    actual = decoder(maps, grid)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    (actual * weight).sum().backward()
    for m, grad in zip(maps, expected_grads, strict=False):
        torch.testing.assert_close(m.grad, grad, rtol=1e-9, atol=1e-9)
    stage, first = decoder.stages[0], expected_grads[len(maps)]
    torch.testing.assert_close(stage.weight.grad, first.permute(2, 3, 1, 0).reshape(stage.weight.shape))
    torch.testing.assert_close(stage.bias.grad, expected_grads[len(maps) + 1])


@pytest.mark.parametrize("chunk", [1, 7, 10_000])
def test_chunked_inference_equals_training_forward(monkeypatch, chunk):
    monkeypatch.setattr(token_decoder, "CHUNK_TOKENS", chunk)
    _, decoder = pair()
    maps = tokens(3, (4, 6))
    expected = decoder(maps, (4, 6)).detach()
    with torch.no_grad():
        torch.testing.assert_close(decoder(maps, (4, 6)), expected)


def test_leaf_order_is_z_order_for_two_stages():
    # rows of a 4x4 patch written down by hand: child 2 dy + dx of child 2 dy + dx
    assert leaf_order(2).view(4, 4).tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]


def test_a_token_changes_its_own_pixels_only():
    _, decoder = pair()
    maps = tokens(1, (3, 4))
    with torch.no_grad():
        before = decoder(maps, (3, 4))
        maps[1][0, 1 * 4 + 2] += 1.0
        changed = (decoder(maps, (3, 4)) != before).any(1)[0]
    rows, columns = torch.where(changed)
    assert (rows.min().item(), rows.max().item()) == (16, 31)
    assert (columns.min().item(), columns.max().item()) == (32, 47)


def test_initialisation_is_that_of_nnunet_on_the_convolutions():
    decoder = TokenDecoder(256, 4, 14)
    for stage in decoder.stages:
        out_channels, in_channels = stage.bias.numel(), stage.weight.shape[1]
        conv = nn.ConvTranspose2d(in_channels, out_channels, 2, 2)
        nn.init.kaiming_normal_(conv.weight, a=1e-2)
        assert stage.weight.std().item() == pytest.approx(conv.weight.std().item(), rel=0.05)
        assert stage.bias.abs().max() == 0


def test_project_variant_decodes_the_embedding_width():
    decoder = TokenDecoder(32, 4, 3, aggregation="project")
    assert [s.weight.shape[1] for s in decoder.stages] == [32, 16, 8, 4]
    maps = tokens(2, (2, 3), num_maps=4)
    decoder(maps, (2, 3)).sum().backward()
    assert decoder.project.weight.grad.abs().sum() > 0
    with torch.no_grad():
        projected = decoder.project(torch.cat(maps, -1))
        plain = TokenDecoder(32, 1, 3)
        plain.load_state_dict({k: v for k, v in decoder.state_dict().items() if not k.startswith("project")})
        torch.testing.assert_close(decoder(maps, (2, 3)), plain([projected], (2, 3)))


def test_autocast_computes_and_returns_the_autocast_type():
    reference, decoder = pair()
    maps = tokens(1, (2, 2))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        out = decoder(maps, (2, 2))
    expected = reference(maps, (2, 2)).detach()
    assert out.dtype == torch.bfloat16
    assert (out.float() - expected).abs().mean() < 0.02 * expected.abs().mean()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [({"aggregation": "sum"}, "concat, project"), ({"patch_size": 12}, "power of 2"), ({"embed_dim": 8}, "wider")],
)
def test_impossible_settings_are_refused(kwargs, message):
    with pytest.raises(ConfigurationError, match=message):
        TokenDecoder(**{"embed_dim": 32, "num_maps": 1, "num_classes": 2, **kwargs})
