"""A folder of ONNX files predicts what the model predicts, with the example of the page and without torch."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

import nnunetv2_meddino.onnx_export.model
from nnunetv2_meddino.cli.main import main
from nnunetv2_meddino.errors import ConfigurationError
from nnunetv2_meddino.inference import Predictor
from nnunetv2_meddino.onnx_export.model import export_onnx
from nnunetv2_meddino.onnx_export.network import OnnxNetwork
from tests.documentation.pages import blocks
from tests.inference.models import write_model
from tests.onnx_export.networks import VIT

ARCHITECTURE = {
    "network_class_name": "nnunetv2_meddino.networks.meddinov3.MedDINOv3",
    "arch_kwargs": {"vit": VIT, "blocks": [0, 1]},
    "_kw_requires_import": [],
}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("results") / "MedDINOv3Trainer__nnUNetPlans__2d"
    return write_model(folder, trainer="MedDINOv3Trainer", folds=(0, 3), architecture=ARCHITECTURE, patch_size=[80, 64])


@pytest.fixture(scope="module")
def exported(model) -> Path:
    assert main(["export", str(model), "--onnx"]) == 0
    return model.with_name(f"{model.name}__onnx")


class Collected:
    """Keeps the probabilities of a case, ``(z, K, y, x)``."""

    def __init__(self) -> None:
        self.slices: list[np.ndarray] = []

    def write(self, start: int, values: np.ndarray) -> None:
        self.slices.extend(values)


def test_the_example_predicts_the_labels_of_torch(model, exported, tmp_path, monkeypatch):
    (example,) = (block for block in blocks("docs/onnx.md") if block.language == "python")
    assert len([line for line in example.text.splitlines() if line.strip()]) <= 30
    (tmp_path / "ONNX").symlink_to(exported)
    y, x = np.mgrid[:50, :44]
    radius = np.hypot(y - 24.0, x - 21.0)
    values = np.random.default_rng(0).normal(100.0 * (radius < 14) + 90.0 * (radius < 7), 40, (6, 50, 44))
    values[:, :3] = 0  # cut off before prediction
    image = sitk.GetImageFromArray(values.astype(np.float32))
    image.SetSpacing((0.9, 0.8, 3.0))
    image.SetOrigin((-10, 5, 7))
    sitk.WriteImage(image, tmp_path / "case_0000.nii.gz")
    monkeypatch.chdir(tmp_path)
    exec(example.text, {})

    predictor, collected = Predictor.from_folder(model, device="cpu"), Collected()
    labels = predictor.predict_case(predictor.read("case_0000.nii.gz"), collected)
    result = sitk.ReadImage(tmp_path / "case.nii.gz")
    _, second, best = np.sort(np.stack(collected.slices, axis=1), axis=0)
    decided = np.pad(best - second, ((0, 0), (3, 0), (0, 0)), constant_values=1) > 1e-4
    assert decided.mean() > 0.999
    np.testing.assert_array_equal(sitk.GetArrayFromImage(result)[decided], labels[decided])
    assert set(np.unique(labels)) == {0, 1, 2}
    assert result.GetOrigin() == image.GetOrigin()


def test_the_description_says_what_the_plans_say(model, exported):
    described = json.loads((exported / "model.json").read_text())
    assert sorted(path.name for path in exported.iterdir()) == ["fold_0.onnx", "fold_3.onnx", "model.json"]
    assert described["networks"] == ["fold_0.onnx", "fold_3.onnx"]
    plans = PlansManager(str(model / "plans.json"))
    configuration = plans.get_configuration("2d")
    assert described["patch_size"] == [80, 64]
    assert described["spacing_mm"] == configuration.spacing
    assert described["size_multiple"] == [1, 1]
    assert described["labels"] == {"background": 0, "ring": 1, "core": 2}
    assert described["regions_class_order"] is None
    assert described["mirrored_axes"] == [[], [2], [3], [2, 3]]
    assert (described["opset"], described["precision"]) == (20, "float32")
    assert described["resampling"]["data"] == {
        "function": "resample_data_or_seg_to_shape",
        **configuration.configuration["resampling_fn_data_kwargs"],
    }
    (channel,) = described["channels"]
    intensities = plans.foreground_intensity_properties_per_channel["0"]
    assert channel == {"name": "CT", "normalization": "CTNormalization", "use_mask_for_norm": False, **intensities}


def test_a_model_of_nnunets_own_is_exported_with_its_multiples(tmp_path, capsys):
    folder = write_model(
        tmp_path / "model", folds=("all",), labels={"background": 0, "a": [1, 2], "b": 2}, regions_class_order=[1, 2]
    )
    out = tmp_path / "out"
    assert main(["export", str(folder), "--onnx", "--half", "-f", "all", "-o", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    described = json.loads((out / "model.json").read_text())
    assert (described["size_multiple"], described["precision"]) == ([4, 4], "float16")
    assert described["regions_class_order"] == [1, 2]
    network = OnnxNetwork(out / "fold_all.onnx")
    assert (network.multiple, network.metadata["meddino.precision"]) == ((4, 4), "float16")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stock", "--half"], "-f and --half are for --onnx"),
        (["--stock", "-f", "0"], "-f and --half are for --onnx"),
        (["--onnx", "-f", "1", "-o", "other"], "trained folds: 0, 3. Choose among them with -f"),
        (["--onnx"], "__onnx exists already. Remove it, or choose another folder with -o"),
    ],
)
def test_what_cannot_be_exported_is_refused(model, exported, capsys, arguments, message):
    assert main(["export", str(model), *arguments]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_file_that_differs_from_the_network_leaves_nothing(model, tmp_path, monkeypatch):
    def untrained(network, file, *arguments, **options):
        network = network.__class__(1, 3, vit=VIT, blocks=[0, 1]).eval()
        nnunetv2_meddino.onnx_export.network.write_network(network, file, *arguments, **options)

    monkeypatch.setattr(nnunetv2_meddino.onnx_export.model, "write_network", untrained)
    with pytest.raises(ConfigurationError, match="At 80 x 64 pixels the logits of fold_0.onnx differ"):
        export_onnx(model, tmp_path / "out", [0])
    assert list(tmp_path.iterdir()) == []


def test_missing_packages_are_named(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigurationError, match=r"onnxruntime.*pip install 'nnunetv2-meddino\[onnx\]'"):
        export_onnx(model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
