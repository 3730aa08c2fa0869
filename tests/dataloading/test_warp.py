from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy import ndimage

from nnunetv2_meddino.dataloading.augmentation import Augmentation
from nnunetv2_meddino.dataloading.warp import OUTSIDE, source_box, warp

from . import stock
from .pictures import slice_of

IMAGE, LABELS = slice_of((401, 453), channels=2, seed=0)
WHOLE = (slice(None), slice(None))


def turned(rotation_rad: float, scaling: float, mirrored: tuple[bool, bool] = (False, False)) -> Augmentation:
    ones = (1.0, 1.0)
    return Augmentation(
        rotation_rad, scaling, mirrored, 0.0, 0, ((0.0, 0.0),) * 2, ones, ones, ones, gamma_of_inverted=ones, gamma=ones
    )


def nnunets(
    size: tuple[int, int], rotation_rad: float, scaling: float, part: tuple[slice, slice] = WHOLE
) -> tuple[np.ndarray, np.ndarray]:
    """Return what nnU-Net's spatial transform makes of a part of the slice, about its centre."""
    transform = stock.spatial(size, rotation_rad, scaling)
    image, labels = torch.from_numpy(IMAGE[:, part[0], part[1]]), torch.from_numpy(LABELS[part])[None]
    parameters = transform.get_parameters(image=image)
    return (
        transform._apply_to_image(image, **parameters).numpy(),
        transform._apply_to_segmentation(labels, **parameters)[0].numpy(),
    )


def ours(
    size: tuple[int, int], augmentation: Augmentation, part: tuple[slice, slice] = WHOLE
) -> tuple[np.ndarray, np.ndarray]:
    image, labels = IMAGE[:, part[0], part[1]], LABELS[part]
    corner = tuple((length - side) / 2 for length, side in zip(labels.shape, size, strict=True))
    return warp(image, labels, augmentation.matrix(corner, size), size)


@pytest.mark.parametrize("size", [(351, 401), (350, 350), (501, 461)])
@pytest.mark.parametrize(("rotation_rad", "scaling"), [(0.0, 0.7), (0.0, 1.37), (0.3, 1.0), (-2.5, 0.7), (2.0, 1.37)])
def test_a_warp_is_that_of_nnunet(size: tuple[int, int], rotation_rad: float, scaling: float) -> None:
    image, labels = ours(size, turned(rotation_rad, scaling))
    expected, expected_labels = nnunets(size, rotation_rad, scaling)
    assert np.abs(image - expected).max() < 1e-3 * np.ptp(expected)
    differs = labels != expected_labels
    assert differs.mean() < 1e-3
    borders = ndimage.maximum_filter(expected_labels, 3) != ndimage.minimum_filter(expected_labels, 3)
    assert not (differs & ~borders).any()


@pytest.mark.parametrize("part", [np.s_[7:8, :60], np.s_[:50, 9:10], np.s_[3:6, 3:5], np.s_[9:10, 9:10]])
def test_a_slice_of_few_pixels_is_warped_as_by_nnunet(part: tuple[slice, slice]) -> None:
    image, labels = ours((40, 33), turned(0.4, 0.9), part)
    expected, expected_labels = nnunets((40, 33), 0.4, 0.9, part)
    assert np.abs(image - expected).max() < 1e-3 * np.ptp(expected)
    np.testing.assert_array_equal(labels, expected_labels)


@pytest.mark.parametrize("size", [(351, 401), (401, 453), (501, 461)])
def test_a_patch_that_is_not_turned_or_scaled_is_nnunets_crop_to_the_bit(size: tuple[int, int]) -> None:
    image, labels = ours(size, turned(0.0, 1.0))
    parameters = {"center_location_in_pixels": [length / 2 for length in LABELS.shape], "grid": None}
    transform = stock.transforms(size)["spatial"]
    np.testing.assert_array_equal(image, transform._apply_to_image(torch.from_numpy(IMAGE), **parameters))
    expected = transform._apply_to_segmentation(torch.from_numpy(LABELS)[None], **parameters)[0]
    np.testing.assert_array_equal(labels, expected)


@pytest.mark.parametrize("mirrored", itertools.product([False, True], repeat=2))
@pytest.mark.parametrize("rotation_rad", [0.0, 0.4])
def test_mirroring_is_that_of_the_finished_patch(mirrored: tuple[bool, bool], rotation_rad: float) -> None:
    size = (351, 471)
    axes = [axis - 2 for axis in (0, 1) if mirrored[axis]]
    plain, mirrored_one = ours(size, turned(rotation_rad, 1.0)), ours(size, turned(rotation_rad, 1.0, mirrored))
    np.testing.assert_allclose(mirrored_one[0], np.flip(plain[0], axes), atol=1e-3)
    assert (mirrored_one[1] != np.flip(plain[1], axes)).mean() < 1e-3


@pytest.mark.parametrize("offset", [(-20, 7), (390, -30), (-600, 0), (0, 600)])
@pytest.mark.parametrize("mirrored", itertools.product([False, True], repeat=2))
def test_a_copy_beyond_the_slice_is_padded(offset: tuple[int, int], mirrored: tuple[bool, bool]) -> None:
    size = (60, 50)
    image, labels = warp(IMAGE, LABELS, turned(0.0, 1.0, mirrored).matrix(offset, size), size)
    expected, expected_labels = np.zeros((2, *size), np.float32), np.full(size, OUTSIDE, np.int16)
    for row, column in np.ndindex(size):
        source = (row + offset[0], column + offset[1])
        if all(0 <= place < length for place, length in zip(source, LABELS.shape, strict=True)):
            expected[:, row, column], expected_labels[row, column] = IMAGE[:, source[0], source[1]], LABELS[source]
    axes = [axis - 2 for axis in (0, 1) if mirrored[axis]]
    np.testing.assert_array_equal(image, np.flip(expected, axes))
    np.testing.assert_array_equal(labels, np.flip(expected_labels, axes))


@pytest.mark.parametrize("scaling", [0.7, 1.0])
@pytest.mark.parametrize("rotation_rad", [0.0, 0.5, 3.0])
def test_the_box_of_a_warp_holds_all_it_looks_at_and_not_much_more(rotation_rad: float, scaling: float) -> None:
    size = (60, 50)
    augmentation = turned(rotation_rad, scaling, (True, False))
    matrix = augmentation.matrix((140, 180), size)
    rows, columns = source_box(matrix, size)
    shift = np.array([[0, 0, rows[0]], [0, 0, columns[0]]])
    cut = np.s_[..., slice(*rows), slice(*columns)]
    image, labels = warp(IMAGE[cut], LABELS[cut], matrix - shift, size)
    expected, expected_labels = warp(IMAGE, LABELS, matrix, size)
    np.testing.assert_allclose(image, expected, atol=1e-3)
    assert (labels != expected_labels).mean() < 1e-3
    places = np.stack([*np.indices(size), np.ones(size)]).reshape(3, -1)
    seen = matrix @ places
    for (first, after), found in zip((rows, columns), seen, strict=True):
        assert first <= found.min() < first + 1
        assert after - 2 < found.max() <= after - 1 + 1e-9


def test_a_margin_widens_the_box_on_all_sides() -> None:
    matrix = turned(0.2, 0.9).matrix((10, 20), (30, 40))
    plain, wide = source_box(matrix, (30, 40)), source_box(matrix, (30, 40), margin=2)
    assert wide == tuple((first - 2, after + 2) for first, after in plain)
