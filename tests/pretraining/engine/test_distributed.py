"""Several processes against one: the same losses and the same teacher, whoever saves and whoever goes on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from nnunetv2_meddino.errors import ConfigurationError
from pretraining.config import RunConfig
from pretraining.engine.distributed import Ranks, joined_processes
from tests.pretraining.processes import in_processes
from tests.pretraining.training import losses, small_config, small_corpus, teacher, train

BATCH = ("--data.batch-size", "16", "--data.micro-batch-size", "4", "--optim.lr.start", "1e-3")
LOSS = {"rel": 1e-5}
WEIGHTS = {"atol": 2e-5, "rtol": 1e-4}
"""Sums over processes are rounded differently, and Adam makes the most of small gradients."""


def config_of(strategy: str, *overrides: str) -> RunConfig:
    return small_config("stage1", *BATCH, "--engine.strategy", strategy, *overrides)


def train_together(config: RunConfig, corpus: Path, run: Path, stop_after: int | None) -> bool:
    ranks = Ranks(dist.get_rank(), dist.get_world_size(), torch.device("cpu"))
    return train(config, corpus, run, stop_after=stop_after, ranks=ranks)


def in_group(processes: int, folder: Path, *arguments: object) -> list[bool]:
    folder.mkdir()
    return in_processes(processes, folder, train_together, *arguments)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return small_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def alone(corpus, tmp_path_factory):
    """One process that makes four micro-batches of every step."""
    run = tmp_path_factory.mktemp("alone")
    assert train(config_of("ddp"), corpus, run)
    return run


def require_equal(run: Path, alone: Path) -> None:
    assert losses(run / "stage1") == [pytest.approx(loss, **LOSS) for loss in losses(alone / "stage1")]
    ours, theirs = teacher(run), teacher(alone)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, **WEIGHTS, msg=name)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_equal_one_and_save_for_one_and_four(corpus, alone, tmp_path, strategy):
    config = config_of(strategy)
    assert in_group(2, tmp_path / "a", config, corpus, tmp_path / "run", 3) == [False, False]
    for processes in (1, 4):
        copy = tmp_path / f"on_{processes}"
        shutil.copytree(tmp_path / "run", copy)
        if processes == 1:
            assert train(config, corpus, copy)
        else:
            assert all(in_group(4, tmp_path / "d", config, corpus, copy, None))
        require_equal(copy, alone)
    assert all(in_group(2, tmp_path / "b", config, corpus, tmp_path / "run", None))
    require_equal(tmp_path / "run", alone)


def test_second_and_third_stage_on_two_processes(corpus, alone, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for run in (one, two):
        run.mkdir()
        (run / "stage1").symlink_to(alone / "stage1")
    for stage in ("stage2", "stage3"):
        config = small_config(stage, *BATCH)
        assert train(config, corpus, one)
        assert all(in_group(2, tmp_path / f"group_{stage}", config, corpus, two, None))
        assert losses(two / stage) == [pytest.approx(loss, **LOSS) for loss in losses(one / stage)]
        shutil.rmtree(two / stage)  # both go on from one teacher: KoLeo of near neighbours makes much of rounding
        (two / stage).symlink_to(one / stage)


def test_batch_that_does_not_divide_is_refused(corpus, tmp_path):
    with pytest.raises(ConfigurationError, match="multiple of micro_batch_size 3 times 1 processes"):
        train(config_of("ddp", "--data.micro-batch-size", "3"), corpus, tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_missing_gpu_is_said():
    with pytest.raises(ConfigurationError, match="no CUDA device"), joined_processes("cuda", 10):
        pass


def test_process_without_launcher_is_alone():
    with joined_processes("cpu", 10) as ranks:
        assert (ranks.rank, ranks.world_size, ranks.device.type) == (0, 1, "cpu")
        assert not dist.is_initialized()
