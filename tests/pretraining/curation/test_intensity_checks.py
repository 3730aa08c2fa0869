"""Every kind of awkward input is read right or rejected with its reason; none crashes."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from pretraining.corpus.slice_statistics import histogram
from pretraining.curation import intensity_checks
from pretraining.curation.geometry import orientation
from pretraining.curation.readers.read import find_candidates, read_volume
from pretraining.curation.volume import FLAGS, REASONS, Rejected
from pretraining.modality import Modality
from tests.conftest import shared_path
from tests.pretraining.curation.awkward import KINDS, PLAIN, SHAPE, write_nifti


@pytest.mark.parametrize("kind", KINDS)
def test_awkward_input_is_read_right_or_refused(kind: str, tmp_path: Path) -> None:
    awkward = KINDS[kind]
    awkward.make(tmp_path)
    (candidate,) = find_candidates(tmp_path)
    if awkward.reason is not None:
        with pytest.raises(Rejected) as caught:
            read_volume(candidate, awkward.modality)
        assert caught.value.reason == awkward.reason, caught.value
        assert str(tmp_path) in caught.value.message
        return
    volume = read_volume(candidate, awkward.modality)
    assert set(volume.flags) == set(awkward.flags)
    assert volume.voxels.dtype == np.int16
    assert volume.voxels.flags.c_contiguous
    if awkward.expected is not None:
        np.testing.assert_array_equal(volume.voxels, awkward.expected)


def test_refusals_survive_the_way_between_processes() -> None:
    rejected = pickle.loads(pickle.dumps(Rejected("4d", "a.nii: two volumes")))
    assert (rejected.reason, rejected.message) == ("4d", "a.nii: two volumes")


def test_every_reason_and_flag_is_explained() -> None:
    assert all(REASONS.values())
    assert all(FLAGS.values())
    with pytest.raises(KeyError):
        Rejected("no such reason", "")


def test_crops_without_air_and_phantoms_of_few_values_are_hounsfield() -> None:
    rng = np.random.default_rng(0)
    inside = np.rint(rng.normal(50, 30, (8, 40, 40))).astype(np.int16)
    inside[:, :10] = np.rint(rng.normal(-100, 30, (8, 10, 40)))
    intensity_checks.check_hounsfield(histogram(inside))
    blocks = np.full(SHAPE, -1000, np.int16)
    blocks[:, 10:30, 10:30], blocks[:, 15:20, 15:20] = 40, 700
    counts = histogram(blocks)
    intensity_checks.check_grey_levels(counts, blocks.dtype)
    intensity_checks.check_hounsfield(counts)


def test_histogram_equals_numpys() -> None:
    counts = histogram(PLAIN)
    expected, _ = np.histogram(PLAIN, bins=np.arange(-32768, 32769) - 0.5 + 0.0)
    np.testing.assert_array_equal(counts[: len(expected)], expected)


def test_stated_padding_within_tissue_is_left_alone() -> None:
    voxels = PLAIN.copy()
    assert not intensity_checks.replace_padding(voxels, histogram(voxels), frozenset({0, 40, -1024}))
    np.testing.assert_array_equal(voxels, PLAIN)


def test_values_of_other_modalities_are_kept_or_scaled(tmp_path: Path) -> None:
    write_nifti(tmp_path / "whole.nii.gz", (PLAIN + 1024).astype(np.uint16))
    write_nifti(tmp_path / "broken.nii.gz", ((PLAIN + 1024) / 4096).astype(np.float32))
    broken, whole = (read_volume(candidate, Modality.MR) for candidate in find_candidates(tmp_path))
    np.testing.assert_array_equal(whole.voxels, PLAIN + 1024)
    assert whole.flags == ()
    assert broken.flags == ("rescaled",)
    assert broken.modality == "MR"
    scale = broken.metadata["intensity_scale"]
    np.testing.assert_allclose(broken.voxels / scale, (PLAIN + 1024) / 4096, atol=0.51 / scale)


def test_orientation_is_found_under_an_oblique_angle() -> None:
    angle = np.radians(20)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    # stored axes, slowest first: to the front, to the right, to the head
    steps = np.array([[0, -0.8, 0], [-0.7, 0, 0], [0, 0, 3.0]]) @ turn.T
    found = orientation(steps)
    assert found.order == (2, 0, 1)
    assert found.reverse == (False, True, True)
    np.testing.assert_allclose(found.spacing_mm, (3, 0.8, 0.7))
    assert found.obliquity_deg == pytest.approx(20)
    assert found.stored == "SRA"


@pytest.mark.parametrize("offset", [1024, -1024])
@pytest.mark.parametrize("name", ["dicom_abdomen_crlm1004", "chest_lidc0314_1mm.nii.gz", "thigh_sts029.nrrd"])
def test_real_ct_with_a_wrong_offset_is_refused(name: str, offset: int) -> None:
    path = shared_path(f"data/unlabelled/{name}")
    (candidate,) = (found for found in find_candidates(path.parent) if found.path == path)
    voxels = read_volume(candidate, Modality.CT).voxels
    intensity_checks.check_hounsfield(histogram(voxels))
    with pytest.raises(Rejected, match="not_hounsfield"):
        intensity_checks.check_hounsfield(histogram(voxels + np.int16(offset)))
