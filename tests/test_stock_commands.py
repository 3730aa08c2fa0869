"""The stock nnU-Net commands, end to end, as a user types them: real CT, real MRI, and settings nnU-Net supports."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from tests.conftest import PROJECT, shared_path
from tests.nnunet import command, nnunet_environment, write_dataset
from tests.trainers.test_trainers import tiny_weights

pytestmark = pytest.mark.slow

TRAINER = "MedDINOv3TestTrainer"
DEVICE = ("-device", "cpu")
PREDICT = (*DEVICE, "-npp", 1, "-nps", 1, "--disable_tta")


def home_with(folder: Path, dataset: Path | None = None) -> Path:
    """Make nnU-Net's three folders, a raw data set linked into the first."""
    for name in ("raw", "preprocessed", "results"):
        (folder / name).mkdir(parents=True)
    if dataset is not None:
        (folder / "raw" / dataset.name).symlink_to(dataset)
    return folder


def environment(home: Path, **variables: str) -> dict[str, str]:
    env = nnunet_environment(home, nnUNet_n_proc_DA="0")
    env["nnUNet_extTrainer"] += os.pathsep + str(PROJECT / "tests/ext_trainers")
    return {**env, **variables}


def plan_and_preprocess(home: Path, dataset_id: int) -> None:
    env = nnunet_environment(home)
    arguments = ("-d", dataset_id, "-c", "2d", "-np", 2, "-npfp", 2, "--verify_dataset_integrity")
    command(env, "nnUNetv2_plan_and_preprocess", *arguments)


def labels_of(folder: Path) -> dict[str, np.ndarray]:
    return {f.name: sitk.GetArrayFromImage(sitk.ReadImage(f)) for f in sorted(folder.glob("*.nii.gz"))}


def same_labels(a: Path, b: Path) -> bool:
    first, second = labels_of(a), labels_of(b)
    return len(first) > 0 and first.keys() == second.keys() and all(np.array_equal(first[k], second[k]) for k in first)


@pytest.fixture(scope="module")
def mri(tmp_path_factory) -> Path:
    """Real MRI, trained through a crash: weights from a file that is gone afterwards."""
    home = home_with(tmp_path_factory.mktemp("mri"), shared_path("data/Dataset901_MRMini"))
    plan_and_preprocess(home, 901)
    weights = tiny_weights(home / "tiny.safetensors")
    env = environment(home, MEDDINO_WEIGHTS=str(weights), CRASH_AFTER_EPOCH="1")
    (home / "crash.log").write_text(command(env, "nnUNetv2_train", 901, "2d", 0, "-tr", TRAINER, *DEVICE, fails=True))
    weights.unlink()
    env = environment(home, MEDDINO_WEIGHTS="/nonexistent")
    resume = command(env, "nnUNetv2_train", 901, "2d", 0, "-tr", TRAINER, *DEVICE, "--c", "--npz")
    (home / "resume.log").write_text(resume)
    predict(home, home / "predicted")
    return home


def model(home: Path) -> Path:
    return next((home / "results").glob(f"*/{TRAINER}__nnUNetPlans__2d"))


def predict(home: Path, out: Path, *arguments: object, **variables: str) -> None:
    env = environment(home, **variables)
    images = next((home / "raw").iterdir()) / "imagesTs"
    dataset_id = re.search(r"Dataset(\d+)_", str(images)).group(1)
    arguments = arguments or ("-tr", TRAINER)
    command(
        env, "nnUNetv2_predict", "-i", images, "-o", out, "-d", dataset_id, "-c", "2d", "-f", 0, *PREDICT, *arguments
    )


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


def test_validation_alone_reads_no_weights(mri):
    before = (model(mri) / "fold_0/checkpoint_final.pth").read_bytes()
    env = environment(mri, MEDDINO_WEIGHTS="/nonexistent")
    out = command(env, "nnUNetv2_train", 901, "2d", 0, "-tr", TRAINER, *DEVICE, "--val")
    assert "Mean Validation Dice" in out
    assert (model(mri) / "fold_0/checkpoint_final.pth").read_bytes() == before


def test_exported_stock_model_predicts_the_same_without_our_variable(mri, tmp_path):
    out = command(environment(mri), "meddino", "export", model(mri), "--stock").splitlines()[0]
    exported = Path(out)
    assert exported.name == f"nnUNetTrainer__nnUNetPlans{TRAINER}__2d"
    predict(mri, tmp_path / "p", "-p", f"nnUNetPlans{TRAINER}", nnUNet_extTrainer="")
    assert same_labels(tmp_path / "p", mri / "predicted")
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
    command(env, "nnUNetv2_preprocess", "-d", 901, "-plans_name", "nnUNetPlans", "-c", "2d_64", "-np", 2)
    command(env, "nnUNetv2_train", 901, "2d_64", 0, "-tr", TRAINER, *DEVICE, "--npz")
    arguments = ("-c", "2d", "2d_64", "-tr", TRAINER, "-f", 0, "-np", 2)
    out = command(env, "nnUNetv2_find_best_configuration", 901, *arguments)
    assert re.search(rf"{TRAINER}__nnUNetPlans__2d(_64)?: [\d.]+|ensemble", out)
    images = mri / "raw/Dataset901_MRMini/imagesTs"
    for configuration in ("2d", "2d_64"):
        arguments = ("-c", configuration, "-tr", TRAINER, "--save_probabilities")
        command(
            env,
            "nnUNetv2_predict",
            "-i",
            images,
            "-o",
            tmp_path / configuration,
            "-d",
            901,
            "-f",
            0,
            *PREDICT,
            *arguments,
        )
    command(env, "nnUNetv2_ensemble", "-i", tmp_path / "2d", tmp_path / "2d_64", "-o", tmp_path / "both", "-np", 2)
    assert len(labels_of(tmp_path / "both")) == 6


@pytest.mark.parametrize("dataset", ["Dataset900_CTMini", "Dataset902_CTSarcoma"])
def test_real_ct_from_raw_data_to_scores(dataset, tmp_path):
    home = home_with(tmp_path, shared_path(f"data/{dataset}"))
    dataset_id = int(dataset[7:10])
    plan_and_preprocess(home, dataset_id)
    env = environment(home, MEDDINO_BACKBONE="tiny", MEDDINO_WEIGHTS="none")
    out = command(env, "meddino", "train", dataset_id, "2d", 0, "-tr", TRAINER, *DEVICE)
    losses = [float(v) for v in re.findall(r"train_loss (-?[\d.]+)", out)]
    assert len(losses) == 3
    assert losses[-1] < losses[0]
    predict(home, home / "predicted")
    reference = home / "raw" / dataset / "labelsTs"
    for name, expected in labels_of(reference).items():
        assert labels_of(home / "predicted")[name].shape == expected.shape


def test_regions_ignore_label_and_two_channels(tmp_path):
    home = home_with(tmp_path)
    write_dataset(
        home / "raw",
        channels=2,
        labels={
            "labels": {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3},
            "regions_class_order": [1, 2],
        },
    )
    plan_and_preprocess(home, 998)
    env = environment(home, MEDDINO_BACKBONE="tiny", MEDDINO_WEIGHTS="none")
    command(env, "nnUNetv2_train", 998, "2d", 0, "-tr", TRAINER, *DEVICE)
    state = torch.load(model(home) / "fold_0/checkpoint_final.pth", weights_only=False)["network_weights"]
    assert state["encoder.patch_embed.proj.weight"].shape[1] == 2
    assert state["decoder.seg_layers.0.weight"].shape[0] == 2
    predict(home, home / "predicted")
    assert len(labels_of(home / "predicted")) == 2
    assert all(set(np.unique(v)) <= {0, 1, 2} for v in labels_of(home / "predicted").values())


@pytest.fixture(scope="module")
def discs(tmp_path_factory) -> Path:
    home = home_with(tmp_path_factory.mktemp("discs"))
    write_dataset(home / "raw")
    plan_and_preprocess(home, 998)
    return home


def truncated(path: Path) -> Path:
    whole = tiny_weights(path)
    path.write_bytes(whole.read_bytes()[:-5000])
    return path


def renamed(path: Path) -> Path:
    torch.save({"not": "weights", "epoch": 3}, path)
    return path


def foreign(path: Path) -> Path:
    torch.save(torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3), torch.nn.BatchNorm2d(8)).state_dict(), path)
    return path


@pytest.mark.parametrize(
    ("make", "advice"), [(truncated, "again"), (renamed, "backbone|DINOv3"), (foreign, "backbone|DINOv3")]
)
def test_bad_weights_end_with_one_paragraph(discs, tmp_path, make, advice):
    path = make(tmp_path / ("w.safetensors" if make is truncated else "w.pth"))
    env = environment(discs, MEDDINO_WEIGHTS=str(path))
    out = command(env, "nnUNetv2_train", 998, "2d", 0, "-tr", TRAINER, *DEVICE, fails=True)
    message = out[out.index("WeightsError") :]
    assert str(path) in message or path.name in message
    assert re.search(advice, message)
    assert "Traceback" not in out
    assert message.count("\n") <= 3
    assert not list((discs / "results").rglob("*.pth"))


@pytest.mark.parametrize(
    ("variables", "configuration", "message"),
    [
        ({"MEDDINO_WEIGHTS": "meddinov3"}, "2d", "WeightsError.*meddinov3_vitb16_ct3m"),
        ({}, "3d_fullres", "ConfigurationError.*slice by slice.*2d_896"),
        ({}, "2d_896", "PlanError.*meddino plan"),
    ],
)
def test_bad_settings_end_with_one_paragraph(discs, variables, configuration, message):
    env = environment(discs, **variables)
    out = command(env, "nnUNetv2_train", 998, configuration, 0, "-tr", TRAINER, *DEVICE, fails=True)
    assert re.search(message, out)
    assert "Traceback" not in out
    assert not list((discs / "results").rglob("*.pth"))


def test_without_the_variable_nnunet_says_where_to_look_and_so_do_we(discs):
    env = environment(discs, nnUNet_extTrainer="")
    out = command(env, "nnUNetv2_train", 998, "2d", 0, "-tr", "MedDINOv3Trainer", *DEVICE, fails=True)
    assert "nnUNet_extTrainer" in out.splitlines()[-1]
    check = command(env, "meddino", "env", "--check")
    assert 'eval "$(meddino env)"' in check


def test_a_plan_without_2d_is_refused(discs, tmp_path):
    copy = shutil.copytree(discs / "preprocessed", tmp_path / "preprocessed")
    file = copy / "Dataset998_Discs/nnUNetPlans.json"
    plans = json.loads(file.read_text())
    del plans["configurations"]["2d"]
    file.write_text(json.dumps(plans))
    env = environment(discs, nnUNet_preprocessed=str(copy))
    out = command(env, "meddino", "plan", "-d", 998, fails=True)
    assert "no 2d configuration" in out
    assert "Traceback" not in out
    assert json.loads(file.read_text()) == plans
