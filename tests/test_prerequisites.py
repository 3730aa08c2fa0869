"""The slips of every day end before anything begins, in one paragraph with the next command to type."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import nnunetv2.inference.predict_from_raw_data
import nnunetv2.run.run_training
import pytest
import torch

from nnunetv2_meddino.cli.main import main
from nnunetv2_meddino.comparison.folders import Folders, Method
from nnunetv2_meddino.environment import ext_trainer_folder
from tests.comparison.jobs.test_steps import NAME, preprocess
from tests.comparison.results import make_folders, set_environment, write_dataset, write_fold

OURS = "MedDINOv3Trainer__nnUNetPlans__2d"


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folders:
    """A dataset planned as 2d and 2d_96, preprocessed as 2d; MedDINOv3Trainer has one of two folds to its end."""
    folders = make_folders(tmp_path)
    write_dataset(folders, NAME, 3)
    preprocess(folders, "2d", "2d_96")
    shutil.rmtree(folders.preprocessed / NAME / "nnUNetPlans_2d_96")
    model = folders.model(NAME, Method("MedDINOv3Trainer", "nnUNetPlans", "2d"))
    write_fold(model / "fold_0")
    (model / "plans.json").touch()
    write_fold(model / "fold_1", epochs=(5, 10))
    set_environment(folders, monkeypatch)
    monkeypatch.setenv("nnUNet_extTrainer", str(ext_trainer_folder()))
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    monkeypatch.setattr(sys, "argv", sys.argv)
    return folders


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The arguments with which nnU-Net's commands were begun."""
    calls: list[list[str]] = []
    for module, name in (
        (nnunetv2.run.run_training, "run_training_entry"),
        (nnunetv2.inference.predict_from_raw_data, "predict_entry_point"),
    ):
        monkeypatch.setattr(module, name, lambda: calls.append(sys.argv))
    return calls


def remove_data(folders: Folders) -> None:
    shutil.rmtree(folders.preprocessed / NAME / "nnUNetPlans_2d")


def remove_a_case(folders: Folders) -> None:
    split = [{"train": ["case_000", "case_002"], "val": ["case_001"]}]
    (folders.preprocessed / NAME / "splits_final.json").write_text(json.dumps(split))
    (folders.preprocessed / NAME / "nnUNetPlans_2d" / "case_002.pkl").unlink()


def remove_plans(folders: Folders) -> None:
    (folders.preprocessed / NAME / "nnUNetPlans.json").unlink()


def nothing(folders: Folders) -> None:
    pass


TRAIN, STOCK = "meddino train 701 2d 0 -tr MedDINOv3Trainer -device cpu", "meddino predict --stock"
PREDICT = "-i images -o out -d 701 -c 2d -device cpu"
PREPROCESS = "nnUNetv2_preprocess -d 701 -plans_name nnUNetPlans -c"


@pytest.mark.parametrize(
    ("command", "spoil", "message", "following"),
    [
        (
            TRAIN.replace("2d", "2d_96"),
            nothing,
            "is not preprocessed for 2d_96: nothing is in",
            [f"{PREPROCESS} 2d_96"],
        ),
        (TRAIN, remove_data, "is not preprocessed for 2d: nothing is in", [f"{PREPROCESS} 2d"]),
        (TRAIN, remove_a_case, "for 2d: cases of the fold that are not in .* nnUNetPlans_2d: 1.", [f"{PREPROCESS} 2d"]),
        (
            TRAIN,
            remove_plans,
            f"{NAME} is not planned",
            ["nnUNetv2_plan_and_preprocess -d 701 -c 2d --verify_dataset_integrity"],
        ),
        (
            TRAIN.replace("2d", "2d_896"),
            nothing,
            "Configuration 2d_896 is not in",
            ["meddino plan -d 701 --patch-size 896 -p nnUNetPlans"],
        ),
        (TRAIN.replace("2d", "2D"), nothing, "which holds 2d, 2d_96", [TRAIN]),
        (f"{TRAIN} -p nnUNetPlan", nothing, "There are the plans nnUNetPlans", [f"{TRAIN} -p nnUNetPlans"]),
        (TRAIN.replace("v3T", "V3T"), nothing, "no trainer MedDINOV3Trainer. Did you mean MedDINOv3Trainer?", [TRAIN]),
        (TRAIN.replace("MedDINOv3Trainer", "Zebra"), nothing, "There is no trainer Zebra.", []),
        (TRAIN.replace("701", "710"), nothing, f"Dataset 710 is not in .* There are: {NAME}", [TRAIN]),
        (TRAIN.replace("701", "9"), nothing, f"Dataset 9 is not in .* There are: {NAME}", []),
        (TRAIN.replace(" 0 ", " one "), nothing, "must be a number or 'all', not one", [TRAIN]),
        (TRAIN.replace("cpu", "cuda"), nothing, "Device cuda cannot be used: PyTorch finds no GPU", [TRAIN]),
        (f"{TRAIN.replace(' 0 ', ' 3 ')} --val", nothing, "Fold 3 is not trained:", [TRAIN.replace(" 0 ", " 3 ")]),
        (
            f"{TRAIN.replace(' 0 ', ' 1 ')} --val",
            nothing,
            "Fold 1 is not trained to its end:",
            [f"{TRAIN.replace(' 0 ', ' 1 ')} --c"],
        ),
        (
            f"meddino predict {PREDICT} -f 0",
            nothing,
            f"Without -tr nnU-Net's own trainer is meant, nnUNetTrainer. Trained are: {OURS}",
            [f"meddino predict {PREDICT} -f 0 -tr MedDINOv3Trainer"],
        ),
        (
            f"{STOCK} {PREDICT.replace('2d', '2d_96')} -f 0 -tr MedDINOV3Trainer",
            nothing,
            f"2d_96 does not exist. Trained are: {OURS}",
            [f"{STOCK} {PREDICT} -f 0 -tr MedDINOv3Trainer"],
        ),
        (
            f"meddino predict {PREDICT} -f 0 1 -tr MedDINOv3Trainer",
            nothing,
            "no checkpoint_final.pth of fold 1; trained folds: 0",
            [
                f"meddino predict {PREDICT} -f 0 -tr MedDINOv3Trainer",
                "meddino train 701 2d 1 -tr MedDINOv3Trainer --c",
            ],
        ),
        (
            f"meddino predict {PREDICT} -f 0 -tr MedDINOv3Trainer -chk checkpoint_best.pth",
            nothing,
            "no checkpoint_best.pth of fold 0; trained folds: none",
            [f"meddino predict {PREDICT} -f 0 -tr MedDINOv3Trainer -chk checkpoint_final.pth"],
        ),
        (f"meddino predict {PREDICT.replace('-d 701 -c 2d', '-m folder')}", nothing, "folder is no trained model", []),
        (
            f"{STOCK} {PREDICT} -tr MedDINOv3Trainer",
            nothing,
            "of fold 1, 2, 3, 4; trained folds: 0",
            [f"{STOCK} {PREDICT} -tr MedDINOv3Trainer -f 0", "meddino train 701 2d 1 -tr MedDINOv3Trainer --c"],
        ),
        (
            f"meddino predict {PREDICT.replace('701', '710')} -tr MedDINOv3Trainer",
            nothing,
            "Dataset 710 is not in",
            [f"meddino predict {PREDICT} -tr MedDINOv3Trainer"],
        ),
        (
            f"meddino predict {PREDICT.replace('cpu', 'cuda')} -f 0 -tr MedDINOv3Trainer",
            nothing,
            "Device cuda cannot be used",
            [f"meddino predict {PREDICT} -f 0 -tr MedDINOv3Trainer"],
        ),
    ],
)
def test_a_slip_ends_with_the_next_command(
    folders: Folders,
    begun: list[list[str]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    spoil: Callable[[Folders], None],
    message: str,
    following: list[str],
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    spoil(folders)
    assert main(command.split()[1:]) == 2
    printed = capsys.readouterr()
    first, *commands = printed.err.splitlines()
    assert first == (f"{first.removesuffix(' Next:')} Next:" if following else first)
    assert all(words in first for words in message.split(" .* "))
    assert commands == [f"  {line}" for line in following]
    assert (printed.out, begun) == ("", [])


@pytest.mark.parametrize("command", ["meddino train 701 2d 0 -device cpu", f"meddino predict {PREDICT} -tr X"])
def test_folders_that_are_not_set_are_set_next(
    folders: Folders, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.delenv("nnUNet_results")
    assert main(command.split()[1:]) == 2
    assert capsys.readouterr().err.endswith(" again:\n  export nnUNet_results=/your/folder\n")


@pytest.mark.parametrize("hidden", ["", "no CUDA", "two GPUs"])
def test_the_reason_for_no_gpu_is_told(
    folders: Folders,
    begun: list[list[str]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    hidden: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: hidden == "two GPUs")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.version, "cuda", None if hidden == "no CUDA" else "12.8")
    if not hidden:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    command = TRAIN.replace("-device cpu", "-num_gpus 4")
    assert main(command.split()[1:]) == 2
    first, following = capsys.readouterr().err.splitlines()
    assert {"": "hides all GPUs", "no CUDA": "for the CPU alone", "two GPUs": "-num_gpus is 4 of 2 GPUs."}[
        hidden
    ] in first
    right = command.replace("-num_gpus 4", "-num_gpus 2") if hidden == "two GPUs" else f"{command} -device cpu"
    assert following == f"  {right}"


@pytest.mark.parametrize(
    "command",
    [
        TRAIN,
        f"{TRAIN} --val",
        f"{TRAIN.replace(' 0 ', ' 7 ')} --c",
        f"{TRAIN.replace(' 0 ', ' all ')} --c",
        f"{STOCK} {PREDICT} -f 0 -tr MedDINOv3Trainer",
        "meddino train --help",
        f"{STOCK} --help",
    ],
)
def test_what_is_there_is_begun(folders: Folders, begun: list[list[str]], command: str) -> None:
    assert main(command.split()[1:]) == 0
    assert [words[1:] for words in begun] == [[word for word in command.split()[2:] if word != "--stock"]]


def test_a_trainer_that_no_source_file_shows_is_begun_where_nnunet_finds_it(
    folders: Folders, begun: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ext").mkdir()
    text = "from nnunetv2_meddino.trainers.meddinov3 import MedDINOv3Trainer as Base\nMade = type('Made', (Base,), {})"
    (tmp_path / "ext" / "made_trainers.py").write_text(text)
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path / "ext"))
    assert main(["train", "701", "2d", "0", "-tr", "Made", "-device", "cpu"]) == 0
    assert len(begun) == 1


def test_a_validation_needs_no_training_cases(folders: Folders, begun: list[list[str]]) -> None:
    remove_a_case(folders)
    assert main([*TRAIN.split()[1:], "--val"]) == 0
    assert len(begun) == 1


def test_without_raw_data_a_training_is_begun(
    folders: Folders, begun: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("nnUNet_raw")
    assert main(TRAIN.split()[1:]) == 0
    assert len(begun) == 1
