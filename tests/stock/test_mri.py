"""Real MRI through every stock command: train, crash, resume, validate, predict, export, ensemble."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import SimpleITK as sitk
import torch

from tests.conftest import shared_path
from tests.nnunet import command
from tests.stock.commands import (
    DEVICE,
    TRAINER,
    check_streamed_like,
    environment,
    home_with,
    labels_of,
    model,
    plan_and_preprocess,
    predict,
    same_labels,
)
from tests.trainers.test_trainers import tiny_weights

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def mri(tmp_path_factory) -> Path:
    """Real MRI, trained through a crash: weights from a file that is gone afterwards."""
    home = home_with(tmp_path_factory.mktemp("mri"), shared_path("data/Dataset901_MRMini"))
    plan_and_preprocess(home, 901, threads=False)
    weights = tiny_weights(home / "tiny.safetensors")
    env = environment(home, MEDDINO_WEIGHTS=str(weights), CRASH_AFTER_EPOCH="1")
    (home / "crash.log").write_text(command(env, "nnUNetv2_train", 901, "2d", 0, "-tr", TRAINER, *DEVICE, fails=True))
    weights.unlink()
    env = environment(home, MEDDINO_WEIGHTS="/nonexistent")
    resume = command(env, "nnUNetv2_train", 901, "2d", 0, "-tr", TRAINER, *DEVICE, "--c", "--npz")
    (home / "resume.log").write_text(resume)
    predict(home, home / "predicted", "-tr", TRAINER, "--save_probabilities")
    return home


def test_mri_patches_are_no_multiple_of_the_token_size(mri):
    plans = json.loads((mri / "preprocessed/Dataset901_MRMini/nnUNetPlans.json").read_text())
    assert any(side % 16 for side in plans["configurations"]["2d"]["patch_size"])


def test_training_resumes_where_it_was_killed(mri):
    rates = [
        re.findall(r"Current learning rate: ([\d.e-]+)", (mri / f"{n}.log").read_text()) for n in ("crash", "resume")
    ]
    assert rates == [["0.001", "0.00067"], ["0.00033"]]
    checkpoint = torch.load(model(mri) / "fold_0/checkpoint_final.pth", weights_only=False)
    assert checkpoint["current_epoch"] == 3
    assert len(checkpoint["logging"]["train_losses"]) == 3
    weights = checkpoint["init_args"]["meddino"]["weights"]
    assert (weights["name"], weights["licence"]) == ("tiny-test", "CC0-1.0")
    assert "tiny-test" in (mri / "resume.log").read_text()


def test_prediction_needs_no_backbone_and_evaluates(mri):
    images = mri / "raw/Dataset901_MRMini/imagesTs"
    for file in images.glob("*.nii.gz"):
        expected = sitk.ReadImage(file)
        actual = sitk.ReadImage(mri / "predicted" / file.name.replace("_0000", ""))
        assert (actual.GetSize(), actual.GetSpacing()) == (expected.GetSize(), expected.GetSpacing())
    predicted, plans = mri / "predicted", model(mri) / "plans.json"
    arguments = ("-djfile", predicted / "dataset.json", "-pfile", plans, "-np", 1)
    command(environment(mri), "nnUNetv2_evaluate_folder", images.with_name("labelsTs"), predicted, *arguments)
    summary = json.loads((predicted / "summary.json").read_text())
    assert len(summary["metric_per_case"]) == 6
    assert 0 <= summary["foreground_mean"]["Dice"] <= 1


def test_streamed_prediction_is_that_of_nnunet(mri):
    check_streamed_like(mri, mri / "predicted", "-tr", TRAINER, "--save_probabilities")


def test_training_ends_with_surface_metrics_beside_nnunets_summary(mri):
    validation = model(mri) / "fold_0/validation"
    surface, summary = (json.loads((validation / n).read_text()) for n in ("surface_metrics.json", "summary.json"))
    assert surface["failed"] == []
    assert len(surface["metric_per_case"]) == len(summary["metric_per_case"]) > 0
    assert set(summary["foreground_mean"]) == {"Dice", "IoU", "TP", "FP", "FN", "TN", "n_pred", "n_ref"}
    shared = zip(surface["metric_per_case"], summary["metric_per_case"], strict=True)
    for ours, theirs in shared:
        assert ours["prediction_file"] == theirs["prediction_file"]
        for label, metrics in theirs["metrics"].items():
            assert (ours["metrics"][label]["TP"], ours["metrics"][label]["n_ref"]) == (metrics["TP"], metrics["n_ref"])
            assert "NSD_voxel_1mm" in ours["metrics"][label]
    value = surface["foreground_mean"]["NSD_voxel_1mm"]
    assert f"Mean Validation NSD_voxel_1mm: {value}" in (mri / "resume.log").read_text()


def test_validation_alone_reads_no_weights(mri):
    before = (model(mri) / "fold_0/checkpoint_final.pth").read_bytes()
    env = environment(mri, MEDDINO_WEIGHTS="/nonexistent")
    out = command(env, "nnUNetv2_train", 901, "2d", 0, "-tr", TRAINER, *DEVICE, "--val")
    assert "Mean Validation Dice" in out
    assert (model(mri) / "fold_0/checkpoint_final.pth").read_bytes() == before


def run_printed(home: Path, line: str, out: Path) -> None:
    """Run the command that ``meddino export`` printed as it is, on the CPU, without our variable."""
    filled = {"IMAGES": home / "raw/Dataset901_MRMini/imagesTs", "OUT": out}
    name, *arguments = (filled.get(word, word) for word in shlex.split(line.removeprefix("predict with: ")))
    command(environment(home, nnUNet_extTrainer=""), name, *arguments, *DEVICE, "-npp", 1, "-nps", 1, "--disable_tta")


def test_exported_stock_model_predicts_the_same_without_our_variable(mri, tmp_path):
    lines = command(environment(mri), "meddino", "export", model(mri), "--stock").splitlines()
    exported = Path(lines[0])
    assert exported.name == f"nnUNetTrainer__nnUNetPlans{TRAINER}__2d"
    run_printed(mri, lines[1], tmp_path / "p")
    assert same_labels(tmp_path / "p", mri / "predicted")
    elsewhere = tmp_path / "a model"
    lines = command(environment(mri), "meddino", "export", model(mri), "--stock", "-o", elsewhere).splitlines()
    assert Path(lines[0]) == elsewhere
    run_printed(mri, lines[1], tmp_path / "q")
    assert same_labels(tmp_path / "q", mri / "predicted")
    sizes = [(f / "fold_0/checkpoint_final.pth").stat().st_size for f in (exported, model(mri))]
    assert sizes[0] < 0.5 * sizes[1]
    message = command(environment(mri), "meddino", "export", model(mri), "--stock", fails=True)
    assert "exists already" in message


def test_zip_export_and_import_predict_the_same(mri, tmp_path):
    archive = tmp_path / "model.zip"
    arguments = ("-d", 901, "-o", archive, "-c", "2d", "-tr", TRAINER, "-p", "nnUNetPlans", "-f", 0)
    command(environment(mri), "nnUNetv2_export_model_to_zip", *arguments)
    (tmp_path / "results").mkdir()
    env = environment(mri, nnUNet_results=str(tmp_path / "results"))
    command(env, "nnUNetv2_install_pretrained_model_from_zip", archive)
    predict(mri, tmp_path / "p", nnUNet_results=str(tmp_path / "results"))
    assert same_labels(tmp_path / "p", mri / "predicted")


def test_pretrained_weights_of_nnunet_win_over_ours(mri):
    checkpoint = model(mri) / "fold_0/checkpoint_final.pth"
    env = environment(mri, MEDDINO_BACKBONE="tiny", MEDDINO_WEIGHTS="none")
    out = command(
        env,
        "nnUNetv2_train",
        901,
        "2d",
        3,
        "-tr",
        "MedDINOv3OneStepTrainer",
        *DEVICE,
        "-pretrained_weights",
        checkpoint,
    )
    assert "an nnU-Net checkpoint given by -pretrained_weights" in out


def test_best_configuration_and_ensemble(mri, tmp_path):
    env = environment(mri, MEDDINO_BACKBONE="tiny", MEDDINO_WEIGHTS="none")
    command(env, "meddino", "plan", "-d", 901, "--patch-size", 64)
    command(env, "nnUNetv2_preprocess", "-d", 901, "-plans_name", "nnUNetPlans", "-c", "2d_64", "-np", 1, threads=True)
    command(env, "nnUNetv2_train", 901, "2d_64", 0, "-tr", TRAINER, *DEVICE, "--npz", threads=True)
    arguments = ("-c", "2d", "2d_64", "-tr", TRAINER, "-f", 0, "-np", 1)
    out = command(env, "nnUNetv2_find_best_configuration", 901, *arguments, threads=True)
    assert re.search(rf"{TRAINER}__nnUNetPlans__2d(_64)?: [\d.]+|ensemble", out)
    predict(mri, tmp_path / "2d_64", "-c", "2d_64", "-tr", TRAINER, "--save_probabilities")
    command(
        env,
        "nnUNetv2_ensemble",
        "-i",
        mri / "predicted",
        tmp_path / "2d_64",
        "-o",
        tmp_path / "both",
        "-np",
        1,
        threads=True,
    )
    assert len(labels_of(tmp_path / "both")) == 6
