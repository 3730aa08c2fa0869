"""Label maps of any format, and which of them lie on one grid."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import tifffile

from nnunetv2_meddino.errors import DataError
from nnunetv2_meddino.imaging.segmentation import check_same_grid, read_segmentation
from tests.conftest import shared_path

GEOMETRY = ["same", "shape", "shape_broadcastable", "spacing", "spacing_float_noise", "origin", "direction"]
XYZ_MM = (0.7, 0.9, 2.5)
LABELS = np.random.default_rng(0).integers(0, 4, (6, 9, 12)).astype(np.uint8)
AFFINE = np.array([[-0.7, 0, 0, -1.0], [0, -0.9, 0, -2.0], [0, 0, 2.5, 3.0], [0, 0, 0, 1]])
"""What ``write`` makes, in nibabel's coordinates."""


def write(path: Path, labels: np.ndarray = LABELS, *, spacing=XYZ_MM, origin=(1.0, 2.0, 3.0)) -> Path:
    image = sitk.GetImageFromArray(labels)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    sitk.WriteImage(image, path, True)
    return path


@pytest.mark.parametrize("name", GEOMETRY)
def test_golden_geometry_pairs_get_their_verdict_with_both_files_named(name):
    golden = shared_path("golden_metrics")
    expected = json.loads((golden / "expected.json").read_text())["geometry"][name]
    files = [golden / expected["ref"], golden / expected["pred"]]
    reference, prediction = map(read_segmentation, files)
    if expected["expect"] == "ok":
        check_same_grid(reference, prediction)
        return
    with pytest.raises(DataError) as caught:
        check_same_grid(reference, prediction)
    assert all(str(file) in str(caught.value) for file in files)
    assert {"shape_broadcastable": "shape"}.get(name, name) in str(caught.value)


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha", ".mhd", ".gipl", ".hdr"])
def test_every_format_gives_the_same_labels_and_grid_in_array_order(tmp_path, ending):
    reference = read_segmentation(write(tmp_path / "reference.nrrd"))
    read = read_segmentation(write(tmp_path / f"case{ending}"))
    np.testing.assert_array_equal(read.labels, LABELS)
    np.testing.assert_allclose(read.grid.spacing_mm, (2.5, 0.9, 0.7), rtol=1e-6)
    np.testing.assert_allclose(read.grid.origin_mm, (1, 2, 3))
    np.testing.assert_allclose(read.grid.directions, np.eye(3)[::-1], atol=1e-6)
    check_same_grid(reference, read)


@pytest.mark.parametrize("ending", [".nii.gz", ".mgz"])
def test_files_that_nibabel_writes_lie_on_the_grid_that_simpleitk_writes(tmp_path, ending):
    image_class = nibabel.MGHImage if ending == ".mgz" else nibabel.Nifti1Image
    nibabel.save(image_class(LABELS.T, AFFINE), tmp_path / f"case{ending}")
    read = read_segmentation(tmp_path / f"case{ending}")
    np.testing.assert_array_equal(read.labels, LABELS)
    check_same_grid(read_segmentation(write(tmp_path / "reference.nrrd")), read)


def test_a_nifti_file_that_simpleitk_refuses_for_its_axes_is_read_by_its_affine(tmp_path):
    sheared = AFFINE.copy()
    sheared[0, 1] = 0.2
    nibabel.save(nibabel.Nifti1Image(LABELS.T, sheared), tmp_path / "case.nii.gz")
    with pytest.raises(RuntimeError, match="orthonormal"):
        sitk.ReadImage(tmp_path / "case.nii.gz")
    read = read_segmentation(tmp_path / "case.nii.gz")
    np.testing.assert_array_equal(read.labels, LABELS)
    np.testing.assert_allclose(read.grid.spacing_mm, (2.5, np.hypot(0.9, 0.2), 0.7), rtol=1e-6)
    np.testing.assert_allclose(read.grid.directions[2], (1, 0, 0), atol=1e-6)
    with pytest.raises(DataError, match="direction"):
        check_same_grid(read_segmentation(write(tmp_path / "reference.nrrd")), read)


def test_a_nifti_file_without_orientation_fits_what_nnunet_writes_for_it(tmp_path):
    """Nibabel would put the origin into the centre of such a volume; nnU-Net writes what SimpleITK makes of it."""
    image = nibabel.Nifti1Image(LABELS.T, None)
    image.header.set_zooms(XYZ_MM)
    nibabel.save(image, tmp_path / "reference.nii.gz")
    sitk.WriteImage(sitk.ReadImage(tmp_path / "reference.nii.gz"), tmp_path / "prediction.nii.gz")
    check_same_grid(read_segmentation(tmp_path / "reference.nii.gz"), read_segmentation(tmp_path / "prediction.nii.gz"))


@pytest.mark.parametrize(
    ("change", "ok"),
    [
        ({"spacing": (0.7, 0.9, 2.502)}, True),
        ({"spacing": (0.7, 0.9, 2.503)}, False),
        ({"origin": (1.0, 2.0, 3.024)}, True),
        ({"origin": (1.0, 2.0, 3.026)}, False),
        ({"origin": (1.008, 2.0, 3.0)}, False),  # a hundredth of a voxel is less along x than along z
    ],
)
def test_tolerances_of_spacing_are_relative_and_those_of_the_origin_in_voxels(tmp_path, change, ok):
    reference = read_segmentation(write(tmp_path / "reference.nrrd"))
    prediction = read_segmentation(write(tmp_path / "prediction.nrrd", **change))
    if ok:
        check_same_grid(reference, prediction)
    else:
        with pytest.raises(DataError, match=next(iter(change))):
            check_same_grid(reference, prediction)


def test_origins_that_differ_are_shown_as_they_differ(tmp_path):
    """Six digits would show two equal origins."""
    reference = read_segmentation(write(tmp_path / "reference.nrrd", origin=(10234.56, 2.0, 3.0)))
    prediction = read_segmentation(write(tmp_path / "prediction.nrrd", origin=(10234.58, 2.0, 3.0)))
    with pytest.raises(DataError, match=re.escape("origin (10234.56, 2, 3) and (10234.58, 2, 3) mm")):
        check_same_grid(reference, prediction)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0.5, "value 0.5;"),
        (np.nan, "value nan;"),
        (np.inf, "value inf;"),
        (1e12, r"value 1e\+12;"),
        (np.nextafter(np.float32(1), np.float32(2)), "value 1.0000001;"),
    ],
)
def test_values_that_are_no_labels_are_refused_with_the_value(tmp_path, value, message):
    labels = LABELS.astype(np.float32)
    labels[3, 4, 5] = value
    with pytest.raises(DataError, match=message):
        read_segmentation(write(tmp_path / "case.nii.gz", labels))


def test_whole_numbers_in_a_float_type_are_labels(tmp_path):
    read = read_segmentation(write(tmp_path / "case.nii.gz", LABELS.astype(np.float64)))
    np.testing.assert_array_equal(read.labels, LABELS)


def test_what_is_no_single_volume_is_refused(tmp_path):
    colour = sitk.GetImageFromArray(np.zeros((4, 5, 3), np.uint8), isVector=True)
    sitk.WriteImage(colour, tmp_path / "colour.png")
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 5, 6, 2), np.uint8), np.eye(4)), tmp_path / "four.nii.gz")
    (tmp_path / "text.nii.gz").write_text("no image")
    (tmp_path / "empty.nrrd").touch()
    for name, reason in [
        ("colour.png", "3 values per voxel"),
        ("four.nii.gz", "shape"),
        ("text.nii.gz", "NIfTI"),
        ("empty.nrrd", "cannot be read"),
        ("absent.mha", "does not exist"),
    ]:
        with pytest.raises(DataError, match=f"{name}.*{reason}"):
            read_segmentation(tmp_path / name)


def test_a_fourth_axis_of_one_element_is_dropped(tmp_path):
    nibabel.save(nibabel.Nifti1Image(LABELS.T[..., np.newaxis], AFFINE), tmp_path / "case.nii.gz")
    read = read_segmentation(tmp_path / "case.nii.gz")
    check_same_grid(read_segmentation(write(tmp_path / "reference.nrrd")), read)


def test_pictures_are_single_slices_of_square_pixels_of_1_mm(tmp_path):
    sitk.WriteImage(sitk.GetImageFromArray(LABELS[0]), tmp_path / "case.png")
    read = read_segmentation(tmp_path / "case.png")
    np.testing.assert_array_equal(read.labels, LABELS[:1])
    assert read.grid.spacing_mm == (1, 1, 1)


def test_a_tiff_takes_its_spacing_from_the_file_that_nnunet_writes_beside_it(tmp_path):
    tifffile.imwrite(tmp_path / "case.tif", data=LABELS, compression="zlib")
    assert read_segmentation(tmp_path / "case.tif").grid.spacing_mm == (1, 1, 1)
    (tmp_path / "case.json").write_text('{"spacing": [2.5, 0.9, 0.7]}')
    read = read_segmentation(tmp_path / "case.tif")
    np.testing.assert_array_equal(read.labels, LABELS)
    assert read.grid.spacing_mm == (2.5, 0.9, 0.7)


def test_a_label_map_that_is_stored_with_a_scale_has_the_labels_that_the_header_means(tmp_path):
    nibabel.save(nibabel.Nifti1Image(LABELS.T, AFFINE), tmp_path / "case.nii")
    content = bytearray((tmp_path / "case.nii").read_bytes())
    content[112:120] = np.array([2, 1], "<f4").tobytes()  # scl_slope, scl_inter
    (tmp_path / "case.nii").write_bytes(content)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / "case.nii")), LABELS * 2 + 1)
    np.testing.assert_array_equal(read_segmentation(tmp_path / "case.nii").labels, LABELS * 2 + 1)
