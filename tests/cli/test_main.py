"""The command line: what it prints, what it exits with, and what it leaves alone."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from itertools import islice
from pathlib import Path

import huggingface_hub
import pytest

from nnunetv2_meddino import checks
from nnunetv2_meddino.cli.main import main
from nnunetv2_meddino.cli.weights import WEIGHT_FORMATS
from nnunetv2_meddino.environment import NNUNET_WANDB, ext_trainer_folder
from nnunetv2_meddino.networks.vit import BACKBONES
from nnunetv2_meddino.weights import hub
from nnunetv2_meddino.weights.convert import FORMATS
from nnunetv2_meddino.weights.load import write_weights
from tests.comparison.jobs.test_steps import NAME, preprocess
from tests.comparison.results import make_folders, set_environment, write_dataset, write_fold
from tests.forked import run_code
from tests.nnunet import command, nnunet_environment
from tests.trainers.test_trainers import tiny_weights
from tests.weights.checkpoints import random_tensors


def test_env_lines_work_in_a_shell_and_keep_other_folders(tmp_path):
    env = nnunet_environment(tmp_path, nnUNet_extTrainer="/other/trainers", OMP_WAIT_POLICY="")
    meddino = Path(sys.executable).with_name("meddino")
    script = f'eval "$({meddino} env)"; eval "$({meddino} env)"; echo "$nnUNet_extTrainer|$OMP_WAIT_POLICY"'
    out = subprocess.run(["sh", "-c", script], env=env, capture_output=True, text=True, check=True).stdout
    assert out.strip() == f"/other/trainers{os.pathsep}{ext_trainer_folder()}|passive"


def test_the_trainer_folder_holds_one_module():
    files = [f.name for f in ext_trainer_folder().iterdir() if f.name != "__pycache__"]
    assert files == ["meddino_trainers.py"]


def test_nnunet_finds_the_same_class_every_time_and_leaves_other_lookups_alone(tmp_path):
    script = """
import sys
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find
try:
    find("NoSuchTrainer")
except RuntimeError:
    pass
assert "nnunetv2_meddino.trainers.vit" not in sys.modules
first, second = find("MedDINOv3Trainer"), find("MedDINOv3Trainer")
import pickle
from nnunetv2_meddino.trainers.meddinov3 import MedDINOv3Trainer
assert first is second is MedDINOv3Trainer is pickle.loads(pickle.dumps(first))
"""
    code, printed = run_code(script, nnunet_environment(tmp_path))
    assert code == 0, printed


def test_train_sets_the_environment_before_torch_is_loaded(tmp_path):
    folders = make_folders(tmp_path)
    write_dataset(folders, NAME, 1)
    preprocess(folders, "2d", cases=1)
    script = """
import os, sys
from nnunetv2_meddino.cli import main
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print("OMP", os.environ.get("OMP_WAIT_POLICY"), os.environ.get("nnUNet_extTrainer"))
            raise SystemExit(0)
sys.meta_path.insert(0, Watch())
main.main(["train", "701", "2d", "0"])
"""
    env = nnunet_environment(tmp_path)
    del env["OMP_WAIT_POLICY"], env["nnUNet_extTrainer"]
    out = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True).stdout
    assert out.strip() == f"OMP passive {ext_trainer_folder()}"


def test_validation_leaves_the_curves_of_weights_and_biases_alone(tmp_path, monkeypatch, capsys):
    folders = make_folders(tmp_path)
    write_dataset(folders, NAME, 1)
    preprocess(folders, "2d", cases=1)
    write_fold(folders.results / NAME / "nnUNetTrainer__nnUNetPlans__2d" / "fold_0")
    run_training = types.ModuleType("nnunetv2.run.run_training")
    enabled = []
    run_training.run_training_entry = lambda: enabled.append(os.environ[NNUNET_WANDB.name])
    monkeypatch.setitem(sys.modules, run_training.__name__, run_training)
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    set_environment(folders, monkeypatch)
    for option in ("--c", "--val"):
        os.environ[NNUNET_WANDB.name] = "1"
        assert main(["train", "701", "2d", "0", option, "-device", "cpu"]) == 0
    assert enabled == ["1", "0"]
    assert capsys.readouterr().err.count("Weights & Biases is off for --val") == 1


def test_check_passes_here_and_says_what_to_do(tmp_path):
    for name in ("raw", "preprocessed"):
        (tmp_path / name).mkdir()
    env = nnunet_environment(tmp_path, MEDDINO_WEIGHTS="none")
    out = command(env, "meddino", "env", "--check", fails=True)
    assert f"FAILED nnUNet_results       {tmp_path / 'results'} is not a folder" in out
    (tmp_path / "results").mkdir()
    out = command(env, "meddino", "env", "--check")
    for line in ("trainer lookup       nnU-Net finds MedDINOv3Trainer", "nnunetv2", "MEDDINO_WEIGHTS=none"):
        assert line in out
    out = command({**env, "MEDDINO_WEIGHTS": "nonsense"}, "meddino", "env", "--check", fails=True)
    assert "FAILED weights" in out


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, ""),
        ({"nnUNet_raw": ""}, ""),
        ({"nnUNet_results": ""}, "FAILED nnUNet_results       not set"),
        ({"nnUNet_preprocessed": ""}, "FAILED nnUNet_preprocessed  not set"),
        ({"MEDDINO_FINETUNE": "LoRA"}, "FAILED settings             MEDDINO_FINETUNE is 'LoRA'"),
        ({"MEDDINO_AUGMENT": "device"}, "FAILED settings             MEDDINO_AUGMENT is device"),
        ({"MEDDINO_WEIGHTS": ""}, "FAILED weights              meddinov3_vitb16_ct3m is not on this machine, and HF_H"),
    ],
)
def test_check_fails_where_training_cannot_work(tmp_path, monkeypatch, capsys, changes, line):
    set_environment(make_folders(tmp_path), monkeypatch)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "cached_path", lambda spec: None)
    for name, value in ({"MEDDINO_WEIGHTS": "none"} | changes).items():
        monkeypatch.setenv(name, value)
    assert main(["env", "--check"]) == (1 if line else 0)
    printed = capsys.readouterr().out
    assert line in printed
    assert printed.count("FAILED") == (1 if line else 0)


def test_check_names_a_package_of_the_wrong_version(monkeypatch):
    monkeypatch.setattr(checks, "requires", lambda name: ["timm>=99", "no-such-package-here>=1", "x; extra == 'dev'"])
    found = {check.name: check for check in islice(checks.run_checks(), 4)}
    assert found["timm"].status is checks.Status.FAILED
    assert ">=99 is needed" in found["timm"].detail
    assert found["no-such-package-here"].status is checks.Status.FAILED
    assert "x" not in found


def test_weights_commands(tmp_path, capsys):
    source = tiny_weights(tmp_path / "w.safetensors")
    assert main(["weights", "list"]) == 0
    assert "meddinov3" in capsys.readouterr().out
    target = tmp_path / "w.pth"
    assert main(["weights", "convert", str(source), str(target), "--format", "meta"]) == 0
    assert main(["weights", "inspect", str(target)]) == 0
    out = capsys.readouterr().out
    assert "format      meta" in out
    assert "backbone    tiny" in out
    assert main(["weights", "inspect", str(tmp_path / "absent.pth")]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("WeightsError: ")
    assert "absent.pth" in captured.err


def test_inspection_fits_into_a_terminal_whatever_the_header_holds(tmp_path, capsys):
    seen = {source: [f"case_{number:04d}" for number in range(2000)] for source in ("LiTS", "CT-ORG")}
    origin = {"name": "earlier weights", "source": "a " * 200, "configuration": {"lr": [0.1] * 3000}}
    provenance = {"name": "mine", "licence": "CC0-1.0", "derived_from": origin, "seen_cases": seen}
    file = tmp_path / "w.safetensors"
    write_weights(file, random_tensors(BACKBONES["tiny"]), BACKBONES["tiny"], provenance, "meddino")
    assert main(["weights", "inspect", str(file)]) == 0
    path, *lines = capsys.readouterr().out.splitlines()
    assert path.startswith(f"{file}  (")
    assert max(map(len, lines)) <= 100
    assert len(lines) < 25
    for words in (
        "name        mine (licence CC0-1.0)",
        "made from   earlier weights (source a a",
        "2000 of CT-ORG, 2000 of",
    ):
        assert any(words in line for line in lines)
    assert "embed_dim 96" in "".join(lines)


def test_formats_offered_are_those_that_can_be_written():
    assert set(WEIGHT_FORMATS) == set(FORMATS)


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["export", "somewhere"], ["plan"]])
def test_wrong_usage_prints_usage(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage: meddino" in capsys.readouterr().err


def test_export_of_something_else_is_refused(tmp_path, capsys):
    (tmp_path / "model").mkdir()
    assert main(["export", str(tmp_path / "model"), "--stock"]) == 2
    assert "Trainer__Plans__configuration" in capsys.readouterr().err
    assert [f.name for f in tmp_path.iterdir()] == ["model"]
