"""Stored slices: sizes against other implementations, and files that come back as they went in."""

from __future__ import annotations

import errno
import zlib
from pathlib import Path

import blosc2
import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from nnunetv2_meddino.errors import ConfigurationError, DataError
from pretraining.corpus import storage
from pretraining.corpus.slice_statistics import body_fraction, body_threshold, slice_statistics
from pretraining.corpus.storage import (
    Resizer,
    StoreSettings,
    checksum,
    chunk_checksums,
    encode,
    open_volume,
    plan_resizing,
    write_whole,
)


def _picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1024, 3000, (height, width)).astype(np.int16)


def _torch_resize(image: np.ndarray, *sizes: tuple[int, int]) -> np.ndarray:
    values = torch.from_numpy(image.astype(np.float64))[None, None]
    for size in sizes:
        values = torch.nn.functional.interpolate(
            values, size=size, mode="bilinear", antialias=True, align_corners=False
        )
    return values[0, 0].numpy()


def test_slices_up_to_512_pixels_stay_as_they_are():
    plan = plan_resizing((512, 400), (0.7, 0.8), StoreSettings())
    assert plan.sizes == ()
    assert plan.flags == ()
    assert plan.spacing_mm == (0.7, 0.8)
    image = _picture(512, 400)
    assert Resizer((512, 400), plan)(image) is image


@pytest.mark.parametrize(
    ("size", "stored"), [((1024, 1024), (512, 512)), ((768, 1024), (384, 512)), ((513, 100), (512, 100))]
)
def test_larger_slices_shrink_to_512_and_keep_field_of_view_and_proportions(size, stored):
    plan = plan_resizing(size, (0.4, 0.4), StoreSettings())
    assert plan.sizes == (stored,)
    assert plan.flags == ("downsampled",)
    assert plan.spacing_mm == pytest.approx((0.4 * size[0] / stored[0], 0.4 * size[1] / stored[1]))
    image = _picture(*size)
    shrunk = Resizer(size, plan)(image)
    assert np.abs(shrunk - _torch_resize(image, stored)).max() <= 0.51
    pillow = Image.fromarray(image.astype(np.float32)).resize(stored[::-1], Image.Resampling.BILINEAR)
    assert np.abs(shrunk - np.asarray(pillow)).max() <= 0.52


def test_the_papers_two_steps_are_spacing_then_256_pixels():
    plan = plan_resizing((300, 320), (0.9, 0.7), StoreSettings(store_size=256, spacing_mm=0.45))
    assert plan.sizes == ((600, 498), (256, 256))
    assert plan.flags == ("resampled", "resized")
    assert plan.spacing_mm == pytest.approx((300 * 0.9 / 256, 320 * 0.7 / 256))
    image = _picture(300, 320)
    ours = Resizer((300, 320), plan)(image)
    assert ours.shape == (256, 256)
    assert np.abs(ours - _torch_resize(image, (600, 498), (256, 256))).max() <= 0.51


def test_the_first_step_is_linear_interpolation_at_the_new_pixel_centres():
    plan = plan_resizing((80, 90), (0.9, 0.9), StoreSettings(spacing_mm=0.45))
    assert plan.sizes == ((160, 180),)
    image = ndimage.gaussian_filter(_picture(80, 90).astype(float), 2).round().astype(np.int16)
    y, x = np.meshgrid((np.arange(160) + 0.5) / 2 - 0.5, (np.arange(180) + 0.5) / 2 - 0.5, indexing="ij")
    expected = ndimage.map_coordinates(image.astype(float), [y, x], order=1, mode="nearest")
    assert np.abs(Resizer((80, 90), plan)(image) - expected).max() <= 0.51


def test_a_position_in_the_patient_stays_where_it_is():
    """A ramp along x in mm is still that ramp after resizing, whatever the size."""
    size, spacing = (64, 700), (0.9, 0.6)
    ramp = np.broadcast_to(((np.arange(700) + 0.5) * spacing[1] * 10).round(), size).astype(np.int16)
    plan = plan_resizing(size, spacing, StoreSettings())
    stored = Resizer(size, plan)(ramp)
    expected = (np.arange(stored.shape[1]) + 0.5) * plan.spacing_mm[1] * 10
    assert np.abs(stored[0, 2:-2] - expected[2:-2]).max() <= 1.0


@pytest.mark.parametrize("wrong", [{"store_size": 8}, {"spacing_mm": 0.0}, {"spacing_mm": float("nan")}])
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ConfigurationError):
        StoreSettings(**wrong)


def test_a_stored_volume_comes_back_bit_for_bit(tmp_path):
    voxels = np.random.default_rng(0).integers(-32768, 32768, (5, 40, 33)).astype(np.int16)
    path = tmp_path / "a" / "v.b2nd"
    write_whole(path, encode(voxels, 5, (40, 33)))
    array = blosc2.open(str(path), mode="r", mmap_mode="r")
    assert np.array_equal(array[:], voxels)
    assert array.dtype == np.int16
    assert array.chunks == array.blocks == (1, 40, 33)
    assert array.cparams.codec == blosc2.Codec.ZSTD
    assert array.cparams.clevel == 1
    assert array.cparams.filters[0] == blosc2.Filter.BITSHUFFLE
    assert np.array_equal(open_volume(path)[3], voxels[3])
    assert encode(voxels, 5, (40, 33)) == path.read_bytes()
    assert [entry.name for entry in path.parent.iterdir()] == ["v.b2nd"]


@pytest.mark.parametrize("content", [b"", b"123456789", bytes(70000), np.random.default_rng(0).bytes(200_001)])
def test_the_checksum_is_that_of_zlib(content):
    assert checksum(content) == zlib.crc32(content)
    assert checksum(b"123456789") == 0xCBF43926  # the check value of CRC-32


def test_checksums_are_those_of_the_chunks_in_the_file(tmp_path):
    voxels = np.random.default_rng(0).integers(-1000, 1000, (5, 40, 33)).astype(np.int16)
    voxels[1], voxels[2], voxels[3, :20] = 0, -1000, 0
    content = encode(voxels, 5, (40, 33))
    (tmp_path / "v.b2nd").write_bytes(content)
    array = blosc2.open(str(tmp_path / "v.b2nd"), mode="r")
    chunks = [array.schunk.get_chunk(index) for index in range(5)]
    assert all(chunks[index] in content for index in (0, 2, 3, 4)), "stored bytes; zeros are but a mark in the index"
    found = chunk_checksums(content)
    assert found.dtype == np.uint32
    assert found.tolist() == [zlib.crc32(chunk) for chunk in chunks]


def test_a_missing_or_damaged_volume_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match="cannot be opened"):
        open_volume(tmp_path / "absent.b2nd")
    (tmp_path / "torn.b2nd").write_bytes(b"not a frame")
    with pytest.raises(DataError, match="cannot be opened"):
        open_volume(tmp_path / "torn.b2nd")


def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DataError, match="No space left on device. Make room there and run the same command again"):
        write_whole(tmp_path / "v.b2nd", b"1")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_noticed_by_a_plain_write():
    with pytest.raises(OSError) as caught, Path("/dev/full").open("wb") as file:
        file.write(b"1" * 10)
        file.flush()
    assert "Make room" in str(storage.write_error(Path("/dev/full"), caught.value))
    assert caught.value.errno == errno.ENOSPC


def test_statistics_are_those_of_numpy():
    image = _picture(90, 70)
    numbers = slice_statistics(image, -500.0)
    percentiles = np.percentile(image, (0.5, 50, 99.5), method="inverted_cdf")
    assert (numbers.hu_p005, numbers.hu_p50, numbers.hu_p995) == tuple(percentiles)
    assert numbers.hu_mean == pytest.approx(image.mean())
    assert numbers.hu_std == pytest.approx(image.std())


def _disc(size: int, radius: float, centre: tuple[float, float], image: np.ndarray, value: int) -> np.ndarray:
    y, x = np.mgrid[:size, :size]
    image[(y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2] = value
    return image


def test_the_body_counts_with_its_lungs_and_without_table_and_air():
    size = 512
    image = np.full((size, size), -1000, np.int16)
    _disc(size, 150, (256, 256), image, 40)
    _disc(size, 60, (256, 220), image, -850)
    table = np.zeros_like(image, bool)
    table[404:470, 60:450] = True
    table[408:466, 64:446] = False
    image[table & (image < -900)] = 100  # a hollow table: thin walls around air, touching the body
    share = np.pi * 150**2 / size**2
    assert body_fraction(image, -500.0) == pytest.approx(share, abs=0.01)
    assert body_fraction(np.full((64, 64), -1000, np.int16), -500.0) == 0.0


def test_two_legs_are_body_and_a_cable_is_not():
    image = np.full((256, 256), -1000, np.int16)
    _disc(256, 40, (128, 70), image, 50)
    _disc(256, 40, (128, 186), image, 50)
    _disc(256, 5, (30, 30), image, 300)
    assert body_fraction(image, -500.0) == pytest.approx(2 * np.pi * 40**2 / 256**2, abs=0.01)


def test_images_without_hounsfield_units_get_a_threshold_of_their_own():
    voxels = np.zeros((3, 100, 100), np.int16)
    voxels[:, 30:70, 30:70] = 900
    assert body_threshold(voxels, "CT") == -500.0
    threshold = body_threshold(voxels, "MR")
    assert 0 < threshold < 900
    assert body_fraction(voxels[0], threshold) == pytest.approx(0.16, abs=0.01)


def test_a_file_is_replaced_and_never_overwritten(tmp_path):
    path, before = tmp_path / "v", tmp_path / "before"
    write_whole(path, b"old")
    before.hardlink_to(path)
    write_whole(path, b"new")
    assert (path.read_bytes(), before.read_bytes()) == (b"new", b"old")
