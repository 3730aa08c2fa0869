"""Trainings as Slurm jobs: the script is run by bash as Slurm runs it, with stand-ins for Slurm's commands."""

from __future__ import annotations

import os
import subprocess

import pytest

from pretraining.cli.main import main
from tests.pretraining.cluster import on_path
from tests.pretraining.launched import train_arguments
from tests.pretraining.training import losses, small_config, small_corpus, train


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return small_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    return on_path(tmp_path, monkeypatch)


@pytest.fixture
def script(slurm, corpus, tmp_path):
    run = tmp_path / "a run"
    assert main(["submit", *train_arguments(corpus, run), "--nodes", "2", "--print"]) == 0
    return run / "submit" / "train.sbatch"


@pytest.mark.slow
def test_signalled_training_is_saved_requeued_and_finished(slurm, script, corpus, tmp_path):
    run = script.parents[1]
    slurm.set(signal="USR1")
    job = 10_000 + os.getpid()  # decides the port
    assert slurm.run(script, job) == 0
    assert slurm.lines("requeued") == [str(job)]
    assert len(losses(run / "stage1")) == 1
    assert slurm.run(script, job) == 0
    assert slurm.lines("requeued") == [str(job)], "a finished job is not queued again"
    assert train(small_config(), corpus, tmp_path / "alone")
    assert losses(run / "stage1") == [pytest.approx(loss, rel=1e-5) for loss in losses(tmp_path / "alone" / "stage1")]


def test_a_run_of_other_settings_is_refused_before_the_job_waits_for_its_turn(slurm, corpus, tmp_path, capsys):
    run = tmp_path / "run"
    assert train(small_config(), corpus, run)
    assert main(["submit", *train_arguments(corpus, run, "--optim.lr", "1e-5")]) == 2
    assert "stage1 is finished, with other settings: optim.lr.peak was" in capsys.readouterr().err
    assert not (run / "submit").exists()


RECORD = """printf '%s\\n' "$@" > "$SLURM_STATE/torchrun.$BASHPID" """
STOPS = 'touch "$(dirname "$SLURM_STATE")/a run/stopped"; exit 1'


@pytest.mark.parametrize(
    ("training", "state", "code", "requeued"),
    [
        ("exit 0", "RUNNING", 0, False),
        ("exit 1", "RUNNING", 1, False),
        (STOPS, "RUNNING", 0, True),
        (STOPS, "CANCELLED", 1, False),
        (STOPS, "PENDING", 1, False),
        ("sleep 0.3; exit 1", "RUNNING", 1, False),
    ],
    ids=["finished", "failed", "stopped", "cancelled", "preempted", "failed late"],
)
def test_job_is_queued_again_only_if_stopped_and_running(slurm, script, training, state, code, requeued):
    slurm.command("torchrun", training)
    slurm.set(state=state)
    assert slurm.run(script) == code
    assert slurm.lines("requeued") == (["4711"] if requeued else [])


@pytest.mark.parametrize("name", ["USR1", "TERM"])
def test_signal_to_the_batch_shell_asks_the_training_to_stop(slurm, script, name):
    stop = 'stop="$(dirname "$SLURM_STATE")/a run/stop"'
    slurm.command("torchrun", f'{stop}; until [ -f "$stop" ]; do read -rt 0.05 < <(:); done; {STOPS}')
    slurm.set(signal=name)
    assert slurm.run(script) == 0
    assert slurm.lines("requeued") == ["4711"]


def test_leftovers_of_a_job_that_was_killed_mean_nothing(slurm, script):
    for name in ("stop", "stopped"):
        (script.parents[1] / name).touch()
    slurm.command("torchrun", 'test ! -f "$(dirname "$SLURM_STATE")/a run/stop" && exit 3')
    assert slurm.run(script) == 3
    assert slurm.lines("requeued") == []


def test_failing_requeue_fails_the_job(slurm, script):
    slurm.command("torchrun", STOPS)
    slurm.command("scontrol", 'test "$1" = show && echo localhost')
    assert slurm.run(script) == 1


def test_arguments_and_nodes_arrive_as_they_were_given(slurm, corpus, tmp_path):
    slurm.command("torchrun", RECORD)
    run, weights = tmp_path / "it's a run", "/we'ights/$HOME a b.safetensors"
    arguments = train_arguments(corpus, run, "--initial", weights)
    setup = 'export MARK="from $UNSET setup"'
    assert main(["submit", *arguments, "--nodes", "2", "--gpus-per-node", "1", "--setup", setup, "--print"]) == 0
    slurm.command("torchrun", f'{RECORD}\necho "$MARK" > "$SLURM_STATE/mark"')
    assert slurm.run(run / "submit" / "train.sbatch") == 0
    records = [file.read_text().splitlines() for file in slurm.state.glob("torchrun.*")]
    assert len(records) == 2
    assert records[0] == records[1]
    launcher, given = records[0][: records[0].index("--no-python")], records[0][records[0].index("train") + 1 :]
    assert {"--nnodes=2", "--nproc-per-node=1", "--max-restarts=0", "--rdzv-backend=c10d"} < set(launcher)
    assert {"--rdzv-id=4711", "--rdzv-endpoint=localhost:24711"} < set(launcher)
    assert sorted(given) == sorted(arguments)
    assert given[given.index("--initial") + 1] == weights
    assert slurm.lines("mark") == ["from  setup"]


def test_script_is_shown_and_submitted(slurm, corpus, tmp_path, capsys):
    arguments = ["--nodes", "2", "--gpus-per-node", "2", "--data.workers", "3", "--data.micro-batch-size", "2"]
    given = [argument for argument in train_arguments(corpus, tmp_path / "run") if argument not in ("-device", "cpu")]
    assert main(["submit", *given, *arguments, "--sbatch-arguments=-A 'my lab'"]) == 0
    file = tmp_path / "run" / "submit" / "train.sbatch"
    assert slurm.lines("sbatch") == ["--parsable", "-A", "my lab", str(file)]
    shown = capsys.readouterr().out
    assert shown == f"{file.read_text()}# job 4711: {file}\n"
    for line in ("nodes=2", "ntasks-per-node=1", "gpus-per-node=2", "cpus-per-task=8", "signal=B:USR1@300", "requeue"):
        assert f"#SBATCH --{line}\n" in shown
    subprocess.run(["bash", "-n", file], check=True)


def test_print_submits_nothing(slurm, corpus, tmp_path, capsys):
    assert main(["submit", *train_arguments(corpus, tmp_path / "a run"), "--print"]) == 0
    assert slurm.lines("sbatch") == []
    shown = capsys.readouterr().out
    assert shown.endswith(f"# not submitted: sbatch --parsable '{tmp_path}/a run/submit/train.sbatch'\n")
    assert "gpus" not in shown, "-device cpu asks for none"


def test_without_sbatch_the_file_is_named(slurm, corpus, tmp_path, capsys):
    (slurm.bin / "sbatch").unlink()
    assert main(["submit", *train_arguments(corpus, tmp_path / "run")]) == 2
    file = tmp_path / "run" / "submit" / "train.sbatch"
    assert f"sbatch is not on PATH: {file} is written" in capsys.readouterr().err
    assert file.is_file()


def test_refusal_of_sbatch_is_told(slurm, corpus, tmp_path, capsys):
    slurm.command("sbatch", "echo 'no such partition' >&2; exit 1")
    assert main(["submit", *train_arguments(corpus, tmp_path / "run")]) == 2
    assert "(status 1): no such partition" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (("--optim.unheard-of", "1"), "unheard_of"),
        (("--submitit",), "there is no option submitit"),
        (("--nodes", "3"), "over 3 processes; it can over 1, 2, 4, 8"),
        (("--nodes", "0"), "at least 1"),
        (("--corpus", "nowhere"), "nowhere"),
    ],
)
def test_mistakes_are_told_before_the_job_is_queued(slurm, corpus, tmp_path, capsys, wrong, message):
    assert main(["submit", *train_arguments(corpus, tmp_path / "run"), *wrong]) == 2
    assert message in capsys.readouterr().err
    assert slurm.lines("sbatch") == []
    assert not (tmp_path / "run").exists()
