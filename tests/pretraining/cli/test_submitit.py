"""Trainings as jobs of submitit: its own script and processes, with stand-ins for Slurm's commands."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
import submitit

from pretraining.cli.main import main
from pretraining.engine.submitit_job import TrainingJob
from tests.pretraining.cluster import on_path
from tests.pretraining.launched import LIMIT_S, train_arguments, until_step
from tests.pretraining.training import losses, small_config, small_corpus, train

STEPS = ("--engine.steps", "80", "--engine.checkpoint-every", "80", "--engine.teacher-every", "80")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return small_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    slurm = on_path(tmp_path, monkeypatch)
    slurm.command("sbatch", f"echo Submitted batch job {os.getpid()}")  # the id decides the port
    return slurm


def submitted(corpus, run, *arguments, sbatch="--time=1-00:00:00 --partition=gpu"):
    given = train_arguments(
        corpus, run, *STEPS, "--nodes", "2", "--submitit", f"--sbatch-arguments={sbatch}", *arguments
    )
    return main(["submit", *given])


def job_of(run):
    return submitit.SlurmJob(run / "submit", str(os.getpid()), tasks=[0, 1])


@pytest.mark.slow
def test_training_is_stopped_by_the_signal_queued_again_and_finished(slurm, corpus, tmp_path):
    run = tmp_path / "a run"
    assert submitted(corpus, run) == 0
    job = job_of(run)
    script = job.paths.submission_file
    with slurm.start(script, os.getpid()) as process:
        until_step(run, 2, process)
        slurm.signal_tasks(signal.SIGUSR2)
        process.wait(LIMIT_S)
    assert slurm.lines("requeued") == [str(os.getpid())]
    assert 2 < len(losses(run / "stage1")) < 80
    assert slurm.run(script, os.getpid()) == 0
    assert slurm.lines("requeued") == [str(os.getpid())], "a finished job is not queued again"
    assert [job.task(number).result() for number in range(2)] == [True, True]
    assert train(small_config("stage1", *STEPS), corpus, tmp_path / "alone")
    assert losses(run / "stage1") == [pytest.approx(loss, rel=1e-4) for loss in losses(tmp_path / "alone" / "stage1")]


def test_script_asks_for_what_the_plain_one_does(slurm, corpus, tmp_path, capsys):
    run = tmp_path / "run"
    setup = ("--setup", "module load cuda", "--data.workers", "3")
    assert submitted(corpus, run, *setup, sbatch="--time=90:30 --partition=gpu --exclusive") == 0
    shown = capsys.readouterr().out
    assert shown.startswith((run / "submit" / "train.sbatch").read_text()), "the plain file is shown"
    assert shown.endswith(f"# job {os.getpid()} by submitit, not by the script above: {run / 'submit'}\n")
    lines = job_of(run).paths.submission_file.read_text().splitlines()
    for option in ("nodes=2", "ntasks-per-node=1", "cpus-per-task=4", "signal=USR2@300", "requeue", "time=91"):
        assert lines.count(f"#SBATCH --{option}") == 1
    for option in ("partition=gpu", "exclusive", "job-name=meddino-pretrain"):
        assert lines.count(f"#SBATCH --{option}") == 1
    assert "module load cuda" in lines
    assert f"export PATH={os.environ['PATH']}" in lines
    assert any(line.startswith("srun ") and "--cpus-per-task=4" in line for line in lines)


@pytest.mark.parametrize(
    ("limit", "minutes"),
    [("90", 90), ("90:01", 91), ("12:00:00", 720), ("2-00", 2880), ("1-06:30", 1830), ("0-00:00:59", 1)],
)
def test_time_limits_of_slurm(slurm, corpus, tmp_path, limit, minutes):
    assert submitted(corpus, tmp_path / "run", sbatch=f"--time={limit}") == 0
    assert f"#SBATCH --time={minutes}\n" in job_of(tmp_path / "run").paths.submission_file.read_text()


@pytest.mark.parametrize(
    ("sbatch", "message"),
    [
        ("--partition=gpu", "needs a time limit"),
        ("--time=soon", "no time limit of Slurm"),
        ("--time=1:2:3:4", "no time limit of Slurm"),
        ("-p gpu --time=90", "not '-p'"),
    ],
)
def test_mistakes_are_told(slurm, corpus, tmp_path, capsys, sbatch, message):
    assert submitted(corpus, tmp_path / "run", sbatch=sbatch) == 2
    assert message in capsys.readouterr().err


def test_refusal_of_sbatch_is_told(slurm, corpus, tmp_path, capsys):
    slurm.command("sbatch", "echo no such partition >&2; exit 1")
    assert submitted(corpus, tmp_path / "run") == 2
    assert "no such partition" in capsys.readouterr().err


def test_without_slurm_or_submitit_it_says_so(slurm, corpus, tmp_path, capsys, monkeypatch):
    (slurm.bin / "srun").unlink()
    assert submitted(corpus, tmp_path / "run") == 2
    assert "are you indeed on a slurm cluster" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "submitit", None)
    monkeypatch.delitem(sys.modules, "pretraining.engine.submitit_job")
    assert submitted(corpus, tmp_path / "run") == 2
    assert "pip install 'nnunetv2-meddino[submitit]'" in capsys.readouterr().err


def fake_training(slurm, monkeypatch, run, body):
    """A task of submitit whose launcher is a few lines of bash."""
    run.mkdir()
    for name, value in {"SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": "4711", "SLURM_PROCID": "0"}.items():
        monkeypatch.setenv(name, value)
    slurm.command("torchrun", f'cd "{run}"\n{body}')
    return TrainingJob(run, 1, ["stage1"])


@pytest.mark.parametrize(
    ("body", "finished", "goes_on"),
    [
        ("until [ -f stop ]; do sleep 0.05; done; touch stopped; exit 1", False, True),
        ("until [ -f stop ]; do sleep 0.05; done", True, True),
        ("until [ -f stop ]; do sleep 0.05; done; exit 3", None, False),
    ],
    ids=["stopped", "finished meanwhile", "failed meanwhile"],
)
def test_only_what_failed_does_not_go_on(slurm, monkeypatch, tmp_path, body, finished, goes_on):
    job = fake_training(slurm, monkeypatch, tmp_path / "run", body)
    answers = []
    before = signal.signal(signal.SIGALRM, lambda number, frame: answers.append(job.checkpoint()))
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        if finished is None:
            with pytest.raises(Exception, match="ended with 3"):
                job()
        else:
            assert job() is finished
    finally:
        signal.signal(signal.SIGALRM, before)
    assert [answer is not None for answer in answers] == [goes_on]


def test_leftovers_of_a_job_that_was_killed_mean_nothing(slurm, monkeypatch, tmp_path):
    job = fake_training(slurm, monkeypatch, tmp_path / "run", "test ! -f stop && test ! -f stopped && exit 3")
    for name in ("stop", "stopped"):
        (tmp_path / "run" / name).touch()
    with pytest.raises(Exception, match="ended with 3"):
        job()


def test_signals_to_the_task_do_not_reach_the_launcher(slurm, monkeypatch, tmp_path):
    job = fake_training(slurm, monkeypatch, tmp_path / "run", "ps -o pgid= $$ > group")
    assert job() is True
    assert int((tmp_path / "run" / "group").read_text()) != os.getpgrp()


def test_signal_before_the_training_has_begun_goes_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path.parent)
    job = TrainingJob(Path(tmp_path.name), 2, ["stage1"])
    monkeypatch.chdir("/")
    again = job.checkpoint().function
    assert (again.run, again.processes, again.arguments) == (tmp_path, 2, ["stage1"])
