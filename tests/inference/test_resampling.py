"""Slices resampled one by one against nnU-Net's resampling of the volume."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape
from nnunetv2.preprocessing.resampling.resample_torch import resample_torch_fornnunet

from nnunetv2_meddino.errors import ConfigurationError
from nnunetv2_meddino.inference.resampling import SKIMAGE, TORCH, Resampling, resampling_of

FUNCTIONS = {SKIMAGE: resample_data_or_seg_to_shape, TORCH: resample_torch_fornnunet}


def settings(name: str, **arguments: Any) -> dict[str, Any]:
    return {"resampling_fn_data": name, "resampling_fn_data_kwargs": {"is_seg": False, **arguments}}


def limits(volume: np.ndarray, resampling: Resampling) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """What ``PreprocessedImage`` passes: the range of the volume, of its rows or of its columns."""
    axes = {"volume": (1, 2, 3), "row": (1, 3), "column": (1, 2)}.get(resampling.clipped_to or "")
    if axes is None:
        return None, None
    low, high = (torch.from_numpy(reduce(volume, axis=axes, keepdims=True)[:, 0]) for reduce in (np.min, np.max))
    return low, high


@pytest.mark.parametrize("arguments", [{"order": 3}, {"order": 1}, {"order": 0}, {"order": 3, "order_z": 1}, None])
@pytest.mark.parametrize(
    ("source", "target", "before", "after"),
    [
        ((4, 31, 40), (4, 53, 52), (3, 1, 1), (3, 0.6, 0.77)),
        ((4, 53, 52), (4, 31, 40), (3, 0.6, 0.77), (3, 1, 1)),
        ((4, 53, 31), (4, 31, 53), (1, 0.6, 1), (1, 1, 0.6)),
        ((4, 20, 31), (4, 20, 45), (1, 1, 1), (1, 1, 0.7)),
        ((4, 9, 40), (4, 20, 53), (1, 4, 1), (1, 1.8, 0.75)),
        ((4, 40, 9), (4, 53, 20), (1, 1, 4), (1, 0.75, 1.8)),
        ((4, 40, 9), (4, 53, 9), (1, 1, 4), (1, 0.75, 4)),
        ((1, 31, 40), (1, 53, 52), (999, 1, 1), (999, 0.6, 0.77)),
    ],
)
def test_gives_the_slices_of_nnunets_volume(source, target, before, after, arguments):
    """Catches another clipping, border, coarse axis, or half a pixel."""
    rng = np.random.default_rng(0)
    volume = np.sign(rng.normal(size=(2, *source))).astype(np.float32) * rng.uniform(0.5, 1, (2, *source))
    volume = volume.astype(np.float32)
    name = SKIMAGE if arguments is not None else TORCH
    options = {"is_seg": False, "force_separate_z": None, **(arguments or {})}
    expected = FUNCTIONS[name](volume, target, before, after, **options)
    resampling = resampling_of(settings(name, **options), "data", source, target, before, after)
    slices = torch.from_numpy(volume).transpose(0, 1)
    found = torch.cat([resampling(one[None], *limits(volume, resampling)) for one in slices])
    np.testing.assert_allclose(found.transpose(0, 1), expected, atol=2e-5)


def test_equal_sizes_are_left_as_they_are():
    slices = torch.randn(1, 1, 5, 6)
    assert Resampling((5, 6), (5, 6), order=3, clipped_to="slice")(slices) is slices


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("no_resampling_hack", {}), (TORCH, {"mode": "bicubic"}), (TORCH, {"aniso_axis_mode": "linear"})],
)
def test_refuses_what_is_not_done_slice_by_slice(name, arguments):
    with pytest.raises(ConfigurationError, match=r"resample data with .*--stock"):
        resampling_of(settings(name, **arguments), "data", (1, 2, 2), (1, 3, 3), (1, 1, 1), (1, 1, 1))
