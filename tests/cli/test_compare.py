from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest

from nnunetv2_meddino.cli.main import main
from nnunetv2_meddino.comparison.folders import Folders
from nnunetv2_meddino.locks import locked
from tests.comparison.jobs.test_steps import preprocess
from tests.comparison.results import make_folders, set_environment, write_dataset, write_method
from tests.nnunet import command
from tests.stock.commands import environment

NAME = "Dataset701_Abdomen"
STOCK, OURS = "nnUNetTrainer__nnUNetPlans__2d", "MedDINOv3Trainer__nnUNetPlans__2d"
ALL = ("--trainers", "nnUNetTrainer", "MedDINOv3Trainer", "--configurations", "2d", "--folds", "0", "1")


def compare(*arguments: object) -> int:
    return main(["compare", "-np", "1", *map(str, arguments)])


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folders:
    """Two trained methods; the working folder is the test's own."""
    folders = make_folders(tmp_path / "nnunet")
    write_dataset(folders, NAME, 3)
    for method in (STOCK, OURS):
        write_method(folders, NAME, method)
    set_environment(folders, monkeypatch)
    monkeypatch.chdir(tmp_path)
    return folders


def test_the_report_is_written_and_named(folders, tmp_path, capsys):
    os.truncate(folders.model(NAME, _method(OURS)) / "fold_1" / "validation" / "case_001.nii.gz", 50)
    assert compare("-d", 701) == 0
    out = capsys.readouterr().out
    assert f"warning: {NAME}: {OURS} has cases in fold 1 that could not be evaluated: case_001." in out
    assert f"2 rows, reference method {STOCK}: meddino_compare/report.html" in out
    assert (tmp_path / "meddino_compare" / "report.html").is_file()


def _method(name: str):
    from nnunetv2_meddino.comparison.folders import Method

    return Method.from_name(name)


def test_what_is_finished_is_not_run_again(folders, tmp_path, capsys):
    preprocess(folders, "2d")
    assert compare("-d", NAME, *ALL, "--run", "-device", "cpu", "-o", "here", "--reference", "MedDINOv3Trainer") == 0
    out = capsys.readouterr().out
    assert out.startswith("Everything is trained and validated.\n")
    assert f"reference method {OURS}" in out
    assert (tmp_path / "here" / "report.md").is_file()


def test_a_failed_step_is_named_with_its_cause_and_the_exit_code_says_so(folders, tmp_path, capsys):
    preprocess(folders, "2d", cases=2)
    assert compare("-d", NAME, *ALL, "--folds", "0", "4", "--run", "-device", "cpu", "-o", "here") == 1
    out = capsys.readouterr().out
    assert f"[1/3] {NAME}: preprocess 2d: FAILED\n  nnUNetv2_preprocess ended with status 1:" in out
    assert f"[2/3] {NAME}: train {STOCK}, fold 4: not started" in out
    assert "3 of 3 steps did not succeed" in out
    assert "2 rows" in out
    assert (tmp_path / "here" / "logs" / f"preprocess_{NAME}_nnUNetPlans_2d.log").is_file()


def test_two_reports_do_not_write_over_each_other(folders, tmp_path, capsys):
    with locked(tmp_path / "meddino_compare"):
        assert compare("-d", 701) == 2
    assert f"BusyError: another command works in {Path('meddino_compare')}" in capsys.readouterr().err
    assert not (tmp_path / "meddino_compare" / "report.html").exists()


def test_jobs_are_written_where_there_is_no_slurm(folders, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    preprocess(folders, "2d")
    assert compare("-d", NAME, *ALL, "--folds", "0", "2", "3", "--submit", "--sbatch-arguments", "-A mine") == 2
    assert "sbatch is not on PATH" in capsys.readouterr().err
    slurm = tmp_path / "meddino_compare" / "slurm"
    assert len((slurm / "tasks.tsv").read_text().splitlines()) == 4
    line = (slurm / "report.sh").read_text().splitlines()[-1]
    assert line == (
        f"meddino compare -d {NAME} --trainers nnUNetTrainer MedDINOv3Trainer --configurations 2d --folds 0 2 3 "
        f"-p nnUNetPlans -o {tmp_path}/meddino_compare -np 1"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-d", 5), "Dataset 5 is not in"),
        (("-d", 701, "--trainers", "nnUNetTrainers"), "Trainer nnUNetTrainers is unknown. Did you mean nnUNetTrainer?"),
        (
            ("-d", 701, "--reference", "DINOv3Trainer"),
            "DINOv3Trainer is not among the rows. Did you mean MedDINOv3Trainer?",
        ),
        (("-d", 701, "--folds", "one"), "--folds takes numbers or 'all', not one."),
        (("-d", 701, "-o", "a_file"), "-o a_file is not a folder"),
        (("-d", 701, "--run"), "Training needs --trainers"),
        (("-d", 701, *ALL, "--run", "--reference", "DINOv3Trainer"), "DINOv3Trainer is not among the rows"),
        (("-d", 701, "--sbatch-arguments", "x"), "--sbatch-arguments is for --submit."),
    ],
)
def test_a_call_that_cannot_work_ends_with_its_reason(folders, tmp_path, capsys, arguments, message):
    (tmp_path / "a_file").touch()
    assert compare(*arguments) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("*/report.html"))


def test_folders_that_are_not_set_are_named(folders, capsys, monkeypatch):
    monkeypatch.delenv("nnUNet_raw")
    assert compare("-d", 701) == 2
    assert "Not set: nnUNet_raw" in capsys.readouterr().err


@pytest.mark.slow
def test_trainings_run_fail_continue_and_end_in_a_report(preprocessed_home, tmp_path):
    for name in ("raw", "preprocessed"):
        (tmp_path / name).symlink_to(preprocessed_home / name)
    trainers = ("MedDINOv3TestTrainer", "MedDINOv3OneStepTrainer")
    arguments = ("-d", 998, "--trainers", *trainers, "--configurations", "2d", "--folds", 0, "-device", "cpu", "-np", 1)
    arguments = ("compare", *arguments, "-o", tmp_path / "out", "--run")
    env = environment(tmp_path, MEDDINO_WEIGHTS="none", MEDDINO_BACKBONE="tiny")
    first = command(env | {"CRASH_AFTER_EPOCH": "1"}, "meddino", *arguments, fails=True)
    assert "train MedDINOv3TestTrainer__nnUNetPlans__2d, fold 0: FAILED" in first
    assert "train MedDINOv3OneStepTrainer__nnUNetPlans__2d, fold 0: done" in first, first
    assert "1 rows, reference method MedDINOv3OneStepTrainer" in first
    second = command(env, "meddino", *arguments)
    assert "[1/1] Dataset998_Discs: train MedDINOv3TestTrainer__nnUNetPlans__2d, fold 0: done" in second
    assert "2 rows, reference method MedDINOv3TestTrainer" in second
    log = next((tmp_path / "out" / "logs").glob("train_*MedDINOv3TestTrainer*")).read_text()
    assert log.count(" --c\n") == 1
    with (tmp_path / "out" / "cases.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 1 * 2  # methods, validation cases of the fold, classes
