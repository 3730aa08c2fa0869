"""``meddino-pretrain train`` and ``export`` as a user calls them."""

from __future__ import annotations

import contextlib
import os
import signal
import sys

import pytest
import yaml

from pretraining.cli.main import main
from tests.forked import CONTEXT
from tests.pretraining.launched import launched, torchrun, train_arguments, until_step
from tests.pretraining.training import ANY_STAGE, SMALL, STEPS, losses, small_corpus
from tests.processes import until

STAGES = ("stage1", "stage2", "stage3")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return small_corpus(tmp_path_factory.mktemp("corpus"))


def arguments(corpus, run, stage="all", *more):
    own = [f"--{name}.{piece[2:]}" if piece.startswith("--") else piece for name in STAGES for piece in ANY_STAGE[name]]
    where = ["--corpus", corpus, "--out", run, "--recipe", "smoke", "-device", "cpu"]
    return [str(piece) for piece in ("train", stage, *where, *SMALL, *own, *more)]


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "own"
    assert main(arguments(corpus, folder)) == 0
    return folder


def test_train_all_then_export(run, corpus, tmp_path, capsys):
    assert all(len(losses(run / stage)) == STEPS for stage in STAGES)
    assert main(["export", str(run), "--out", str(tmp_path / "w.safetensors")]) == 0
    assert "stage3" in capsys.readouterr().out
    assert (
        main(["export", str(run / "stage1"), "--step", "3", "--format", "meta", "--out", str(tmp_path / "w.pth")]) == 0
    )
    assert main(["export", str(run), "--format", "meta", "--out", str(tmp_path / "w.safetensors")]) == 2
    assert ".pth" in capsys.readouterr().err
    before = (run / "stage1" / "metrics.jsonl").stat().st_mtime_ns
    assert main(arguments(corpus, run)) == 0
    assert (run / "stage1" / "metrics.jsonl").stat().st_mtime_ns == before, "a finished run is left alone"


def test_plain_log_lines_where_there_is_no_terminal(corpus, tmp_path, capsys):
    assert main(arguments(corpus, tmp_path, "stage1")) == 0
    captured = capsys.readouterr()
    assert f"stage1 {STEPS}/{STEPS} loss" in captured.err
    assert "images/s" in captured.err
    assert "finished: meddino-pretrain export" in captured.out


def test_show_prints_the_settings_and_does_nothing(tmp_path, capsys):
    assert main(["train", "stage2", "--corpus", "x", "--out", str(tmp_path / "r"), "--optim.lr", "1e-4", "--show"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert (shown["stage"], shown["optim"]["lr"]["peak"], shown["views"]["gram_size"]) == ("stage2", 1e-4, 512)
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("command", ["train", "submit"])
def test_help_after_a_stage_lists_its_settings(capsys, command):
    with pytest.raises(SystemExit, match="0"):
        main([command, "stage2", "--recipe", "smoke", "--help"])
    shown = capsys.readouterr().out
    for text in ("--corpus CORPUS", "--optim.lr NUMBER", "Learning rate", "(default: 0.0002)", "previous:100"):
        assert text in shown


@pytest.mark.parametrize("arguments", [["--help"], ["--corpus", "x", "-h", "stage1"]])
def test_help_before_a_stage_is_short(capsys, arguments):
    with pytest.raises(SystemExit, match="0"):
        main(["train", *arguments])
    shown = capsys.readouterr().out
    assert "--corpus CORPUS" in shown
    assert "--optim.lr " not in shown


def test_help_of_an_unknown_stage_or_recipe_says_so(capsys):
    for arguments in (["stage4"], ["stage1", "--recipe", "smok"]):
        with pytest.raises(SystemExit, match="2"):
            main(["train", *arguments, "--help"])
        assert capsys.readouterr().err.startswith("ConfigurationError: there is no ")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--optim.learning_rate", "1"), "no option optim.learning_rate"),
        (("--engine.precision", "float8"), "float8"),
        (("--recipe", "none"), "there is no recipe 'none'"),
        (("--data.batch-size", "9"), "must be a multiple of group_size 4"),
        (("--config", "absent.yaml"), "absent.yaml"),
        (("--corpus", "absent"), "absent"),
        (("--model.weights", "absent.safetensors"), "absent.safetensors"),
        (("--monitor.probe-dataset", "absent"), "no dataset.json"),
        (("--data.source-weights", "[[nobody, 1.0]]"), "nobody"),
    ],
)
def test_wrong_calls_end_with_one_paragraph(corpus, tmp_path, capsys, more, message):
    assert main(arguments(corpus, tmp_path / "r", "stage1", *more)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_unknown_stage(tmp_path, capsys):
    assert main(["train", "stage4", "--corpus", "x", "--out", str(tmp_path)]) == 2
    assert "stage1, stage2, stage3 and all" in capsys.readouterr().err


def test_settings_belong_to_train_alone(capsys):
    with pytest.raises(SystemExit):
        main(["sources", "--optim.lr", "1"])
    assert "unrecognized arguments" in capsys.readouterr().err


def run_alone(arguments, printed):
    """Runs the command in a process of its own."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
    with printed.open("w") as file, contextlib.redirect_stdout(file):
        code = main(arguments)
    sys.exit(code)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_signal_saves_and_asks_to_be_run_again(corpus, run, tmp_path, number):
    given = arguments(corpus, tmp_path, "stage1", "--engine.steps", "500")
    metrics, printed = tmp_path / "stage1" / "metrics.jsonl", tmp_path / "printed"
    process = CONTEXT.Process(target=run_alone, args=(given, printed))
    process.start()
    until(lambda: not process.is_alive() or (metrics.is_file() and metrics.read_text().count('"loss"') >= 3))
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode == 75
    assert f"stopped by {number.name}; the same command goes on" in printed.read_text()
    saved = sorted((tmp_path / "stage1" / "checkpoints").glob("step_*"))[-1]
    assert len(losses(tmp_path / "stage1")) == int(saved.name.removeprefix("step_"))
    assert losses(tmp_path / "stage1")[:3] == losses(run / "stage1")[:3]


def test_training_whose_torchrun_was_killed_saves_and_ends(corpus, tmp_path):
    run = tmp_path / "run"
    arguments = train_arguments(corpus, run, "--engine.steps", "500")
    command = torchrun(["--standalone", "--nproc-per-node=2"], arguments)
    with launched(command, tmp_path / "log") as process:
        until_step(run, 2, process)
        process.kill()
    until((run / "stopped").exists)
    saved = sorted((run / "stage1" / "checkpoints").glob("step_*"))[-1]
    assert len(losses(run / "stage1")) == int(saved.name.removeprefix("step_"))
