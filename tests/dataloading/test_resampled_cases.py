"""Slices resampled as they are read against those that nnU-Net's preprocessing stores for the configuration."""

from __future__ import annotations

import pickle
from types import SimpleNamespace

import numpy as np
import pytest
from batchgenerators.utilities.file_and_folder_operations import load_pickle, write_pickle
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from scipy.stats import chisquare

from nnunetv2_meddino.dataloading.augmentation import AugmentationSettings
from nnunetv2_meddino.dataloading.cases import PreprocessedCases
from nnunetv2_meddino.dataloading.draws import Draws, Stream
from nnunetv2_meddino.dataloading.loader import SampleSettings, SliceBatches
from nnunetv2_meddino.dataloading.resampled_cases import ResampledCases, SliceResampling
from nnunetv2_meddino.errors import ConfigurationError, DataError
from tests.dataloading.stored import RESAMPLING, plans_of, store

THICK = (4.0, 1.0, 1.0)
"""A spacing in which nnU-Net resamples slice by slice; in that of an even volume, all of it together."""


def resampling_of(plans) -> SliceResampling:
    return SliceResampling.of(plans.get_configuration("2d_fine").configuration, plans.transpose_forward)


def stored_twice(folder, plans, spacings):
    """The cases of ``2d`` that are resampled while they are read, and those that nnU-Net stores for ``2d_fine``."""
    native = ResampledCases(store(folder, plans, "2d", spacings), resampling_of(plans))
    return native, PreprocessedCases(store(folder, plans, "2d_fine", spacings))


def slices_of(cases, case):
    slices, rows, columns = cases.shape(case)
    for z in range(slices):
        yield cases.read(case, z, (0, rows), (0, columns))


@pytest.mark.parametrize("seg_order", [1, 0])
@pytest.mark.parametrize("zoom", [(1.25, 1.25), (1.75, 1.75), (2.3, 2.3), (1.4, 2.2), (0.8, 1.5), (1.0, 1.3)])
def test_slices_are_those_that_nnunet_stores(tmp_path, zoom, seg_order):
    """Catches a shape from the stored one, half a pixel, labels of another rule, clipping to another range."""
    plans = plans_of([1 / zoom[0], 1 / zoom[1]], seg_order=seg_order)
    read, stored = stored_twice(tmp_path, plans, [THICK])
    assert read.shape("case_0") == stored.shape("case_0") != PreprocessedCases(read.dataset).shape("case_0")
    assert read.channels("case_0") == 1
    for (image, labels), (stored_image, stored_labels) in zip(
        slices_of(read, "case_0"), slices_of(stored, "case_0"), strict=True
    ):
        np.testing.assert_allclose(image, stored_image, atol=1e-5)
        np.testing.assert_array_equal(labels, stored_labels)
        assert set(np.unique(labels)) >= {0, 1}
        assert (image.dtype, labels.dtype) == (np.float32, np.int16)


def test_a_volume_that_nnunet_resamples_as_a_whole_differs_only_beyond_the_range_of_a_slice(tmp_path):
    read, stored = stored_twice(tmp_path, plans_of([0.6, 0.5]), [(1.5, 1.0, 1.0)])
    assert read.shape("case_0") == stored.shape("case_0")
    for (image, labels), (stored_image, stored_labels) in zip(
        slices_of(read, "case_0"), slices_of(stored, "case_0"), strict=True
    ):
        within = np.clip(stored_image, image.min(), image.max())
        np.testing.assert_allclose(image, within, atol=1e-4)
        assert (within != stored_image).mean() < 0.001
        np.testing.assert_array_equal(labels, stored_labels)


@pytest.mark.parametrize("spacing", [(4.0, 0.7, 0.75), (4.0, 1.35, 1.2)])
def test_a_case_that_was_not_in_the_spacing_of_2d_gets_its_shape_and_nearly_its_slices(tmp_path, spacing):
    """It is interpolated twice: what a coarser 2d has lost is not in it."""
    read, stored = stored_twice(tmp_path, plans_of([0.45, 0.4]), [spacing])
    assert read.shape("case_0") == stored.shape("case_0")
    for (image, labels), (stored_image, stored_labels) in zip(
        slices_of(read, "case_0"), slices_of(stored, "case_0"), strict=True
    ):
        assert np.abs(image - stored_image).mean() < 0.03 * np.ptp(stored_image)
        assert (labels == stored_labels).mean() > 0.98


def test_a_box_is_that_of_the_slice_and_equal_sizes_are_left_as_they_are(tmp_path):
    read, _ = stored_twice(tmp_path, plans_of([0.6, 0.5]), [THICK])
    _, rows, columns = read.shape("case_0")
    image, labels = read.read("case_0", 2, (0, rows), (0, columns))
    part = read.read("case_0", 2, (20, 41), (3, columns))
    np.testing.assert_array_equal(part[0], image[:, 20:41, 3:])
    np.testing.assert_array_equal(part[1], labels[20:41, 3:])
    same = ResampledCases(read.dataset, resampling_of(plans_of([1.0, 1.0])))
    stored = PreprocessedCases(read.dataset)
    for mine, theirs in zip(slices_of(same, "case_0"), slices_of(stored, "case_0"), strict=True):
        np.testing.assert_array_equal(mine[0], theirs[0])
        np.testing.assert_array_equal(mine[1], theirs[1])


def test_voxels_are_where_their_centres_lie(tmp_path):
    read, _ = stored_twice(tmp_path, plans_of([1 / 1.75, 1 / 2.3]), [THICK])
    stored = PreprocessedCases(read.dataset)
    shape, fine = stored.shape("case_0"), read.shape("case_0")
    found = read.foreground("case_0")
    for label, voxels in stored.foreground("case_0").items():
        places = np.stack(np.unravel_index(voxels, shape), 1)
        expected = np.floor((places + 0.5) * np.array(fine) / shape)
        np.testing.assert_array_equal(np.stack(np.unravel_index(found[label], fine), 1), expected)
        labels = np.stack([labels for _, labels in slices_of(read, "case_0")])
        assert (labels.reshape(-1)[found[label]] == label).mean() > 0.99


def batches(cases, *, augmented: bool, forced: float, size=(64, 80)) -> SliceBatches:
    draws = Draws(cases, size, batch_size=4, forced=forced, seed=3, stream=Stream.TRAINING)
    settings = AugmentationSettings(1, (-np.pi, np.pi)) if augmented else None
    return SliceBatches(cases, draws, SampleSettings(settings, (True,), None), range(4))


@pytest.mark.parametrize("augmented", [False, True])
def test_samples_are_those_of_stored_slices_augmented_too(tmp_path, augmented):
    plans = plans_of([1 / 1.75, 1 / 2.3])
    read, stored = stored_twice(tmp_path, plans, [THICK] * 2)
    mine, theirs = (batches(cases, augmented=augmented, forced=0) for cases in (read, stored))
    for step in range(15):
        a, b = mine.batch(step), theirs.batch(step)
        assert a["keys"] == b["keys"]
        np.testing.assert_allclose(a["data"], b["data"], atol=1e-3)
        assert (a["target"] == b["target"]).float().mean() > 0.9999


def test_boxes_lie_evenly_among_those_that_hold_the_voxel(tmp_path):
    """Counted in the spacing that is trained."""
    plans = plans_of([0.5, 1 / 2.3])
    dataset = store(tmp_path, plans, "2d", [THICK])
    file = tmp_path / "native/case_0.pkl"
    properties = load_pickle(str(file))
    properties["class_locations"] = {1: [[0, 2, 20, 30]], 2: []}
    write_pickle(properties, str(file))
    read = ResampledCases(nnUNetDatasetBlosc2(dataset.source_folder), resampling_of(plans))
    rows, columns = 24, 32
    draws = Draws(read, (rows, columns), batch_size=1, forced=1, seed=1, stream=Stream.TRAINING)
    drawn = [draws.draw(step, 0) for step in range(4000)]
    assert {draw.slice_index for draw in drawn} == {2}
    held = 41, int(30.5 * read.shape("case_0")[2] / 51)
    for axis, (place, size) in enumerate(zip(held, (rows, columns), strict=True)):
        highest = min(place, read.shape("case_0")[1 + axis] - size)
        counts = np.bincount([draw.corner[axis] - (place - size + 1) for draw in drawn])
        assert len(counts) == highest - (place - size + 1) + 1
        assert chisquare(counts).pvalue > 1e-3
    free = Draws(read, (rows, columns), batch_size=1, forced=0, seed=1, stream=Stream.TRAINING)
    corners = np.array([free.draw(step, 0).corner for step in range(4000)])
    for axis, size in enumerate((rows, columns)):
        counts = np.bincount(corners[:, axis])
        assert len(counts) == read.shape("case_0")[1 + axis] - size + 1
        assert chisquare(counts).pvalue > 1e-3


def test_workers_may_be_spawned(tmp_path):
    read, _ = stored_twice(tmp_path, plans_of([0.6, 0.5]), [THICK])
    expected = read.read("case_0", 1, (0, 9), (0, 9))
    again = pickle.loads(pickle.dumps(read)).read("case_0", 1, (0, 9), (0, 9))
    np.testing.assert_array_equal(again[0], expected[0])


@pytest.mark.parametrize(
    "changes",
    [
        {"resampling_fn_data": "resample_torch_fornnunet"},
        {"resampling_fn_data_kwargs": {**RESAMPLING, "order": 1}},
        {"resampling_fn_data_kwargs": {**RESAMPLING, "force_separate_z": True}},
        {"resampling_fn_seg_kwargs": {**RESAMPLING, "is_seg": True, "order": 3}},
        {"resampling_fn_seg": "no_resampling_data_or_seg_to_shape"},
    ],
)
def test_what_is_resampled_otherwise_is_refused(changes):
    with pytest.raises(ConfigurationError, match="cannot be done while training. Plan without --lazy-resample"):
        resampling_of(plans_of([0.5, 0.5], **changes))


def test_a_case_with_a_coarse_axis_in_its_slices_is_refused_and_a_damaged_one_told(tmp_path):
    resampling = resampling_of(plans_of([0.5, 0.5]))
    properties = {"spacing": [1.0, 5.0, 1.0], "shape_after_cropping_and_before_resampling": (4, 9, 40)}
    with pytest.raises(DataError, match="case_7 are 1 x 5 x 1 mm: an axis of its slices is so coarse"):
        resampling.shape("case_7", properties)
    (tmp_path / "case_0.pkl").write_bytes(b"half")
    dataset = SimpleNamespace(identifiers=["case_0"], source_folder=str(tmp_path))
    with pytest.raises(DataError, match="^The preprocessed case case_0"):
        ResampledCases(dataset, resampling).shape("case_0")
