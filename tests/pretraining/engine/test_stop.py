"""Requests to stop: by a file, and through a launcher."""

from __future__ import annotations

import signal
from functools import partial

import pytest

from pretraining.engine.stages import train_stages
from pretraining.engine.stop import StopRequest
from tests.pretraining.launched import LIMIT_S, launched, torchrun, train_arguments, until_step
from tests.pretraining.training import ALONE, losses, small_config, small_corpus, train

LONG = ("--engine.steps", "5000", "--engine.checkpoint-every", "5000", "--engine.teacher-every", "5000")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return small_corpus(tmp_path_factory.mktemp("corpus"))


def train_looking(corpus, run):
    silent = lambda name: lambda done, total, metrics: None  # noqa: E731
    return train_stages([small_config()], corpus, run, ALONE, stop=StopRequest(run / "stop"), progress=silent)


def test_file_stops_after_a_step_and_is_taken_away(corpus, tmp_path):
    (tmp_path / "stop").touch()
    assert not train_looking(corpus, tmp_path)
    assert len(losses(tmp_path / "stage1")) == 1
    assert (tmp_path / "stage1" / "checkpoints" / "step_00000001").is_dir()
    assert (tmp_path / "stopped").is_file()
    assert not (tmp_path / "stop").exists()
    assert train_looking(corpus, tmp_path)
    assert not (tmp_path / "stopped").exists()


def test_failed_training_does_not_say_that_it_stopped(corpus, tmp_path, monkeypatch):
    (tmp_path / "stopped").touch()
    monkeypatch.setattr("pretraining.engine.loop.StageTraining.run", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(small_config(), corpus, tmp_path)
    assert not (tmp_path / "stopped").exists()


def test_request_by_signal_is_not_overwritten_by_the_file(tmp_path):
    (tmp_path / "stop").touch()
    with StopRequest(tmp_path / "stop").listening() as stop:
        signal.raise_signal(signal.SIGUSR1)
        stop.look()
    assert stop.received == "SIGUSR1"


@pytest.mark.slow
@pytest.mark.parametrize("request_stop", ["SIGTERM", "file"])
def test_launcher_with_two_processes_is_stopped(corpus, tmp_path, request_stop):
    run = tmp_path / "run"
    command = torchrun(["--standalone", "--nproc-per-node", "2"], train_arguments(corpus, run, *LONG))
    with launched(command, tmp_path / "log") as process:
        until_step(run, 1, process)
        ask = partial(process.send_signal, signal.SIGTERM) if request_stop == "SIGTERM" else (run / "stop").touch
        ask()
        assert process.wait(LIMIT_S) == 1, "torchrun's own code for any code but 0"
    done = len(losses(run / "stage1"))
    assert (run / "stage1" / "checkpoints" / f"step_{done:08d}").is_dir()
    assert (run / "stopped").is_file()
    assert ("exitcode  : 75" in (tmp_path / "log").read_text()) == (request_stop == "file")
