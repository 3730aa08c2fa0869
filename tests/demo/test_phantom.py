"""The phantom: what nnU-Net and a reader of CT expect of it."""

from __future__ import annotations

import json
import multiprocessing
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity
from scipy.ndimage import binary_erosion

from nnunetv2_meddino.demo.phantom import HU_RANGES, LABELS, NOISE_SD_HU, make_phantom_case, make_phantom_dataset

ORGANS = ("liver", "spleen", "kidneys")


@pytest.fixture(scope="module")
def case() -> tuple[np.ndarray, np.ndarray, tuple[float, float, float]]:
    return make_phantom_case(np.random.default_rng(7))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_phantom_dataset(tmp_path_factory.mktemp("raw"), num_training=2, num_test=1, seed=5)


def interior(mask: np.ndarray) -> np.ndarray:
    """The mask less the rim of 3 px that the blur reaches."""
    return binary_erosion(mask, np.ones((1, 7, 7), bool))


@pytest.mark.parametrize("seed", range(4))
def test_organs_have_the_attenuation_they_are_drawn_from(seed: int) -> None:
    image, labels, _ = make_phantom_case(np.random.default_rng(seed))
    for organ in ORGANS:
        voxels = image[interior(labels == LABELS[organ])].astype(float)
        lower, upper = HU_RANGES[organ]
        # Three standard errors; neighbours share noise, so about one voxel in eight counts as independent.
        margin = 3 * NOISE_SD_HU / np.sqrt(len(voxels) / 8)
        assert len(voxels) > 300
        assert lower - margin <= voxels.mean() <= upper + margin
        assert voxels.std() == pytest.approx(NOISE_SD_HU, rel=0.15)


def test_spine_is_bone_round_marrow(case: tuple) -> None:
    image, labels, _ = case
    spine = image[labels == LABELS["spine"]]
    assert spine.max() > HU_RANGES["cortical_bone"][0]
    assert HU_RANGES["spongiosa"][0] < np.percentile(spine, 40) < HU_RANGES["cortical_bone"][0]


def test_air_surrounds_the_body_and_lung_is_in_the_upper_slices_only(case: tuple) -> None:
    image, _, _ = case
    assert abs(image[:, 0, 0].mean() - HU_RANGES["air"][0]) < NOISE_SD_HU
    lower, upper = HU_RANGES["lung"]
    lung = interior((image > lower - 40) & (image < upper + 40)).sum(axis=(1, 2))
    assert lung[-1] > 500
    assert lung[0] == 0


@pytest.mark.parametrize("seed", range(4))
def test_every_structure_is_present_and_wide_enough_for_a_16_px_token(seed: int) -> None:
    image, labels, _ = make_phantom_case(np.random.default_rng(seed))
    assert image.dtype == np.int16
    assert labels.dtype == np.uint8
    assert image.shape == labels.shape
    for value in set(LABELS.values()) - {0}:
        largest_slice_px = (labels == value).sum(axis=(1, 2)).max()
        assert largest_slice_px > np.pi * 10**2


def test_liver_is_on_the_left_of_the_picture_and_the_spine_at_the_back(case: tuple) -> None:
    _, labels, _ = case
    _, height, width = labels.shape
    centre = {name: np.argwhere(labels == value).mean(axis=0) for name, value in LABELS.items()}
    assert centre["liver"][2] < width / 2 < centre["spleen"][2]
    assert centre["spine"][1] > height / 2


def test_the_seed_decides_the_patient() -> None:
    first, again, other = (make_phantom_case(np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert first[2] == again[2]
    assert (first[1] != other[1]).any()


def test_nnunet_accepts_the_data_set(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: SimpleNamespace(Pool=ThreadPool))  # quicker to start
    verify_dataset_integrity(str(dataset), num_processes=1)
    description = json.loads((dataset / "dataset.json").read_text())
    assert description["channel_names"] == {"0": "CT"}
    assert len(list((dataset / "labelsTs").glob("*.nii.gz"))) == 1


def test_files_hold_the_case_with_its_spacing_in_simpleitk_axis_order(dataset: Path) -> None:
    image, labels, spacing_mm = make_phantom_case(np.random.default_rng(5))
    written = sitk.ReadImage(str(dataset / "imagesTr" / "phantomTr_000_0000.nii.gz"))
    assert spacing_mm[0] == 6.0
    assert written.GetSpacing() == pytest.approx((spacing_mm[2], spacing_mm[1], 6.0))
    assert written.GetPixelID() == sitk.sitkInt16
    np.testing.assert_array_equal(sitk.GetArrayFromImage(written), image)
    segmentation = sitk.ReadImage(str(dataset / "labelsTr" / "phantomTr_000.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(segmentation), labels)
