"""Stored slices, resampled for the validation, against what nnU-Net stores in the spacing of the network."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nnunetv2_meddino.inference.preprocessing import StoredSlices
from nnunetv2_meddino.inference.resampling import resampling_of
from tests.dataloading.stored import plans_of, store


@pytest.mark.parametrize("distance_mm", [4.0, 1.2])
def test_resampled_slices_are_those_of_nnunet_whether_it_resamples_slices_or_the_volume(tmp_path, distance_mm):
    """Catches clipping to the range of the slice where nnU-Net clips to that of the volume."""
    plans, spacing = plans_of([0.6, 0.45]), (distance_mm, 1.0, 1.0)
    native, fine = (store(tmp_path, plans, name, [spacing]).load_case("case_0") for name in ("2d", "2d_fine"))
    data, properties, expected = native[0], native[3], fine[0][:]
    configuration = plans.get_configuration("2d_fine")
    target = (distance_mm, *configuration.spacing)
    sizes = data.shape[1:], expected.shape[1:]
    resampling = resampling_of(configuration.configuration, "data", *sizes, spacing, target)
    slices = StoredSlices(data, properties, torch.device("cpu"), resampling)
    assert slices.shape == expected.shape[1:]
    np.testing.assert_allclose(slices.read(1, 4), expected[:, 1:4].swapaxes(0, 1), atol=1e-4)
    assert StoredSlices(data, properties, torch.device("cpu")).shape == data.shape[1:]
