"""What a user sees of the stock commands when something is wrong: one paragraph, no traceback, nothing half-written."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from tests.nnunet import command
from tests.stock.commands import DEVICE, TRAINER, environment
from tests.trainers.test_trainers import tiny_weights

pytestmark = pytest.mark.slow


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
def test_bad_weights_end_with_one_paragraph(nnunet_home, tmp_path, make, advice):
    path = make(tmp_path / ("w.safetensors" if make is truncated else "w.pth"))
    env = environment(nnunet_home, MEDDINO_WEIGHTS=str(path))
    out = command(env, "nnUNetv2_train", 998, "2d", 0, "-tr", TRAINER, *DEVICE, fails=True)
    message = out[out.index("WeightsError") :]
    assert str(path) in message or path.name in message
    assert re.search(advice, message)
    assert "Traceback" not in out
    assert message.count("\n") <= 3
    assert not list((nnunet_home / "results").rglob("*.pth"))


@pytest.mark.parametrize(
    ("variables", "configuration", "message"),
    [
        ({"MEDDINO_WEIGHTS": "meddinov3"}, "2d", "WeightsError.*meddinov3_vitb16_ct3m"),
        ({}, "3d_fullres", "ConfigurationError.*slice by slice.*2d_896"),
        ({}, "2d_896", "PlanError.*meddino plan"),
    ],
)
def test_bad_settings_end_with_one_paragraph(nnunet_home, variables, configuration, message):
    env = environment(nnunet_home, **variables)
    out = command(env, "nnUNetv2_train", 998, configuration, 0, "-tr", TRAINER, *DEVICE, fails=True)
    assert re.search(message, out)
    assert "Traceback" not in out
    assert not list((nnunet_home / "results").rglob("*.pth"))


def test_without_the_variable_nnunet_says_where_to_look_and_so_do_we(nnunet_home):
    env = environment(nnunet_home, nnUNet_extTrainer="")
    out = command(env, "nnUNetv2_train", 998, "2d", 0, "-tr", "MedDINOv3Trainer", *DEVICE, fails=True)
    assert "nnUNet_extTrainer" in out.splitlines()[-1]
    check = command(env, "meddino", "env", "--check")
    assert 'eval "$(meddino env)"' in check


def test_a_plan_without_2d_is_refused(nnunet_home, tmp_path):
    copy = shutil.copytree(nnunet_home / "preprocessed", tmp_path / "without_2d")
    file = copy / "Dataset998_Discs/nnUNetPlans.json"
    plans = json.loads(file.read_text())
    del plans["configurations"]["2d"]
    file.write_text(json.dumps(plans))
    env = environment(nnunet_home, nnUNet_preprocessed=str(copy))
    out = command(env, "meddino", "plan", "-d", 998, fails=True)
    assert "no 2d configuration" in out
    assert "Traceback" not in out
    assert json.loads(file.read_text()) == plans
