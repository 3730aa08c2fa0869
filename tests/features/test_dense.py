"""The network's input, PCA and similarity of patches against closed forms."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunetv2_meddino.errors import ConfigurationError, DataError, WeightsError
from nnunetv2_meddino.features.dense import (
    Encoder,
    as_colours,
    cosine_similarity,
    dense_features,
    network_size,
    patch_features,
    patch_of_point,
    principal_components,
    read_encoder,
    scaled_intensities,
)
from nnunetv2_meddino.features.image import ImageSlice, read_slice, slice_of_array
from nnunetv2_meddino.networks.vit import BACKBONES, VisionTransformer
from nnunetv2_meddino.weights.catalog import CT, PHOTOGRAPHS
from nnunetv2_meddino.weights.load import write_weights
from tests.features.images import ct_slice, write_ct

CT_WINDOW = (-1000.0, 1000.0)


@pytest.fixture(autouse=True)
def tiny_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDDINO_BACKBONE", "tiny")


@pytest.fixture(scope="module")
def network() -> VisionTransformer:
    """A tiny ViT whose blocks do something (the initial LayerScale of 1e-5 would hide them)."""
    torch.manual_seed(1)
    network = VisionTransformer(BACKBONES["tiny"])
    for name, parameter in network.named_parameters():
        if "gamma" in name:
            parameter.data.fill_(0.5)
    return network.eval()


@pytest.fixture(scope="module")
def weights(network: VisionTransformer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "ours.safetensors"
    write_weights(
        path, network.state_dict(), network.config, {"name": "ours", "input_statistics": asdict(CT)}, "meddino"
    )
    return path


def ct_encoder(network: VisionTransformer) -> Encoder:
    return Encoder(network, "ct", CT.mean, CT.std, CT_WINDOW)


def photo_encoder(network: VisionTransformer) -> Encoder:
    return Encoder(network, "photographs", PHOTOGRAPHS.mean, PHOTOGRAPHS.std, None)


def mr_slice() -> ImageSlice:
    pixels = np.random.default_rng(1).uniform(0, 4000, (1, 64, 64)).astype(np.float32)
    return ImageSlice(pixels, (1.0, 1.0), "mr", in_hu=False, eight_bit=False)


# --- principal components --------------------------------------------------------------------------------------------


def test_components_are_those_of_the_covariance_matrix() -> None:
    features = np.random.default_rng(0).normal(size=(9, 7, 12)) * np.linspace(3, 1, 12) + 5
    components, explained = principal_components(features)
    flat = features.reshape(63, 12)
    variances, vectors = np.linalg.eigh(np.cov(flat, rowvar=False))  # ascending
    vectors = vectors[:, ::-1][:, :3]
    vectors *= np.sign(vectors[np.abs(vectors).argmax(axis=0), range(3)])
    expected = (flat - flat.mean(axis=0)) @ vectors
    np.testing.assert_allclose(components, expected.reshape(9, 7, 3), atol=1e-10)
    np.testing.assert_allclose(explained, variances[::-1][:3] / variances.sum(), rtol=1e-10)


def test_planted_maps_of_rank_three_are_recovered() -> None:
    y, x = np.mgrid[0:8, 0:8]
    maps = np.stack([np.where(y < 4, 5.0, -5.0), np.where(x < 4, 2.0, -2.0), np.where((y + x) % 2, 1.0, -1.0)], axis=-1)
    directions, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(20, 3)))
    directions *= np.sign(directions[np.abs(directions).argmax(axis=0), range(3)])  # largest entry positive
    components, explained = principal_components(maps @ directions.T + 7)
    np.testing.assert_allclose(components, maps, atol=1e-12)
    np.testing.assert_allclose(explained, np.array([25, 4, 1]) / 30, rtol=1e-12)


def test_colours_do_not_depend_on_the_order_of_the_patches() -> None:
    features = np.random.default_rng(2).normal(size=(6, 5, 9))
    components, _ = principal_components(features)
    mirrored, _ = principal_components(features[::-1, ::-1])
    np.testing.assert_allclose(mirrored[::-1, ::-1], components, atol=1e-10)


def test_equal_patches_have_no_components() -> None:
    components, explained = principal_components(np.ones((4, 4, 8)))
    assert not components.any()
    assert not explained.any()
    assert np.isfinite(as_colours(components)).all()


def test_colours_span_the_first_to_the_99th_percentile() -> None:
    ramp = np.arange(101.0)
    colours = as_colours(np.stack([ramp, -ramp, ramp * 100], axis=-1)[:, None])
    expected = np.clip((ramp - 1) / 98, 0, 1)
    np.testing.assert_allclose(colours[:, 0], np.stack([expected, expected[::-1], expected], axis=-1), atol=1e-12)


# --- similarity ------------------------------------------------------------------------------------------------------


def test_similarity_is_the_cosine_of_planted_angles() -> None:
    degrees = np.array([[0, 30, 60], [90, 120, 180]])
    angles = np.deg2rad(degrees)
    lengths = np.array([[1, 5, 0.1], [2, 100, 3]])
    features = np.stack([lengths * np.cos(angles), lengths * np.sin(angles), np.zeros((2, 3))], axis=-1)
    expected = [[1, np.sqrt(3) / 2, 0.5], [0, -0.5, -1]]
    np.testing.assert_allclose(cosine_similarity(features, (0, 0)), expected, atol=1e-15)
    np.testing.assert_allclose(cosine_similarity(features, (1, 0))[0], [0, 0.5, np.sqrt(3) / 2], atol=1e-15)


def test_similarity_of_a_patch_without_features_is_zero() -> None:
    features = np.ones((2, 2, 3))
    features[1, 1] = 0
    assert cosine_similarity(features, (0, 0))[1, 1] == 0


# --- the network's input ---------------------------------------------------------------------------------------------


def test_features_are_the_normed_patch_tokens_of_the_last_block(network: VisionTransformer) -> None:
    image = ct_slice(64, 96)
    features, treatment = patch_features(image, ct_encoder(network), size=96)
    normalised = (np.clip(image.pixels, -1000, 1000) - 65.1084213256836) / 178.01663208007812
    with torch.inference_mode():
        (expected,) = network(torch.from_numpy(normalised)[None].repeat(1, 3, 1, 1), [3])  # (1, D, h, w)
    assert features.shape == (4, 6, 96)
    np.testing.assert_allclose(features, expected[0].permute(1, 2, 0).numpy(), atol=2e-5)
    assert treatment == "HU clipped to -1000 .. 1000"


def test_features_of_an_array_are_those_of_the_network_in_float32(network: VisionTransformer, weights: Path) -> None:
    hu = np.random.default_rng(0).integers(-1500, 1500, (64, 96)).astype(np.int16)
    image = slice_of_array(hu, (1, 1))
    features = dense_features(image, weights, size=96)
    with torch.inference_mode():
        pixels = (torch.from_numpy(hu).float().clip(-1000, 1000) - 65.1084213256836) / 178.01663208007812
        (expected,) = network(pixels.expand(1, 3, 64, 96), [3])  # (1, D, h, w)
    assert (features.dtype, features.shape) == (np.float32, (4, 6, 96))
    np.testing.assert_allclose(features, expected[0].permute(1, 2, 0).numpy(), atol=2e-5)
    for same in (str(weights), read_encoder(weights)):
        np.testing.assert_array_equal(dense_features(image, same, size=96), features)


def test_features_of_a_file_are_those_of_the_slice_with_most_body(weights: Path, tmp_path: Path) -> None:
    ct = write_ct(tmp_path / "ct.nii.gz")
    expected = dense_features(read_slice(ct, 3), weights, size=64)
    for file in (ct, str(ct)):
        np.testing.assert_array_equal(dense_features(file, str(weights), size=64), expected)
    assert not np.array_equal(dense_features(read_slice(ct, 6), weights, size=64), expected)


def test_what_has_no_features_is_refused(weights: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"The image is a ndarray; give a file, or slice_of_array\(array"):
        dense_features(np.ones((64, 64)), weights, size=64)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="absent.nii.gz does not exist"):
        dense_features("absent.nii.gz", weights, size=64)
    with pytest.raises(WeightsError, match="There are no weights 'absent'"):
        dense_features(ct_slice(), "absent", size=64)
    with pytest.raises(ConfigurationError, match="must be a multiple of 16"):
        dense_features(ct_slice(), weights, size=100)


def test_photograph_weights_see_three_differently_normalised_channels(network: VisionTransformer) -> None:
    image = mr_slice()
    features, treatment = patch_features(image, photo_encoder(network), size=64)
    low, high = np.percentile(image.pixels, (0.5, 99.5))
    grey = np.clip((image.pixels[0] - low) / (high - low), 0, 1)
    channels = [(grey - m) / s for m, s in zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)]
    with torch.inference_mode():
        (expected,) = network(torch.tensor(np.stack(channels), dtype=torch.float32)[None], [3])
    np.testing.assert_allclose(features, expected[0].permute(1, 2, 0).numpy(), atol=2e-5)
    assert treatment == "0.5 to 99.5 percentile stretched to 0 .. 1"


def test_what_is_missing_to_whole_patches_repeats_the_border(network: VisionTransformer) -> None:
    image = ct_slice(56, 96)
    padded = ImageSlice(np.pad(image.pixels, ((0, 0), (0, 8), (0, 0)), mode="edge"), (1.0, 1.0), "ct", True, False)
    features, _ = patch_features(image, ct_encoder(network), size=96)
    assert features.shape[:2] == (4, 6)
    np.testing.assert_allclose(features, patch_features(padded, ct_encoder(network), size=96)[0], atol=2e-5)


def test_enlarging_a_flat_half_keeps_the_halves_in_place(network: VisionTransformer) -> None:
    pixels = np.full((1, 16, 32), -900, np.float32)
    pixels[:, :, 16:] = 100
    features, _ = patch_features(ImageSlice(pixels, (1.0, 1.0), "", True, False), ct_encoder(network), size=128)
    similarity = cosine_similarity(features, (1, 1))
    assert similarity.shape == (4, 8)
    assert similarity[:, :3].min() > similarity[:, 5:].max() + 0.2


@pytest.mark.parametrize(
    ("shape", "spacing", "size"),
    [((512, 512), (0.7, 0.7), (896, 896)), ((100, 200), (2.0, 1.0), (896, 896)), ((64, 200), (1.0, 1.0), (287, 896))],
)
def test_pixels_become_square(shape: tuple[int, int], spacing: tuple[float, float], size: tuple[int, int]) -> None:
    assert network_size(ct_slice(*shape, spacing), 896) == size


def test_intensities_without_hu_fill_the_window_of_ct_weights(network: VisionTransformer) -> None:
    values, treatment = scaled_intensities(mr_slice(), ct_encoder(network))
    assert (values.min(), values.max()) == (-1000, 1000)
    assert treatment == "no HU: 0.5 to 99.5 percentile stretched to 0 .. 1, then to -1000 .. 1000"


def test_ct_is_clipped_and_stretched_for_photograph_weights(network: VisionTransformer) -> None:
    image = ct_slice()
    image.pixels[0, :10] = -3024  # outside the field of view
    values, treatment = scaled_intensities(image, photo_encoder(network))
    clipped = np.clip(image.pixels, -1000, 1000)
    low, high = np.percentile(clipped, (0.5, 99.5))
    np.testing.assert_allclose(values, np.clip((clipped - low) / (high - low), 0, 1), atol=1e-6)
    assert treatment == "HU clipped to -1000 .. 1000, 0.5 to 99.5 percentile stretched to 0 .. 1"


def test_colour_photographs_are_divided_by_255(network: VisionTransformer) -> None:
    pixels = np.random.default_rng(0).integers(0, 200, (3, 32, 32)).astype(np.float32)
    image = ImageSlice(pixels, (1.0, 1.0), "photo", in_hu=False, eight_bit=True)
    values, treatment = scaled_intensities(image, photo_encoder(network))
    np.testing.assert_allclose(values, pixels / 255, rtol=1e-6)
    assert treatment == "8-bit colour / 255"


@pytest.mark.parametrize(
    ("point", "patch"), [((0, 0), (0, 0)), ((7, 7), (0, 0)), ((8, 7), (1, 0)), ((31, 63), (3, 7)), ((15, 40), (1, 5))]
)
def test_point_falls_into_the_patch_that_shows_it(point: tuple[int, int], patch: tuple[int, int]) -> None:
    # 32 x 64 pixels in 64 x 128 px: a patch is 8 x 8 pixels
    assert patch_of_point(ct_slice(32, 64), point, size=128) == patch


# --- weights ---------------------------------------------------------------------------------------------------------


def test_weights_bring_their_input_statistics(weights: Path, network: VisionTransformer) -> None:
    encoder = read_encoder(str(weights))
    assert (encoder.name, encoder.mean, encoder.std, encoder.window_hu) == ("ours", CT.mean, CT.std, CT_WINDOW)
    assert not encoder.network.training
    for name, tensor in encoder.network.state_dict().items():
        assert torch.equal(tensor, network.state_dict()[name])


def test_weights_that_state_no_statistics_are_taken_for_photograph_weights(
    network: VisionTransformer, tmp_path: Path
) -> None:
    write_weights(tmp_path / "w.safetensors", network.state_dict(), network.config, {"name": "w"}, "meddino")
    encoder = read_encoder(str(tmp_path / "w.safetensors"))
    assert (encoder.mean, encoder.std, encoder.window_hu) == (PHOTOGRAPHS.mean, PHOTOGRAPHS.std, None)


def test_random_weights_are_always_the_same_and_leave_the_random_state_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second = (read_encoder("none").network.state_dict() for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_random_weights_are_like_those_they_are_compared_with(
    network: VisionTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MEDDINO_BACKBONE")
    encoder = read_encoder("none", ct_encoder(network))
    assert encoder.network.config == network.config
    assert (encoder.mean, encoder.std, encoder.window_hu) == (CT.mean, CT.std, CT_WINDOW)
    assert not torch.equal(encoder.network.state_dict()["cls_token"], network.state_dict()["cls_token"])
    assert encoder.name == "random weights (tiny)"


def test_random_weights_alone_are_of_the_backbone_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = read_encoder("NONE")
    assert encoder.network.config == BACKBONES["tiny"]
    assert (encoder.mean, encoder.window_hu) == (PHOTOGRAPHS.mean, None)
    monkeypatch.setenv("MEDDINO_BACKBONE", "huge")
    with pytest.raises(ConfigurationError, match="MEDDINO_BACKBONE is 'huge'; it must be one of tiny"):
        read_encoder("none")
