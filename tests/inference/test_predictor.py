"""Streamed predictions against nnU-Net's own, in this process, with the same weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from nnunetv2_meddino.errors import ConfigurationError, DataError, TrainingError
from nnunetv2_meddino.inference import Predictor
from nnunetv2_meddino.inference.images import case_of_array
from nnunetv2_meddino.inference.model import read_model
from nnunetv2_meddino.inference.preprocessing import PreprocessedImage
from tests.inference.models import stock_prediction, write_model

HALF_PRECISION = 2e-3
"""Error of probabilities where nnU-Net keeps logits in half precision."""

TORCH = {
    f"{key}{end}": value
    for key in ("resampling_fn_data", "resampling_fn_probabilities", "resampling_fn_seg")
    for end, value in (
        ("", "resample_torch_fornnunet"),
        ("_kwargs", {"is_seg": key.endswith("seg"), "force_separate_z": None, "memefficient_seg_resampling": False}),
    )
}
REGIONS = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}


def smooth_noise(shape: tuple[int, ...], channels: int = 1) -> NDArray[np.float32]:
    """An image ``(C, z, y, x)`` in noise, with zeros around it."""
    rng = np.random.default_rng(0)
    values = np.stack([gaussian_filter(rng.normal(size=shape), 1.5) * 800 + 80 for _ in range(channels)])
    values[:, :, :3], values[..., -2:] = 0, 0
    return values.astype(np.float32)


class Kept:
    """Probabilities of all slices, in the order of the network's axes."""

    def __init__(self) -> None:
        self.parts: list[NDArray[np.float32]] = []

    def write(self, start: int, values: NDArray[np.float32]) -> None:
        """Keep them."""
        assert start == sum(len(part) for part in self.parts)
        self.parts.append(values)

    def on_grid(self, predictor: Predictor, properties: dict[str, Any]) -> NDArray[np.float32]:
        """Return them on the image's grid ``(K, z, y, x)``; background where it was cropped."""
        values = np.concatenate(self.parts).transpose(1, 0, 2, 3)
        whole = np.zeros((len(values), *properties["shape_before_cropping"]), np.float32)
        if predictor.model.regions is None:
            whole[0] = 1
        inside = (slice(None), *(slice(*ends) for ends in properties["bbox_used_for_cropping"]))
        whole[inside] = values
        return whole.transpose(0, *(axis + 1 for axis in predictor.model.plans.transpose_backward))


@pytest.mark.parametrize(
    ("shape", "spacing", "model", "mirroring"),
    [
        pytest.param((6, 48, 40), (3, 1, 1), {}, True, id="anisotropic"),
        pytest.param((6, 48, 40), (3, 1, 1), {}, False, id="no mirroring"),
        pytest.param((6, 48, 40), (1, 1, 1), {}, True, id="isotropic: clipped to the volume"),
        pytest.param((6, 48, 40), (3, 1, 1), {"folds": (0, 1)}, True, id="two folds"),
        pytest.param((6, 48, 40), (3, 1, 1), {"channels": 2}, True, id="two channels"),
        pytest.param((6, 40, 48), (3, 1, 1), {"labels": REGIONS, "regions_class_order": [1, 2]}, True, id="regions"),
        pytest.param((40, 48, 6), (1, 1, 3), {"transpose": (2, 0, 1)}, True, id="transposed"),
        pytest.param((40, 6, 48), (1, 3, 1), {"transpose": (1, 0, 2)}, True, id="transposed otherwise"),
        pytest.param((6, 48, 40), (3, 0.7, 0.8), {}, True, id="no resampling"),
        pytest.param((3, 100, 120), (3, 0.7, 0.8), {}, True, id="several tiles"),
        pytest.param((3, 100, 50), (3, 1, 1), {}, True, id="tiles in one direction"),
        pytest.param((5, 12, 60), (1, 5, 1), {}, True, id="coarse rows"),
        pytest.param((5, 60, 12), (1, 1, 5), {}, True, id="coarse columns"),
        pytest.param((6, 48, 40), (3, 1, 1), {"normalization_schemes": ["ZScoreNormalization"]}, True, id="z-score"),
        pytest.param(
            (6, 48, 40),
            (3, 1, 1),
            {"normalization_schemes": ["ZScoreNormalization"], "use_mask_for_norm": [True]},
            True,
            id="z-score inside a mask",
        ),
        pytest.param(
            (6, 48, 40), (1, 1, 1), {"normalization_schemes": ["RescaleTo01Normalization"]}, True, id="0 to 1"
        ),
        pytest.param((6, 48, 40), (1, 1, 1), TORCH, True, id="torch resampling"),
        pytest.param((5, 12, 60), (1, 5, 1), TORCH, True, id="torch resampling, coarse rows"),
        pytest.param((1, 48, 40), (999, 1, 1), {}, True, id="one slice"),
    ],
)
def test_predicts_what_nnunet_predicts(
    tmp_path: Path, shape: tuple[int, ...], spacing: Sequence[float], model: dict[str, Any], mirroring: bool
) -> None:
    """Breaks with another order, border, clipping or coarse axis of resampling, tile, view, fold, box or label rule."""
    folder = write_model(tmp_path / "model", **model)
    folds = model.get("folds", (0,))
    values = smooth_noise(shape, model.get("channels", 1))
    labels, probabilities = stock_prediction(folder, values, spacing, folds=folds, mirroring=mirroring, half=False)
    mine, my_probabilities = streamed_prediction(folder, values, spacing, folds=folds, mirroring=mirroring)
    assert len(np.unique(labels)) > 1
    assert (mine.shape, mine.dtype) == (labels.shape, labels.dtype)
    np.testing.assert_array_equal(mine, labels)
    np.testing.assert_allclose(my_probabilities, probabilities, atol=1e-4)


def test_differs_from_nnunet_as_it_is_only_by_half_precision(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    values = smooth_noise((6, 48, 40))
    labels, probabilities = stock_prediction(folder, values, (3, 1, 1))
    mine, my_probabilities = streamed_prediction(folder, values, (3, 1, 1))
    np.testing.assert_allclose(my_probabilities, probabilities, atol=HALF_PRECISION)
    best = np.sort(my_probabilities[:, mine != labels], axis=0)[-2:]
    assert (best[1] - best[0] < HALF_PRECISION).all()


def streamed_prediction(
    folder: Path, values: NDArray[Any], spacing: Sequence[float], **arguments: Any
) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Return labels ``(z, y, x)`` and probabilities ``(K, z, y, x)`` on the image's grid."""
    predictor = Predictor.from_folder(folder, device="cpu", **arguments)
    image, kept = case_of_array(values, spacing), Kept()
    labels = predictor.predict_case(image, kept)
    model = predictor.model
    properties = PreprocessedImage(image, model.plans, model.configuration, torch.device("cpu")).properties
    return labels, kept.on_grid(predictor, properties)


def test_takes_files_simpleitk_images_and_arrays(tmp_path: Path) -> None:
    predictor = Predictor.from_folder(write_model(tmp_path / "model"), device="cpu")
    values = smooth_noise((4, 48, 40))[0]
    image = sitk.GetImageFromArray(values)
    image.SetSpacing((1.0, 1.0, 3.0))
    image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    sitk.WriteImage(image, tmp_path / "case_0000.nii.gz")
    expected = predictor.predict(values, (3, 1, 1))
    np.testing.assert_array_equal(predictor.predict(tmp_path / "case_0000.nii.gz"), expected)
    np.testing.assert_array_equal(predictor.predict(str(tmp_path / "case_0000.nii.gz")), expected)
    np.testing.assert_array_equal(predictor.predict([tmp_path / "case_0000.nii.gz"]), expected)
    np.testing.assert_array_equal(predictor.predict(image), expected)
    several = list(predictor.predict_many([image, tmp_path / "case_0000.nii.gz"]))
    assert len(several) == 2
    for labels in several:
        np.testing.assert_array_equal(labels, expected)


def test_all_folds_are_the_trained_ones_and_not_the_one_on_all_cases(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", folds=(0, 1, "all"))
    values = smooth_noise((2, 48, 40))[0]
    both = Predictor.from_folder(folder, "all", "cpu")
    assert len(both.model.networks) == 2
    np.testing.assert_array_equal(
        both.predict(values, (3, 1, 1)), Predictor.from_folder(folder, (0, 1), "cpu").predict(values, (3, 1, 1))
    )
    assert len(Predictor.from_folder(folder, ["all"], "cpu").model.networks) == 1


@pytest.mark.parametrize(
    ("model", "arguments", "error", "message"),
    [
        ({}, {"folds": 3}, ConfigurationError, "no checkpoint_final.pth of fold 3; trained folds: 0"),
        ({}, {"checkpoint": "checkpoint_best.pth"}, ConfigurationError, "of any fold; trained folds: none"),
        ({}, {"step_size": 0.0}, ConfigurationError, "above 0 and at most 1"),
        ({}, {"device": "cuda:7"}, ConfigurationError, "cuda:7 cannot be used .* such as cpu"),
        ({}, {"device": "gpu"}, ConfigurationError, "no device 'gpu'. Choose 'cuda'"),
        ({"previous_stage": "3d_lowres"}, {}, ConfigurationError, "needs the predictions of 3d_lowres.*--stock"),
        ({"preprocessor_name": "Other"}, {}, ConfigurationError, "preprocessed by Other.*--stock"),
    ],
)
def test_refuses_models_and_settings(
    tmp_path: Path, model: dict[str, Any], arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    folder = write_model(tmp_path / "model", **model)
    with pytest.raises(error, match=message):
        Predictor.from_folder(folder, **{"device": "cpu", **arguments})


def test_refuses_images_that_do_not_suit(tmp_path: Path) -> None:
    predictor = Predictor.from_folder(write_model(tmp_path / "model"), device="cpu")
    values = smooth_noise((2, 48, 40), 2)
    with pytest.raises(DataError, match="2 channels, the network was trained on 1"):
        predictor.predict(values, (3, 1, 1))
    with pytest.raises(ConfigurationError, match="needs spacing_mm"):
        predictor.predict(values)
    with pytest.raises(DataError, match="three positive numbers"):
        predictor.predict(values, (3, 1, 0))
    with pytest.raises(DataError, match="does not exist"):
        predictor.predict(tmp_path / "nowhere.nii.gz")


def test_a_network_that_returns_nan_is_an_error_and_not_background(tmp_path: Path) -> None:
    predictor = Predictor.from_folder(write_model(tmp_path / "model"), device="cpu")
    with torch.no_grad():
        next(predictor.model.networks[0].parameters())[0] = torch.nan
    with pytest.raises(TrainingError, match="not finite"):
        predictor.predict(smooth_noise((2, 48, 40)), (3, 1, 1))


def test_folds_that_do_not_fit_together_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_model(tmp_path / "model", folds=(0, 1, 2))
    values = smooth_noise((2, 48, 40))
    expected = Predictor.from_folder(folder, device="cpu").predict(values, (3, 1, 1))
    model = read_model(folder, None)
    on_device: set[int] = set()
    move = torch.nn.Module.to

    def limited(network: torch.nn.Module, device: Any) -> torch.nn.Module:
        if network not in model.networks:
            return move(network, device)
        if str(device) == "cpu:0":
            if len(on_device) == 2:
                raise torch.OutOfMemoryError
            on_device.add(id(network))
        else:
            on_device.discard(id(network))
        return network

    monkeypatch.setattr(torch.nn.Module, "to", limited)
    predictor = Predictor(model, "cpu:0")
    assert not on_device
    np.testing.assert_array_equal(predictor.predict(values, (3, 1, 1)), expected)


def test_a_batch_that_does_not_fit_is_halved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = Predictor.from_folder(write_model(tmp_path / "model"), device="cpu")
    values = smooth_noise((7, 48, 40))
    expected = predictor.predict(values, (3, 1, 1))
    predictor._batch = 4
    forward, sizes = predictor._forward, []

    def limited(patches: torch.Tensor) -> torch.Tensor:
        sizes.append(len(patches))
        if len(patches) > 2:
            raise torch.OutOfMemoryError
        return forward(patches)

    monkeypatch.setattr(predictor, "_forward", limited)
    np.testing.assert_array_equal(predictor.predict(values, (3, 1, 1)), expected)
    assert sizes == [4, 2, 2, 2, 1]


@pytest.mark.parametrize("mirroring", [True, False])
def test_views_and_slices_in_one_batch_are_those_one_by_one(tmp_path: Path, mirroring: bool) -> None:
    predictor = Predictor.from_folder(write_model(tmp_path / "model", folds=(0, 1)), device="cpu", mirroring=mirroring)
    values = smooth_noise((5, 100, 40))
    one_by_one = predictor.predict(values, (3, 1, 1))
    predictor._batched, predictor._batch = True, 3
    np.testing.assert_array_equal(predictor.predict(values, (3, 1, 1)), one_by_one)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_gpu_gives_the_labels_of_the_cpu(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", folds=(0, 1))
    values = smooth_noise((9, 100, 120))
    labels, probabilities = streamed_prediction(folder, values, (3, 1, 1), folds=(0, 1))
    image, kept = case_of_array(values, (3, 1, 1)), Kept()
    predictor = Predictor.from_folder(folder, (0, 1), "cuda")
    found = predictor.predict_case(image, kept)
    on_cpu = Predictor(predictor.model, "cuda", on_device=False).predict_case(image)
    assert (found != labels).mean() < 1e-3
    assert (on_cpu != labels).mean() < 1e-3
    assert np.abs(np.concatenate(kept.parts).sum(axis=1) - 1).max() < 1e-4
    assert probabilities.shape[1:] == labels.shape
