"""Folders of predictions against those of stock nnU-Net with the same weights: every format, file and header."""

from __future__ import annotations

import json
from collections.abc import Callable
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any
from unittest import mock

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from numpy.typing import NDArray
from PIL import Image as Pillow
from scipy.ndimage import gaussian_filter

from nnunetv2_meddino.cli.main import main
from tests.inference.models import write_model

PROBABILITY_ERROR = 2e-3
"""Of nnU-Net's probabilities, whose logits are kept in half precision."""

REGIONS = {"labels": {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}, "regions_class_order": [1, 2]}
MANY = {"labels": {"background": 0, **{f"part {i}": i for i in range(1, 300)}}}


def noise(shape: tuple[int, ...], seed: int = 0) -> NDArray[np.float32]:
    """Smooth noise in the range of CT, with zeros on two sides, which are cropped."""
    values = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.5) * 800 + 80
    values[..., :3, :], values[..., -2:] = 0, 0
    return values.astype(np.float32)


def write_simpleitk(
    path: Path, values: NDArray[Any], *, spacing: tuple[float, ...] = (0.9, 1.1, 3.0), direction: Any = None
) -> None:
    """Write an image off the origin."""
    image = sitk.GetImageFromArray(values)
    dimensions = image.GetDimension()
    image.SetSpacing(spacing[:dimensions])
    image.SetOrigin((-120.5, 33.25, 1000.0)[:dimensions])
    if direction is not None:
        image.SetDirection(np.asarray(direction, float).ravel().tolist())
    sitk.WriteImage(image, path)


def write_scaled(path: Path, values: NDArray[Any]) -> None:
    """Write int16 that the header scales."""
    image = nibabel.Nifti1Image(values.T.astype(np.float64), np.diag([-0.9, -1.1, 3.0, 1.0]))
    image.header.set_data_dtype(np.int16)
    image.header.set_slope_inter(0.25, -1024)
    nibabel.save(image, path)
    assert nibabel.load(path).dataobj.slope == 0.25


def write_tiff(path: Path, values: NDArray[Any]) -> None:
    """Write a volume with its spacing beside it."""
    tifffile.imwrite(path, values)
    path.with_name(f"{path.name.rpartition('_')[0]}.json").write_text(json.dumps({"spacing": [3.0, 1.1, 0.9]}))


def rotated(degrees: float) -> NDArray[np.float64]:
    """Axes turned around z."""
    angle = np.deg2rad(degrees)
    return np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])


VOLUME = noise((4, 48, 40))
FLIPPED = np.diag([-1, 1, -1])
PERMUTED = np.array([[0, 0, 1], [-1, 0, 0], [0, -1, 0]])  # coronal slices

Write = Callable[[Path], object]


def volume(**arguments: Any) -> Write:
    return lambda path: write_simpleitk(path, VOLUME, **arguments)


def stored_as(dtype: type) -> Write:
    return lambda path: write_simpleitk(path, np.clip(VOLUME, 0, 255).astype(dtype))


def picture(values: NDArray[Any]) -> Write:
    return lambda path: Pillow.fromarray(np.clip(values, 0, 255).astype(np.uint8)).save(path)


@pytest.mark.parametrize(
    ("ending", "write", "model"),
    [
        pytest.param(".nii.gz", volume(), {}, id="nii.gz"),
        pytest.param(".nii", volume(), {}, id="nii"),
        pytest.param(".nrrd", volume(), {}, id="nrrd"),
        pytest.param(".mha", volume(), {}, id="mha"),
        pytest.param(".gipl", volume(), {}, id="gipl"),
        pytest.param(".nii.gz", stored_as(np.float64), {}, id="float64"),
        pytest.param(".nii.gz", stored_as(np.uint8), {}, id="uint8"),
        pytest.param(".nii.gz", stored_as(np.int32), {}, id="int32"),
        pytest.param(".nii.gz", lambda path: write_scaled(path, VOLUME), {}, id="scaled int16"),
        pytest.param(".nii.gz", volume(direction=FLIPPED), {}, id="flipped"),
        pytest.param(".nii.gz", volume(direction=PERMUTED), {}, id="coronal"),
        pytest.param(".nii.gz", volume(direction=rotated(11)), {}, id="oblique"),
        pytest.param(".nrrd", volume(direction=rotated(-35)), {}, id="oblique nrrd"),
        pytest.param(".nii.gz", volume(direction=FLIPPED), {"reader": "SimpleITKIOWithReorient"}, id="reorient"),
        pytest.param(".nii.gz", volume(direction=PERMUTED), {"reader": "SimpleITKIOWithReorient"}, id="turn"),
        pytest.param(".nii.gz", volume(direction=FLIPPED), {"reader": "NibabelIO"}, id="nibabel"),
        pytest.param(".nii.gz", volume(direction=FLIPPED), {"reader": "NibabelIOWithReorient"}, id="nibabel reorient"),
        pytest.param(".nii", volume(direction=PERMUTED), {"reader": "NibabelIOWithReorient"}, id="nibabel turn"),
        pytest.param(".tif", lambda path: write_tiff(path, VOLUME), {"reader": "Tiff3DIO"}, id="tif"),
        pytest.param(".tiff", lambda path: tifffile.imwrite(path, VOLUME), {"reader": "Tiff3DIO"}, id="tiff"),
        pytest.param(".nii.gz", lambda path: write_simpleitk(path, VOLUME[1]), {}, id="2D nii.gz"),
        pytest.param(".mha", lambda path: write_simpleitk(path, VOLUME[1]), {}, id="2D mha"),
        pytest.param(".png", picture(VOLUME[1]), {"reader": "NaturalImage2DIO"}, id="png"),
        pytest.param(
            ".png", picture(noise((48, 40, 3))), {"reader": "NaturalImage2DIO", "channels": 3}, id="colour png"
        ),
        pytest.param(".nii.gz", volume(), MANY, id="300 classes"),
        pytest.param(".nii.gz", volume(), REGIONS, id="regions"),
    ],
)
def test_label_files_are_those_of_nnunet_byte_by_byte(
    tmp_path: Path, ending: str, write: Write, model: dict[str, Any]
) -> None:
    """Breaks with another type, spacing, origin, direction or compression in a header, another name, another voxel."""
    folder = write_model(tmp_path / "model", file_ending=ending, **model)
    (tmp_path / "images").mkdir()
    write(tmp_path / "images" / f"case_a_0000{ending}")
    stock_prediction(folder, tmp_path / "images", tmp_path / "stock")
    assert predict(folder, tmp_path / "images", tmp_path / "ours") == 0
    assert names(tmp_path / "ours") == names(tmp_path / "stock")
    for name in names(tmp_path / "ours") - {"predict_from_raw_data_args.json"}:
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "stock" / name).read_bytes(), name


def stock_prediction(model: Path, images: Path, out: Path, *, half: bool = False, **arguments: Any) -> None:
    """Predict with stock nnU-Net in this process; ``half`` is nnU-Net as it is, else logits have full precision."""
    out.mkdir(exist_ok=True)
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), (0,), "checkpoint_final.pth")
    with (
        mock.patch("nnunetv2.utilities.utils.Pool", ThreadPool),
        mock.patch.object(torch, "half", torch.half if half else torch.float32),
    ):
        predictor.predict_from_files_sequential(str(images), str(out), **arguments)


def predict(model: Path, images: Path, out: Path, *arguments: object) -> int:
    """Run ``meddino predict`` in this process."""
    fixed = ("-m", model, "-i", images, "-o", out, "-device", "cpu")
    return main(["predict", *map(str, fixed), *map(str, arguments)])


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}
