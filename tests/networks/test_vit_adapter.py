"""Deformable attention against the transformers library and closed forms, and the adapter around it."""

from __future__ import annotations

import math

import pytest
import torch
from transformers.models.deformable_detr.modeling_deformable_detr import MultiScaleDeformableAttention

from nnunetv2_meddino.networks.vit import BACKBONES, VisionTransformer
from nnunetv2_meddino.networks.vit_adapter import (
    DeformableAttention,
    ViTAdapter,
    pixel_centres,
    to_map,
    to_tokens,
)

HEADS, POINTS, DIM = 4, 3, 32


def random_attention(seed: int = 0) -> DeformableAttention:
    torch.manual_seed(seed)
    attention = DeformableAttention(DIM, HEADS, POINTS)
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return attention


def test_deformable_attention_equals_the_librarys():
    attention = random_attention()
    grid, queries, features = (5, 7), torch.randn(2, 9, DIM), torch.randn(2, 35, DIM)
    reference_points = torch.rand(9, 2)
    offsets = attention.sampling_offsets(queries).view(2, 9, HEADS, 1, POINTS, 2)
    locations = reference_points[None, :, None, None, None] + offsets / torch.tensor([7.0, 5.0])
    weights = attention.attention_weights(queries).view(2, 9, HEADS, POINTS).softmax(-1).unsqueeze(3)
    values = attention.value_proj(features).view(2, 35, HEADS, -1)
    shapes = torch.tensor([grid])
    expected = MultiScaleDeformableAttention()(
        values, shapes, [grid], torch.tensor([0]), locations, weights, im2col_step=64
    )
    actual = attention(queries, reference_points, features, grid)
    torch.testing.assert_close(actual, attention.output_proj(expected), atol=1e-5, rtol=1e-5)


def test_deformable_attention_interpolates_a_ramp_exactly():
    """Values that grow linearly over the map are read back at the very positions asked for."""
    attention = DeformableAttention(2, heads=1, points=1, value_ratio=1.0)
    for layer in (attention.value_proj, attention.output_proj):
        torch.nn.init.eye_(layer.weight)
    torch.nn.init.zeros_(attention.sampling_offsets.bias)
    centres = pixel_centres([(8, 12)], torch.device("cpu"))  # x and y are the two channels
    asked = torch.tensor([[0.5, 0.5], [0.3, 0.71], [0.7, 0.3]])
    read = attention(torch.zeros(1, 3, 2), asked, centres[None], (8, 12))
    torch.testing.assert_close(read[0], asked)
    with torch.no_grad():
        attention.sampling_offsets.bias.copy_(torch.tensor([1.5, -1.0]))  # pixels of the map, x and y
    read = attention(torch.zeros(1, 3, 2), asked, centres[None], (8, 12))
    torch.testing.assert_close(read[0], asked + torch.tensor([1.5 / 12, -1 / 8]))


def test_points_start_on_rays_around_the_query():
    attention = DeformableAttention(64, heads=16, points=4)
    bias = attention.sampling_offsets.bias.view(16, 4, 2)
    assert torch.equal(attention.attention_weights.weight, torch.zeros(64, 64))
    for head in range(16):
        angle = 2 * math.pi * head / 16
        for point in range(4):
            x, y = bias[head, point].tolist()
            assert max(abs(x), abs(y)) == pytest.approx(point + 1, abs=1e-5)
            assert (x / math.hypot(x, y), y / math.hypot(x, y)) == pytest.approx(
                (math.cos(angle), math.sin(angle)), abs=1e-5
            )


def test_pixel_centres_follow_the_maps():
    centres = pixel_centres([(1, 2), (2, 1)], torch.device("cpu"))
    assert centres.tolist() == [[0.25, 0.5], [0.75, 0.5], [0.5, 0.25], [0.5, 0.75]]


def test_positions_keep_float32_under_autocast():
    """In half precision 0.9 of a large map is off by pixels, and the map is read in the wrong place."""
    attention = random_attention()
    grid = (112, 112)
    features, queries = torch.randn(1, 112 * 112, DIM), torch.randn(1, 5, DIM)
    points = torch.full((5, 2), 0.9371)
    exact = attention(queries, points, features, grid)
    with torch.autocast("cpu", torch.bfloat16):
        rough = attention(queries, points, features, grid).float()
    assert (rough - exact).abs().mean() < 0.05 * exact.abs().mean()


def test_tokens_and_maps_are_inverse():
    tokens = torch.randn(2, 12, 5)
    assert torch.equal(to_tokens(to_map(tokens, (3, 4))), tokens)
    assert torch.equal(to_map(tokens, (3, 4))[:, :, 1, 2], tokens[:, 6])


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_four_maps_of_the_adapter(channels):
    vit = VisionTransformer(BACKBONES["tiny"], channels).requires_grad_(False)
    adapter = ViTAdapter(96, channels, 4)
    image = torch.randn(2, channels, 64, 96)
    maps = adapter(image, vit(image, [0, 1, 2, 3]))
    assert [tuple(m.shape) for m in maps] == [(2, 96, 64 // s, 96 // s) for s in (4, 8, 16, 32)]
    assert adapter.read_blocks == (0, 1, 2, 3, 3, 3)
