"""Two processes train one step: the same weights on both, and the same as one process with the whole batch.

nnU-Net allows DDP on GPUs only; here its trainer is told afterwards that it is one of two ranks, over gloo.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as nnunet_module
from torch.nn.parallel import DistributedDataParallel

from nnunetv2_meddino.errors import ConfigurationError
from tests.nnunet import make_trainer

STEPS = 3


def without_drop_path(trainer) -> None:
    trainer._architecture = trainer.new_architecture()
    trainer._architecture["arch_kwargs"]["drop_path"] = 0.0


def train(trainer, rank: int, ranks: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    size = trainer.configuration_manager.patch_size
    trainer.on_train_epoch_start()
    for _ in range(STEPS):
        data = torch.randn(4, 1, *size, generator=generator)
        target = torch.randint(0, 3, (4, 1, *size), generator=generator).to(torch.int16)
        trainer.train_step({"data": data[rank::ranks], "target": target[rank::ranks]})
    return {k: v.clone() for k, v in trainer.plain_network.state_dict().items()}


def as_rank(home: Path, rank: int, **plans_changes):
    """Build a trainer and make it one of two ranks."""
    trainer = make_trainer(home, fold=rank, **plans_changes)
    trainer.is_ddp, trainer.local_rank = True, rank
    nnunet_module.DDP = lambda network, device_ids: DistributedDataParallel(network)
    return trainer


def worker(rank: int, home: Path, port: int) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    trainer = as_rank(home, rank, batch_size=4)
    without_drop_path(trainer)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    torch.manual_seed(0)  # DDP sends rank 0's weights to all; one process must start from the same
    trainer.initialize()
    trainer._load_pretrained_weights()
    state = train(trainer, rank, 2)
    torch.save(state, home / f"rank{rank}.pth")
    dist.destroy_process_group()


@pytest.fixture
def random_tiny(monkeypatch):
    monkeypatch.setenv("MEDDINO_WEIGHTS", "none")
    monkeypatch.setenv("MEDDINO_BACKBONE", "tiny")


@pytest.fixture
def port():
    from nnunetv2.run.run_training import find_free_network_port

    return find_free_network_port()


@pytest.mark.parametrize("fine_tuning", ["full", "frozen", "lora"])
def test_two_ranks_equal_one_process(nnunet_home, random_tiny, port, monkeypatch, fine_tuning):
    """Parameters that are not trained must not be missed by DDP, which waits for the gradients of all others."""
    monkeypatch.setenv("MEDDINO_FINETUNE", fine_tuning)
    mp.spawn(worker, args=(nnunet_home, port), nprocs=2)
    first, second = (torch.load(nnunet_home / f"rank{rank}.pth") for rank in (0, 1))
    single = make_trainer(nnunet_home, fold=2, batch_size=4)
    without_drop_path(single)
    torch.manual_seed(0)
    single.initialize()
    initial = {k: v.clone() for k, v in single.network.state_dict().items()}
    expected = train(single, 0, 1)
    trained = {name for name, parameter in single.network.named_parameters() if parameter.requires_grad}
    for key, value in expected.items():
        assert torch.equal(first[key], second[key]), key
        if key not in trained:
            assert torch.equal(first[key], value), key
            continue
        moved = (value - initial[key]).abs().max()
        assert moved > 0, key
        # AdamW divides by the gradient's size: rounding in gradients near zero shows in full in the step
        assert (first[key] - value).abs().mean() < 0.02 * moved, key


def test_a_batch_that_ranks_cannot_share_equally_is_refused(nnunet_home, random_tiny, port, monkeypatch):
    trainer = as_rank(nnunet_home, 0, batch_size=3)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    with pytest.raises(ConfigurationError, match="Batch size 3 .* equally over 2 GPUs"):
        trainer.initialize()
