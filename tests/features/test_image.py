"""Reading one slice: which one, its orientation, its channels, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from nnunetv2_meddino.errors import DataError
from nnunetv2_meddino.features.image import ImageSlice, body_centre, read_slice, slice_of_array
from tests.features.images import write, write_ct


def test_default_slice_has_the_largest_body_area_and_the_default_point_its_centre(tmp_path: Path) -> None:
    image = read_slice(write_ct(tmp_path / "ct.nii.gz"))
    assert image.name == "ct.nii.gz, slice 4 of 10"
    assert image.in_mm
    assert (image.in_hu, image.pixels.shape) == (True, (1, 48, 64))
    assert image.spacing_mm == pytest.approx((0.8, 0.8))
    assert body_centre(image) in [(y, x) for y in (23, 24) for x in (39, 40)]


def test_an_array_gives_the_same_slice_as_its_file(tmp_path: Path) -> None:
    path = write_ct(tmp_path / "ct.nii.gz")
    volume = sitk.GetArrayFromImage(sitk.ReadImage(path))
    for index in (None, 5):
        from_file, from_array = read_slice(str(path), index), slice_of_array(volume, (3.0, 0.8, 0.8), index)
        np.testing.assert_array_equal(from_array.pixels, from_file.pixels)
        assert from_array.spacing_mm == pytest.approx(from_file.spacing_mm)
        assert (from_array.in_hu, from_array.eight_bit) == (from_file.in_hu, from_file.eight_bit) == (True, False)
    assert slice_of_array(volume, (3.0, 0.8, 0.8)).name == "the array, slice 4 of 10"


def test_a_flat_array_is_a_picture_whose_axes_keep_their_spacing() -> None:
    picture = np.arange(600, dtype=np.uint16).reshape(20, 30)[:, ::2]
    image = slice_of_array(picture, (2, 1))
    np.testing.assert_array_equal(image.pixels, picture[np.newaxis])
    assert (image.spacing_mm, image.name, image.in_hu) == ((2.0, 1.0), "the array", False)


def test_whether_an_array_is_in_hu_can_be_said() -> None:
    soft_tissue = np.full((20, 30), 40)
    assert not slice_of_array(soft_tissue, (1, 1)).in_hu
    assert slice_of_array(soft_tissue, (1, 1), in_hu=True).in_hu
    assert not slice_of_array(soft_tissue - 500, (1, 1), in_hu=False).in_hu


@pytest.mark.parametrize(
    ("voxels", "spacing", "index", "message"),
    [
        (np.ones((2, 3, 20, 30)), (1, 1, 1), None, r"An array of shape \(2, 3, 20, 30\) is no picture \(y, x\) and no"),
        (np.ones((0, 30)), (1, 1), None, r"An array of shape \(0, 30\)"),
        (
            np.ones((3, 20, 30)),
            (1, 1),
            None,
            r"must be 3 positive numbers of millimetres \(z, y, x\), not \(1\.0, 1\.0\)",
        ),
        (np.ones((20, 30)), (1, 0), None, r"must be 2 positive numbers of millimetres \(y, x\)"),
        (np.ones((20, 30)), (1, np.nan), None, "must be 2 positive numbers"),
        (np.full((20, 30), np.inf), (1, 1), None, "the array holds values that are not finite: 600 of 600"),
        (np.ones((20, 30), complex), (1, 1), None, "the array holds values of type complex128"),
        (np.ones((3, 20, 30)), (1, 1, 1), 3, "the array has 3 axial slices, 1 to 3; there is no slice 4"),
    ],
)
def test_arrays_that_are_no_image_are_refused(
    voxels: np.ndarray, spacing: tuple[float, ...], index: int | None, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        slice_of_array(voxels, spacing, index)


def test_point_lies_on_the_body_even_where_its_centre_of_mass_does_not() -> None:
    pixels = np.full((1, 40, 80), -1000, np.float32)
    pixels[0, 10:30, 5:25] = pixels[0, 10:30, 55:75] = 40  # two thighs
    y, x = body_centre(ImageSlice(pixels, (1.0, 1.0), "", True, False))
    assert pixels[0, y, x] == 40


@pytest.mark.parametrize("orientation", ["LPS", "RAS", "PIL"])
def test_slices_are_axial_with_the_patients_right_on_the_left(tmp_path: Path, orientation: str) -> None:
    voxels = np.arange(3 * 40 * 50, dtype=np.int16).reshape(3, 40, 50)
    stored = sitk.GetImageFromArray(voxels)
    stored.SetSpacing((1.0, 2.0, 5.0))
    sitk.WriteImage(sitk.DICOMOrient(stored, orientation), tmp_path / "v.nii.gz")
    image = read_slice(tmp_path / "v.nii.gz", 1)
    np.testing.assert_array_equal(image.pixels[0], voxels[1])
    assert image.spacing_mm == pytest.approx((2.0, 1.0))


def test_colour_pictures_keep_their_colours_unless_a_channel_is_chosen(tmp_path: Path) -> None:
    rgb = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    path = write(tmp_path / "p.png", rgb, spacing=(0.1, 0.3), colour=True)
    image = read_slice(path)
    np.testing.assert_array_equal(image.pixels, np.moveaxis(rgb, -1, 0))
    assert (image.spacing_mm, image.eight_bit, image.in_hu, image.name) == ((1.0, 1.0), True, False, "p.png")
    np.testing.assert_array_equal(read_slice(path, channel=2).pixels[0], rgb[..., 2])


def test_opacity_of_a_picture_is_no_channel_of_its_colour(tmp_path: Path) -> None:
    rgba = np.random.default_rng(0).integers(0, 255, (20, 30, 4), dtype=np.uint8)
    path = write(tmp_path / "p.png", rgba, colour=True)
    np.testing.assert_array_equal(read_slice(path).pixels, np.moveaxis(rgba[..., :3], -1, 0))


def test_channels_along_the_fourth_dimension(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).uniform(0, 100, (2, 3, 20, 30)).astype(np.float32)
    path = write(tmp_path / "v.nii.gz", voxels, spacing=(1.0, 1.0, 1.0, 1.0))
    np.testing.assert_array_equal(read_slice(path, 2).pixels[0], voxels[0, 2])
    np.testing.assert_array_equal(read_slice(path, 2, channel=1).pixels[0], voxels[1, 2])


def test_jpeg_is_read(tmp_path: Path) -> None:
    grey = np.tile(np.arange(0, 240, 4, dtype=np.uint8), (40, 1))
    image = read_slice(write(tmp_path / "p.jpg", grey))
    assert not image.in_mm
    np.testing.assert_allclose(image.pixels[0], grey, atol=4)


def test_values_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    voxels = np.ones((3, 32, 32), np.float32)
    voxels[1, 2, 3] = np.nan
    with pytest.raises(DataError, match=r"v\.mha holds values that are not finite"):
        read_slice(write(tmp_path / "v.mha", voxels))
