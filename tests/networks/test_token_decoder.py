"""The token decoder against a plain convolutional one, the golden Primus networks, and a closed form."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nnunetv2_meddino.errors import ConfigurationError, WeightsError
from nnunetv2_meddino.networks.token_decoder import TokenDecoder, leaf_order


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of a channel-first image, from its definition."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).square().mean(1, keepdim=True)
        normed = (x - mean) / (variance + 1e-6).sqrt()
        return normed * self.weight[None, :, None, None] + self.bias[None, :, None, None]


class ConvDecoder(nn.Module):
    """The Primus decoder as its paper draws it, in channel-first layout."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        for _ in range(4):
            stages.append(
                nn.Sequential(nn.ConvTranspose2d(width, width // 2, 2, 2), ChannelNorm(width // 2), nn.GELU())
            )
            width //= 2
        self.decode = nn.Sequential(*stages, nn.Conv2d(width, num_classes, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.decode(x)


def randomised(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


def pair(num_maps: int = 2, dim: int = 32, num_classes: int = 5, **kwargs) -> tuple[ConvDecoder, TokenDecoder]:
    """A convolutional decoder with random weights, and the token decoder with the same ones."""
    reference = randomised(ConvDecoder(dim * num_maps, num_classes))
    decoder = TokenDecoder(dim, num_maps, num_classes, **kwargs)
    decoder.load_reference_state_dict({f"up_projection.{k}": v for k, v in reference.state_dict().items()})
    return reference, decoder


def tokens(batch: int, grid: tuple[int, int], num_maps: int = 2, dim: int = 32) -> list[torch.Tensor]:
    return [torch.randn(batch, grid[0] * grid[1], dim) for _ in range(num_maps)]


def as_image(maps: list[torch.Tensor], grid: tuple[int, int]) -> torch.Tensor:
    return torch.cat([m.transpose(1, 2).unflatten(2, grid) for m in maps], dim=1)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("kwargs", [{}, {"chunk_tokens": 7, "checkpointing": True}], ids=["plain", "checkpointed"])
def test_equals_convolutional_decoder_with_gradients(kwargs):
    reference, decoder = (m.double() for m in pair(**kwargs))
    grid = (3, 5)
    maps = [m.double().requires_grad_() for m in tokens(2, grid)]
    weight = torch.randn(2, 5, 48, 80, dtype=torch.float64)
    expected = reference(as_image(maps, grid))
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
def test_chunked_inference_equals_training_forward(chunk):
    _, decoder = pair(chunk_tokens=chunk)
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


def test_reference_layout_round_trips():
    reference, decoder = pair()
    for name, tensor in decoder.reference_state_dict().items():
        assert torch.equal(tensor, reference.state_dict()[name.removeprefix("up_projection.")]), name


@pytest.mark.parametrize("change", ["missing", "unknown", "shape"])
def test_foreign_reference_weights_are_refused(change):
    _, decoder = pair()
    state = decoder.reference_state_dict()
    if change == "missing":
        del state["up_projection.decode.2.0.bias"]
    elif change == "unknown":
        state["up_projection.decode.9.bias"] = torch.zeros(1)
    else:
        state["up_projection.decode.0.0.weight"] = torch.zeros(2, 2, 2, 2)
    before = {k: v.clone() for k, v in decoder.state_dict().items()}
    with pytest.raises(WeightsError, match=r"decode\.[029]"):
        decoder.load_reference_state_dict(state)
    assert all(torch.equal(v, before[k]) for k, v in decoder.state_dict().items())


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
    with pytest.raises(ConfigurationError, match="concat"):
        decoder.reference_state_dict()


def test_autocast_computes_and_returns_the_autocast_type():
    reference, decoder = pair()
    maps = tokens(1, (2, 2))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        out = decoder(maps, (2, 2))
    expected = reference(as_image(maps, (2, 2))).detach()
    assert out.dtype == torch.bfloat16
    assert (out.float() - expected).abs().mean() < 0.02 * expected.abs().mean()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [({"aggregation": "sum"}, "concat, project"), ({"patch_size": 12}, "power of 2"), ({"embed_dim": 8}, "wider")],
)
def test_impossible_settings_are_refused(kwargs, message):
    with pytest.raises(ConfigurationError, match=message):
        TokenDecoder(**{"embed_dim": 32, "num_maps": 1, "num_classes": 2, **kwargs})
