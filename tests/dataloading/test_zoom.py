"""Slices at another number of pixels against what nnU-Net's preprocessing calls: skimage and batchgenerators."""

from __future__ import annotations

import numpy as np
import pytest
from batchgenerators.augmentations.utils import resize_segmentation
from scipy.ndimage import gaussian_filter, spline_filter, zoom
from skimage.transform import resize

from nnunetv2_meddino.dataloading.zoom import BEYOND, Zoom, _spline_coefficients

SIZES = [
    ((64, 50), (80, 63)),
    ((64, 50), (112, 88)),  # 7 / 4: every second border of a pixel is halfway between two labels
    ((64, 50), (147, 115)),
    ((64, 50), (74, 140)),
    ((50, 64), (100, 128)),
    ((50, 64), (31, 90)),
    ((2, 3), (5, 7)),
    ((1, 9), (4, 9)),
]


def picture(size: tuple[int, int]) -> np.ndarray:
    """Two channels that leave their range when they are interpolated, at the borders too."""
    rng = np.random.default_rng(1)
    return (np.sign(rng.normal(size=(2, *size))) * rng.uniform(0.5, 1, (2, *size))).astype(np.float32)


def label_map(size: tuple[int, int]) -> np.ndarray:
    """Four labels, -1 among them, in patches of a few pixels that meet in threes."""
    rng = np.random.default_rng(2)
    return np.argmax([gaussian_filter(rng.normal(size=size), 1.5) for _ in range(4)], axis=0).astype(np.int16) - 1


def whole(source: tuple[int, int], target: tuple[int, int]) -> Zoom:
    return Zoom(source, target, (0, target[0]), (0, target[1]))


@pytest.mark.parametrize(("source", "target"), SIZES)
def test_images_are_those_of_skimage(source, target):
    """Catches half a pixel, another border, no clipping, and one range for all channels."""
    image = picture(source) * np.float32([[[1]], [[3]]])
    expected = [resize(channel.astype(float), target, 3, mode="edge", anti_aliasing=False) for channel in image]
    found = whole(source, target).image(image)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=5e-6)


@pytest.mark.parametrize(("order", "nearest"), [(1, False), (0, True)])
@pytest.mark.parametrize(("source", "target"), SIZES)
def test_labels_are_those_of_batchgenerators(source, target, order, nearest):
    labels = label_map(source)
    found = whole(source, target).labels(labels, nearest=nearest)
    assert found.dtype == np.int16
    np.testing.assert_array_equal(found, resize_segmentation(labels, target, order))


def test_a_part_is_that_of_the_whole():
    image, labels = picture((64, 50)), label_map((64, 50))
    all_of_it, part = whole((64, 50), (112, 88)), Zoom((64, 50), (112, 88), (31, 80), (0, 7))
    np.testing.assert_array_equal(part.image(image), all_of_it.image(image)[:, 31:80, :7])
    for nearest in (False, True):
        expected = all_of_it.labels(labels, nearest=nearest)[31:80, :7]
        np.testing.assert_array_equal(part.labels(labels, nearest=nearest), expected)


def test_coefficients_go_on_beyond_the_border_as_those_of_edge_values_without_end():
    image = picture((9, 12))[0]
    far = 40
    expected = spline_filter(np.pad(image.astype(float), far, mode="edge"), order=3)
    inside = slice(far - BEYOND, BEYOND - far)
    np.testing.assert_allclose(_spline_coefficients(image), expected[inside, inside], atol=2e-5)


def test_a_slice_that_is_not_contiguous_is_read_as_it_is():
    image = picture((20, 24)).transpose(0, 2, 1)
    expected = [zoom(c, (2, 1.5), order=3, mode="nearest", grid_mode=True).clip(c.min(), c.max()) for c in image]
    np.testing.assert_allclose(whole((24, 20), (48, 30)).image(image), expected, atol=5e-6)
