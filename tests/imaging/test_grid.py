"""How volumes are turned to axial slices."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from nnunetv2_meddino.imaging.grid import affine_grid, to_axial
from nnunetv2_meddino.imaging.io import read_image

VOXELS = np.arange(3 * 4 * 5, dtype=np.int16).reshape(3, 4, 5)


@pytest.mark.parametrize("orientation", ["LPS", "RAS", "LAI", "PIL", "SRP", "ASL"])
def test_volumes_are_turned_to_axial_slices_with_the_patients_right_on_the_left(
    tmp_path: Path, orientation: str
) -> None:
    stored = sitk.GetImageFromArray(VOXELS)
    stored.SetSpacing((1.0, 2.0, 5.0))
    sitk.WriteImage(sitk.DICOMOrient(stored, orientation), tmp_path / "v.nii.gz")
    image = read_image(tmp_path / "v.nii.gz")
    voxels, spacing_mm = to_axial(image.channels, image.grid)
    np.testing.assert_array_equal(voxels, VOXELS[None])
    assert spacing_mm == pytest.approx((5.0, 2.0, 1.0))


def test_oblique_volumes_are_turned_as_simpleitk_turns_them() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        affine = np.eye(4)
        rotation, _ = np.linalg.qr(random.normal(size=(3, 3)))
        if np.sort(np.abs(rotation), axis=0)[-1].min() < 0.75:
            continue  # an axis halfway between two: readers may differ
        affine[:3, :3] = rotation @ np.diag([1.0, 2.0, 5.0])
        stored = sitk.GetImageFromArray(VOXELS)
        stored.SetSpacing((1.0, 2.0, 5.0))
        if np.linalg.det(rotation) < 0:
            continue  # SimpleITK has no left-handed directions
        stored.SetDirection((np.diag([-1, -1, 1]) @ rotation).ravel())
        expected = sitk.DICOMOrient(stored, "LPS")
        voxels, spacing_mm = to_axial(VOXELS, affine_grid(affine))
        np.testing.assert_array_equal(voxels, sitk.GetArrayFromImage(expected))
        assert spacing_mm == pytest.approx(expected.GetSpacing()[::-1])


def test_axes_that_are_not_perpendicular_go_where_they_are_nearest_to() -> None:
    affine = np.diag([-3.0, 3.0, 2.0, 1.0])[[1, 0, 2, 3]]  # array axis x runs to the front, y to the patient's left
    affine[0, 2] = 0.5
    voxels, spacing_mm = to_axial(VOXELS, affine_grid(affine))
    closest = nibabel.as_closest_canonical(nibabel.Nifti1Image(VOXELS.T, affine))
    np.testing.assert_array_equal(voxels, np.asanyarray(closest.dataobj).T[:, ::-1, ::-1])
    assert spacing_mm == pytest.approx((np.hypot(2, 0.5), 3, 3))


@pytest.mark.parametrize("fault", [0.0, np.nan])
def test_an_affine_that_spans_no_volume_is_refused(fault: float) -> None:
    affine = np.eye(4)
    affine[1, 1] = fault
    with pytest.raises(ValueError, match="spans no volume"):
        affine_grid(affine)
