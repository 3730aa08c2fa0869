from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nnunetv2_meddino.comparison.folders import Folders
from nnunetv2_meddino.comparison.jobs.slurm import Jobs, submit, write_jobs
from nnunetv2_meddino.comparison.jobs.steps import plan_steps
from nnunetv2_meddino.comparison.results import Selection
from nnunetv2_meddino.errors import CommandError
from tests.comparison.jobs.test_steps import preprocess
from tests.comparison.results import make_folders, set_environment, write_dataset, write_fold

NAME = "Dataset701_Abdomen"
REPORT = ("meddino", "compare", "-d", NAME, "-o", "a folder")


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folders:
    """A dataset in folders with spaces in their names, and fakes of the commands first on PATH."""
    folders = make_folders(tmp_path / "with spaces")
    write_dataset(folders, NAME, 3)
    set_environment(folders, monkeypatch)
    for name in ("nnUNetv2_train", "nnUNetv2_plan_and_preprocess", "meddino"):
        fake(tmp_path / "bin" / name, f'echo "{name} $*" >> "{tmp_path}/calls"')
    tools = f"{tmp_path / 'bin'}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}/usr/bin{os.pathsep}/bin"
    monkeypatch.setenv("PATH", tools)
    return folders


def fake(path: Path, body: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/bash\n{body}\n")
    path.chmod(0o755)


def jobs(folders: Folders, out: Path, device: str = "cuda", **changes: object) -> Jobs:
    selection = Selection(
        **{"datasets": (NAME,), "trainers": ("nnUNetTrainer",), "configurations": ("2d",), "folds": ("0", "1", "2")}
        | changes
    )
    return write_jobs(plan_steps(selection, folders, device=device, processes=2), REPORT, out, device=device)


def bash(script: Path, **variables: str) -> None:
    """Run a script as Slurm does, from a bare environment."""
    subprocess.run(["bash", script], env={"PATH": "/usr/bin:/bin"} | variables, check=True)


def calls(tmp_path: Path) -> list[str]:
    return (tmp_path / "calls").read_text().splitlines() if (tmp_path / "calls").exists() else []


def test_the_scripts_run_the_commands(folders, tmp_path):
    written = jobs(folders, tmp_path / "out dir")
    bash(written.prepare)
    bash(written.train, SLURM_ARRAY_TASK_ID="1")
    bash(written.report)
    assert calls(tmp_path) == [
        "nnUNetv2_plan_and_preprocess -d 701 -c 2d -np 2 -npfp 2 --verify_dataset_integrity",
        f"nnUNetv2_train {NAME} 2d 1 -tr nnUNetTrainer -p nnUNetPlans -device cuda",
        f"meddino compare -d {NAME} -o a folder",
    ]
    assert "#SBATCH --array=0-2\n" in written.train.read_text()
    assert "#SBATCH --gres=gpu:1\n" in written.train.read_text()
    assert "gres" not in jobs(folders, tmp_path / "cpu", device="cpu").train.read_text()


def test_a_requeued_training_continues_and_a_finished_one_is_left_alone(folders, tmp_path):
    written = jobs(folders, tmp_path / "out")
    fold = folders.results / NAME / "nnUNetTrainer__nnUNetPlans__2d" / "fold_2"
    bash(written.train, SLURM_ARRAY_TASK_ID="2")
    write_fold(fold, epochs=(3, 10))
    bash(written.train, SLURM_ARRAY_TASK_ID="2")
    write_fold(fold.with_name("fold_1"), epochs=(10, 10))
    bash(written.train, SLURM_ARRAY_TASK_ID="1")
    (fold.with_name("fold_1") / "validation").mkdir()
    (fold.with_name("fold_1") / "validation" / "summary.json").touch()
    bash(written.train, SLURM_ARRAY_TASK_ID="1")
    assert [call.split("-device cuda")[1] for call in calls(tmp_path)] == ["", " --c", " --val"]


def test_a_validation_leaves_the_curves_of_weights_and_biases_alone(folders, tmp_path):
    fake(tmp_path / "bin" / "nnUNetv2_train", f'echo "$nnUNet_wandb_enabled" >> "{tmp_path}/calls"')
    written = jobs(folders, tmp_path / "out")
    fold = folders.results / NAME / "nnUNetTrainer__nnUNetPlans__2d" / "fold_1"
    bash(written.train, SLURM_ARRAY_TASK_ID="1", nnUNet_wandb_enabled="1")
    write_fold(fold, epochs=(10, 10))
    bash(written.train, SLURM_ARRAY_TASK_ID="1", nnUNet_wandb_enabled="1")
    assert calls(tmp_path) == ["1", "0"]


def test_a_failing_step_fails_its_job(folders, tmp_path):
    written = jobs(folders, tmp_path / "out")
    for name, script in (("nnUNetv2_train", written.train), ("nnUNetv2_plan_and_preprocess", written.prepare)):
        fake(tmp_path / "bin" / name, "exit 3")
        with pytest.raises(subprocess.CalledProcessError):
            bash(script, SLURM_ARRAY_TASK_ID="0")


def test_nothing_is_preprocessed_where_planning_failed(folders, tmp_path):
    fake(tmp_path / "bin" / "meddino", "exit 3")
    fake(tmp_path / "bin" / "nnUNetv2_preprocess", f'touch "{tmp_path}/calls"')
    written = jobs(folders, tmp_path / "out", configurations=("2d_96",))
    with pytest.raises(subprocess.CalledProcessError):
        bash(written.prepare)
    assert not (tmp_path / "calls").exists()


def test_the_environment_of_the_call_travels(folders, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDDINO_WEIGHTS", "/weights/it's mine.safetensors")
    monkeypatch.setenv("nnUNet_n_proc_DA", "12")
    monkeypatch.setenv("MEDDINO_LOADER", "whole_slice")
    monkeypatch.setenv("MEDDINO_AUGMENT", "device")
    monkeypatch.setenv("MEDDINO_FINETUNE", "lora")
    written = jobs(folders, tmp_path / "out")
    ours = ("MEDDINO_WEIGHTS", "MEDDINO_LOADER", "MEDDINO_AUGMENT", "MEDDINO_FINETUNE")
    names = ("nnUNet_results", "nnUNet_extTrainer", *ours, "nnUNet_n_proc_DA")
    show = "; ".join(f'echo "${{{name}:-unset}}" >> "{tmp_path}/calls"' for name in names)
    fake(tmp_path / "bin" / "nnUNetv2_train", show)
    fake(tmp_path / "bin" / "nnUNetv2_plan_and_preprocess", show)
    bash(written.train, SLURM_ARRAY_TASK_ID="0")
    results, trainers, weights, loader, augmentation, fine_tuning, workers = calls(tmp_path)
    assert (results, weights) == (str(folders.results), "/weights/it's mine.safetensors")
    assert (workers, loader, augmentation, fine_tuning) == ("12", "whole_slice", "device", "lora")
    assert trainers.endswith("nnunet_ext")
    bash(written.prepare)
    assert calls(tmp_path)[-1] == "unset"  # nnU-Net's planner cannot do with 0


FAKE_SBATCH = """
n=$(cat "{home}/count" 2> /dev/null || echo 100); echo $((n + 1)) > "{home}/count"
printf '%s|' "$@" >> "{home}/sbatch"; echo >> "{home}/sbatch"
echo "$((n + 1));cluster"
"""


def submitted(tmp_path: Path) -> list[list[str]]:
    return [line.rstrip("|").split("|") for line in (tmp_path / "sbatch").read_text().splitlines()]


def test_jobs_wait_for_those_before_them(folders, tmp_path):
    fake(tmp_path / "bin" / "sbatch", FAKE_SBATCH.format(home=tmp_path))
    written = jobs(folders, tmp_path / "out")
    lines = submit(written, "--partition=gpu --comment 'two words'")
    extra = ["--partition=gpu", "--comment", "two words"]
    wait = "--kill-on-invalid-dep=yes"
    assert submitted(tmp_path) == [
        ["--parsable", *extra, str(written.prepare)],
        ["--parsable", "--dependency=afterok:101", wait, *extra, str(written.train)],
        ["--parsable", "--dependency=afterok:101:102", wait, *extra, str(written.report)],
    ]
    assert lines[1] == f"job 102: {written.train}"


def test_without_anything_to_prepare_there_is_no_such_job(folders, tmp_path):
    fake(tmp_path / "bin" / "sbatch", FAKE_SBATCH.format(home=tmp_path))
    preprocess(folders, "2d")
    submit(jobs(folders, tmp_path / "out"), "")
    assert [Path(call[-1]).name for call in submitted(tmp_path)] == ["train.sh", "report.sh"]
    assert "--dependency=afterok:101" in submitted(tmp_path)[1]


def test_without_sbatch_the_commands_are_told(folders, tmp_path):
    written = jobs(folders, tmp_path / "out")
    with pytest.raises(CommandError, match="sbatch is not on PATH") as caught:
        submit(written, "-A mine")
    told = str(caught.value).split("\n  ")[1:]
    fake(tmp_path / "bin" / "sbatch", FAKE_SBATCH.format(home=tmp_path).replace(";cluster", ""))
    subprocess.run(["bash", "-ec", "\n".join(told)], check=True)
    assert [call[:2] for call in submitted(tmp_path)] == [
        ["--parsable", "-A"],
        ["--parsable", "--dependency=afterok:101"],
        ["--parsable", "--dependency=afterok:101:102"],
    ]


def test_a_refused_job_tells_what_was_submitted_and_what_is_left(folders, tmp_path):
    refuse = f'case "$*" in *train.sh) echo "no such partition" >&2; exit 1;; esac\n{FAKE_SBATCH.format(home=tmp_path)}'
    fake(tmp_path / "bin" / "sbatch", refuse)
    with pytest.raises(CommandError, match=r"refused .*train.sh \(status 1\): no such partition") as caught:
        submit(jobs(folders, tmp_path / "out"), "")
    message = str(caught.value)
    assert "Submitted before it: 101." in message
    assert "train=$(sbatch --parsable --dependency=afterok:101 " in message
    assert "report=$(sbatch --parsable --dependency=afterok:101:$train " in message
