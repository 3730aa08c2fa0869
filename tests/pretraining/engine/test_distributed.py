"""Several processes against one: the same losses and the same teacher, whoever saves and whoever goes on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file

from nnunetv2_meddino.errors import ConfigurationError
from pretraining.config import RunConfig
from pretraining.engine.agreement import Agreement
from pretraining.engine.checkpointing.checkpoint import Checkpoints
from pretraining.engine.distributed import Ranks, init_distributed, neighbours
from pretraining.engine.teachers import teacher_path
from tests.pretraining.processes import in_processes
from tests.pretraining.training import STEPS, losses, metrics, small_config, small_corpus, teacher, train, train_all

BATCH = ("--data.batch-size", "16", "--data.group-size", "8", "--optim.lr.start", "1e-3")
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
    """One process that has two groups in every step."""
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
    ours, theirs = (metrics(folder / "stage1")[0]["values"] for folder in (tmp_path / "run", alone))
    assert ours.keys() == theirs.keys()
    whole = [name for name in theirs if name.startswith("views/")] + ["collapse/patch_similarity"]
    assert len(whole) == 8
    assert [ours[name] for name in whole] == pytest.approx([theirs[name] for name in whole], rel=1e-4, abs=1e-4)


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


@pytest.fixture(scope="module")
def spread(alone, tmp_path_factory):
    """Options to start from a teacher whose blocks are not scaled to 1e-5.

    Its class tokens differ. Those of an untrained network nearly coincide, and KoLeo's gradient of such neighbours, in
    the thousands, makes much of the order in which numbers are added.
    """
    with safe_open(teacher_path(alone / "stage1", STEPS), "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        metadata = file.metadata()
    scales = [name for name in tensors if ".gamma_" in name]
    assert scales
    path = tmp_path_factory.mktemp("spread") / "teacher.safetensors"
    save_file(tensors | {name: torch.ones_like(tensors[name]) for name in scales}, path, metadata)
    return ("--initial", str(path))


@pytest.fixture(scope="module")
def spread_alone(corpus, spread, tmp_path_factory):
    """One process that has two groups in every step."""
    run = tmp_path_factory.mktemp("spread_alone")
    assert train(config_of("ddp", *spread), corpus, run)
    return run


@pytest.mark.parametrize(
    ("processes", "strategy", "more"),
    [
        (16, "ddp", ()),  # one slice each
        (1, "ddp", ("--data.micro-batch-size", "2")),
        (2, "ddp", ("--data.micro-batch-size", "4")),
        (4, "fsdp", ("--data.micro-batch-size", "2")),
    ],
)
def test_groups_in_any_number_of_parts_are_the_same_training(
    corpus, spread, spread_alone, tmp_path, processes, strategy, more
):
    config, run = config_of(strategy, *spread, *more), tmp_path / "run"
    if processes == 1:
        assert train(config, corpus, run)
    else:
        assert all(in_group(processes, tmp_path / "group", config, corpus, run, None))
    require_equal(run, spread_alone)
    first, expected = (
        next(line for line in metrics(folder / "stage1") if "loss" in line) for folder in (run, spread_alone)
    )
    names = [name for name in expected if name.startswith(("loss", "gradient_norm"))]
    assert len(names) == 8
    assert {name: first[name] for name in names} == pytest.approx({name: expected[name] for name in names}, rel=2e-6)


def test_processes_that_share_no_group_are_refused_before_anything_is_written(corpus, tmp_path):
    configs = [config_of("ddp"), small_config("stage3", "--data.batch-size", "24", "--data.group-size", "8")]
    with pytest.raises(ConfigurationError, match="cannot be divided over 2 processes; it can over 1, 3, 6, 12, 24"):
        train_all(configs, corpus, tmp_path / "run", ranks=Ranks(0, 2, torch.device("cpu")))
    assert not (tmp_path / "run").exists()


def timeouts() -> list[float]:
    ranks = Ranks(dist.get_rank(), dist.get_world_size(), torch.device("cpu"))
    groups = [Agreement(7).group, Checkpoints(Path("unused"), timeout_s=8)._agreement.group, neighbours(ranks, 2, 9)]
    return [group._get_backend(ranks.device).options._timeout.total_seconds() for group in groups]


def test_processes_wait_for_each_other_as_long_as_was_asked_for(tmp_path):
    """A new group of torch has its own default, not that of the group of all."""
    assert in_processes(2, tmp_path, timeouts) == [[7, 8, 9]] * 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_missing_gpu_is_said():
    with pytest.raises(ConfigurationError, match="no CUDA device"), init_distributed("cuda", 10):
        pass


def test_process_without_launcher_is_alone():
    with init_distributed("cpu", 10) as ranks:
        assert (ranks.rank, ranks.world_size, ranks.device.type) == (0, 1, "cpu")
        assert not dist.is_initialized()
