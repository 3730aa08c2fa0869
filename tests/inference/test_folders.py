"""Folders of predictions against those of stock nnU-Net with the same weights: every format, file and header."""

from __future__ import annotations

import json
import os
import pickle
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
from nnunetv2_meddino.inference.folders import find_cases
from nnunetv2_meddino.locks import locked
from tests.inference.models import write_model
from tests.nnunet import command

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
TURNED = noise((40, 48, 5))
"""Its first axis is the network's last."""
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
    if ending != ".png":
        assert len(np.unique(sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / "ours" / f"case_a{ending}")))) > 1


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


@pytest.mark.parametrize(
    ("values", "model", "spacing", "half"),
    [
        pytest.param(VOLUME, {}, (0.9, 1.1, 3.0), True, id="classes"),
        pytest.param(VOLUME, REGIONS, (0.9, 1.1, 3.0), True, id="regions"),
        pytest.param(TURNED, {"transpose": (2, 0, 1)}, (3.0, 0.9, 1.1), True, id="transposed"),
        pytest.param(TURNED, {"transpose": (2, 1, 0), **REGIONS}, (3.0, 0.9, 1.1), True, id="transposed regions"),
        pytest.param(VOLUME[1], {}, (0.9, 1.1), True, id="2D"),
        # corners of the slice, where nnU-Net's weights of tiles are near the smallest numbers of half precision
        pytest.param(noise((3, 96, 100)), {}, (0.7, 0.8, 3.0), False, id="several tiles"),
    ],
)
def test_probabilities_are_those_that_nnunet_ensembles(
    tmp_path: Path, values: NDArray[np.float32], model: dict[str, Any], spacing: tuple[float, ...], half: bool
) -> None:
    """Breaks with another order of axes, class, place of the box, what is outside it, or another property."""
    folder = write_model(tmp_path / "model", **model)
    (tmp_path / "images").mkdir()
    write_simpleitk(tmp_path / "images" / "case_0000.nii.gz", values, spacing=spacing)
    ours, stock = tmp_path / "ours", tmp_path / "stock"
    stock_prediction(folder, tmp_path / "images", stock, half=half, save_probabilities=True)
    assert predict(folder, tmp_path / "images", ours, "--save_probabilities") == 0
    assert names(ours) == names(stock)
    arrays = [np.load(out / "case.npz") for out in (ours, stock)]
    assert arrays[0].files == arrays[1].files
    mine, expected = (array["probabilities"] for array in arrays)
    assert (mine.shape, mine.dtype) == (expected.shape, expected.dtype)
    np.testing.assert_allclose(mine, expected, atol=PROBABILITY_ERROR if half else 1e-4)
    mine, expected = (pickle.loads((out / "case.pkl").read_bytes()) for out in (ours, stock))
    assert plain(mine) == plain(expected)


def plain(value: Any) -> Any:
    """The same without NumPy's types."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def test_nnunet_ensembles_what_is_written(two_cases: Path, tmp_path: Path) -> None:
    write_model(tmp_path / "other", folds=(1, 0))
    (tmp_path / "other/fold_1").rename(tmp_path / "other/fold_2")
    for model, out in ((two_cases / "model", "a"), (tmp_path / "other", "b")):
        assert predict(model, two_cases / "images", tmp_path / out, "-f", 0, "--save_probabilities") == 0
    folders = ("-i", tmp_path / "a", tmp_path / "b", "-o", tmp_path / "both", "-np", 1)
    command(dict(os.environ), "nnUNetv2_ensemble", *folders, threads=True)
    for name in ("case_1", "case_10"):
        mean = sum(np.load(tmp_path / out / f"{name}.npz")["probabilities"] for out in ("a", "b"))
        labels = sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / "both" / f"{name}.nii.gz"))
        np.testing.assert_array_equal(labels, mean.argmax(axis=0))


@pytest.fixture
def two_cases(tmp_path: Path) -> Path:
    """``model``, and ``images`` of ``case_1`` and ``case_10``."""
    home = tmp_path / "home"
    write_model(home / "model")
    (home / "images").mkdir()
    for seed, name in enumerate(("case_10", "case_1")):
        write_simpleitk(home / "images" / f"{name}_0000.nii.gz", noise((2, 48, 40), seed))
    return home


def test_channels_come_in_several_files_or_in_one(tmp_path: Path) -> None:
    """nnU-Net itself reads four dimensions and then fails to write three."""
    folder = write_model(tmp_path / "model", channels=2)
    channels = [noise((3, 48, 40), seed) for seed in range(2)]
    for out in ("several", "one"):
        (tmp_path / out).mkdir()
    for i, values in enumerate(channels):
        write_simpleitk(tmp_path / "several" / f"case_{i:04d}.nii.gz", values)
    affine = sitk_affine(tmp_path / "several" / "case_0000.nii.gz")
    together = np.stack([values.T for values in channels], axis=-1)
    nibabel.save(nibabel.Nifti1Image(together, affine), tmp_path / "one" / "case_0000.nii.gz")
    stock_prediction(folder, tmp_path / "several", tmp_path / "stock")
    expected = (tmp_path / "stock" / "case.nii.gz").read_bytes()
    assert predict(folder, tmp_path / "several", tmp_path / "ours") == 0
    assert (tmp_path / "ours" / "case.nii.gz").read_bytes() == expected
    assert predict(folder, tmp_path / "one", tmp_path / "ours") == 0
    mine = sitk.ReadImage(tmp_path / "ours" / "case.nii.gz")
    image = sitk.ReadImage(tmp_path / "stock" / "case.nii.gz")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(mine), sitk.GetArrayFromImage(image))
    np.testing.assert_allclose(mine.GetSpacing(), image.GetSpacing(), rtol=1e-6)
    np.testing.assert_allclose(mine.GetOrigin(), image.GetOrigin(), rtol=1e-6)
    assert mine.GetDirection() == image.GetDirection()


def sitk_affine(path: Path) -> NDArray[np.float64]:
    return np.asarray(nibabel.load(path).affine)


NAMES = ("case_1", "case_10", "case_2", "case", "case-a", "b_0000", "B")
"""Which files are sorted otherwise than cases: an underscore comes after digits and capitals."""


@pytest.mark.parametrize("num_parts", [1, 2, 3, 8])
def test_parts_are_those_of_nnunet(tmp_path: Path, num_parts: int) -> None:
    """Breaks if cases are in the order of their files."""
    for name in NAMES:
        for channel in range(2):
            (tmp_path / f"{name}_{channel:04d}.nii.gz").touch()
    (tmp_path / "._case_0000.nii.gz").touch()
    (tmp_path / "case_0000.json").touch()
    cases = find_cases(tmp_path, ".nii.gz")
    (tmp_path / "._case_0000.nii.gz").unlink()
    predictor = nnUNetPredictor(device=torch.device("cpu"))
    predictor.dataset_json = {"file_ending": ".nii.gz"}
    for part_id in range(num_parts):
        with mock.patch("nnunetv2.utilities.utils.Pool", ThreadPool):
            files, outputs, _ = predictor._manage_input_and_output_lists(
                str(tmp_path), "out", num_parts=num_parts, part_id=part_id
            )
        mine = cases[part_id::num_parts]
        assert [f"out/{case.name}" for case in mine] == outputs
        assert [[str(file) for file in case.files] for case in mine] == files


def test_parts_together_predict_every_case_once(two_cases: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert predict(two_cases / "model", two_cases / "images", out, "-num_parts", 2, "-part_id", 1) == 0
    assert [file.name for file in out.glob("*.nii.gz")] == ["case_10.nii.gz"]
    assert predict(two_cases / "model", two_cases / "images", out, "-num_parts", 2, "-part_id", 0, "--c") == 0
    assert {file.name for file in out.glob("*.nii.gz")} == {"case_1.nii.gz", "case_10.nii.gz"}
    before = {file: file.stat().st_mtime_ns for file in out.glob("*.nii.gz")}
    assert predict(two_cases / "model", two_cases / "images", out, "-num_parts", 3, "-part_id", 2) == 0
    assert {file: file.stat().st_mtime_ns for file in out.glob("*.nii.gz")} == before, "a part without cases"


def test_what_another_part_is_writing_is_left_alone(two_cases: Path, tmp_path: Path) -> None:
    others = tmp_path / "out" / ".case_10.partial"
    others.mkdir(parents=True)
    assert predict(two_cases / "model", two_cases / "images", tmp_path / "out", "-num_parts", 2, "-part_id", 0) == 0
    assert others.is_dir()


def test_the_same_command_twice_is_refused_and_other_parts_are_not(
    two_cases: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Breaks without a lock: each would give names to the files that the other is writing."""
    arguments = (two_cases / "model", two_cases / "images", tmp_path, "-num_parts", 2, "-part_id")
    with locked(tmp_path, ".part_0_of_2.lock"):
        assert predict(*arguments, 0) == 2
        assert "another command works in" in capsys.readouterr().err
        assert predict(*arguments, 1) == 0
    assert predict(*arguments, 0) == 0


@pytest.mark.parametrize("missing", ["case_1.nii.gz", "case_1.npz", "case_1.pkl"])
def test_continuing_leaves_finished_cases_and_completes_the_others(
    two_cases: Path, tmp_path: Path, missing: str
) -> None:
    arguments = (two_cases / "model", two_cases / "images", tmp_path / "out", "--save_probabilities")
    assert predict(*arguments) == 0
    expected = {file.name: file.read_bytes() for file in (tmp_path / "out").glob("case*")}
    (tmp_path / "out" / missing).unlink()
    finished = tmp_path / "out" / "case_10.nii.gz"
    finished.write_text("whatever it is")
    assert predict(*arguments, "--continue_prediction") == 0
    expected[finished.name] = b"whatever it is"
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").glob("case*")} == expected
    assert predict(*arguments) == 0
    assert finished.read_bytes() != b"whatever it is"


def test_a_label_map_never_stands_beside_probabilities_of_another_prediction(
    two_cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks if the earlier label map stays while its neighbours are exchanged: continuing would take both for one."""
    arguments = (two_cases / "model", two_cases / "images", tmp_path / "out", "--save_probabilities")
    assert predict(*arguments) == 0
    replace = Path.replace

    def failing(path: Path, target: Path) -> Path:
        if path.name == "case_1.nii.gz":
            raise OSError(5, "Input/output error")
        return replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", failing)
        assert predict(*arguments) == 2
    assert not (tmp_path / "out" / "case_1.nii.gz").exists()
    assert predict(*arguments, "--continue_prediction") == 0
    assert (tmp_path / "out" / "case_1.nii.gz").exists()
