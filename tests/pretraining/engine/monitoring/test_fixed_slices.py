import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as TF

from benchmarks.corpora import write_manifest
from nnunetv2_meddino.errors import DataError
from pretraining.corpus.dataset import SliceDataset
from pretraining.engine.monitoring.fixed_slices import choose_rows, patch_features, watched_slices, whole_slice
from pretraining.views import IntensityConfig
from tests.pretraining.corpora import write_corpus
from tests.pretraining.engine.monitoring.networks import random_vit

MEAN, STD = 65.1084213256836, 178.01663208007812  # of MedDINOv3's normalisation


def noise(height, width):
    return torch.from_numpy(np.random.default_rng(1).integers(-1500, 1500, (height, width)).astype(np.int16))


def test_a_slice_is_normalised_by_the_rule_of_the_run():
    pixels = noise(32, 32)
    whole = whole_slice("s", pixels, IntensityConfig(), size=32, patch_size=16)
    expected = (pixels.double().clamp(-1000, 1000) - MEAN) / STD
    torch.testing.assert_close(whole.input[0].double(), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(whole.unit.double(), (pixels.double().clamp(-1000, 1000) + 1000) / 2000)


@pytest.mark.parametrize(
    ("shape", "expected"), [((64, 64), (32, 32)), ((60, 100), (16, 32)), ((90, 41), (32, 16)), ((100, 3), (32, 16))]
)
def test_a_slice_is_resized_to_whole_patches(shape, expected):
    pixels = noise(*shape)
    whole = whole_slice("s", pixels, IntensityConfig(), size=32, patch_size=16)
    unit = (pixels.float().clamp(-1000, 1000) + 1000) / 2000
    resized = TF.resize(unit[None], list(expected), interpolation=TF.InterpolationMode.BICUBIC, antialias=True)
    torch.testing.assert_close(whole.unit[None], resized.clamp(0, 1), atol=1e-5, rtol=0)
    torch.testing.assert_close(whole.input, (whole.unit[None] * 2000 - 1000 - MEAN) / STD, atol=1e-4, rtol=0)


def test_slices_of_all_sources_and_heights_are_watched_and_no_air(tmp_path):
    shapes = [(source, f"{source}{case}", (40, 32, 32)) for source in ("a", "b", "c") for case in range(10)]
    write_manifest(tmp_path, shapes, {(0, z): "empty" for z in range(40)})
    dataset = SliceDataset(tmp_path)
    rows = choose_rows(dataset, 12)
    volumes, heights = dataset.volume[rows], dataset.index[rows] / 40
    assert len(set(volumes)) == 12
    assert np.bincount(volumes // 10).tolist() == [4, 4, 4]
    assert 0 not in volumes
    assert np.histogram(heights, bins=4, range=(0, 1))[0].min() >= 2
    assert rows == choose_rows(SliceDataset(tmp_path), 12)
    assert len(set(dataset.source_of_volume[dataset.volume[choose_rows(dataset, 2)]])) == 2


def test_a_corpus_with_fewer_slices_shows_what_there_is(tmp_path):
    write_corpus(tmp_path)
    rows = choose_rows(SliceDataset(tmp_path), 100)
    assert set(rows) <= set(SliceDataset(tmp_path).usable_rows().tolist())


def test_a_corpus_of_air_is_an_error(tmp_path):
    write_manifest(tmp_path, [("a", "a1", (2, 32, 32))], {(0, 0): "empty", (0, 1): "empty"})
    with pytest.raises(DataError, match="no slice to look at"):
        choose_rows(SliceDataset(tmp_path), 4)


def test_watched_slices_hold_the_slice_without_its_padding(tmp_path):
    volumes = write_corpus(tmp_path)
    (whole,) = watched_slices(SliceDataset(tmp_path), 1, IntensityConfig(), size=48, patch_size=8)
    assert whole.name == "alpha a1 2/4"  # the middle of its three slices that are not air
    pixels = torch.from_numpy(volumes[0][1])
    torch.testing.assert_close(whole.unit, whole_slice("", pixels, IntensityConfig(), size=48, patch_size=8).unit)
    assert whole.input.shape == (1, 40, 48)


@pytest.mark.parametrize("channels", [1, 3])
def test_features_are_the_map_of_the_last_block(channels):
    vit = random_vit(channels)
    slices = [
        whole_slice("s", noise(*shape), IntensityConfig(), size=32, patch_size=8) for shape in ((32, 32), (16, 32))
    ]
    found = patch_features(vit, slices)
    for features, whole in zip(found, slices, strict=True):
        with torch.no_grad():
            (expected,) = vit(whole.input[None].expand(1, channels, -1, -1), [1])
        torch.testing.assert_close(features, expected[0].permute(1, 2, 0))
        assert not features.requires_grad


def test_a_network_in_training_mode_is_refused():
    with pytest.raises(ValueError, match="eval"):
        patch_features(random_vit().train(), [])
