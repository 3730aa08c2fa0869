"""The warm-up and cosine recipe: schedule, balanced loss and accumulated batches against closed forms."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import nn

from nnunetv2_meddino.networks.precision import autocast_dtype, needs_loss_scaling
from nnunetv2_meddino.trainers.losses import balanced_binary_cross_entropy, balanced_cross_entropy
from nnunetv2_meddino.trainers.lr_schedules import LRScheduler, polynomial, warmup_cosine
from tests.nnunet import make_trainer

NAME = "MedDINOv3CosineTrainer"


@pytest.fixture(autouse=True)
def random_tiny(nnunet_home, monkeypatch):
    monkeypatch.setenv("MEDDINO_WEIGHTS", "none")
    monkeypatch.setenv("MEDDINO_BACKBONE", "tiny")


def schedule(rate, epochs: int = 10, iterations: int = 20) -> tuple[LRScheduler, list[dict]]:
    parameters = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": [p], "lr": lr} for p, lr in zip(parameters, (1e-3, 1e-4), strict=True)])
    return LRScheduler(optimizer, epochs, iterations, rate), optimizer.param_groups


def test_cosine_equals_torchs_schedulers():
    """Linear warm-up over a tenth and CosineAnnealingLR of torch over the rest, iteration by iteration."""
    ours, groups = schedule(warmup_cosine(0.1, 1e-6))
    _, reference_groups = schedule(warmup_cosine(0.1, 1e-6))
    optimizer = torch.optim.SGD([{"params": g["params"], "lr": g["lr"]} for g in reference_groups])
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=180, eta_min=1e-6)
    for step in range(200):
        ours.step(*divmod(step, 20))
        if step < 20:
            assert [g["lr"] for g in groups] == pytest.approx(
                [1e-3 * step / 20, 1e-4 * step / 20], rel=1e-12, abs=1e-18
            )
        else:
            assert [g["lr"] for g in groups] == pytest.approx([g["lr"] for g in optimizer.param_groups], rel=1e-9)
            optimizer.step()
            cosine.step()
    ours.step(10)
    assert [g["lr"] for g in groups] == pytest.approx([1e-6, 1e-6])


def test_polynomial_with_and_without_warmup():
    ours, groups = schedule(polynomial(0.9))
    for epoch in range(10):
        ours.step(epoch)
        assert groups[0]["lr"] == pytest.approx(1e-3 * (1 - epoch / 10) ** 0.9)
    ours, groups = schedule(polynomial(warmup=0.05))
    ours.step(0, 5)
    assert groups[1]["lr"] == pytest.approx(1e-4 * (5 / 10) * (1 - 5 / 200))
    ours.step(0, 10)
    assert groups[1]["lr"] == pytest.approx(1e-4 * (1 - 10 / 200))


def test_every_iteration_has_its_rate_and_a_resumed_epoch_too(nnunet_home):
    trainer = make_trainer(nnunet_home, NAME)
    trainer.num_epochs, trainer.num_iterations_per_epoch = 4, 5
    trainer.on_train_start()
    rates = []
    for epoch in (0, 1, 2):
        trainer.current_epoch = epoch
        trainer.on_train_epoch_start()
        for _ in range(5):
            trainer.train_step(batch(trainer, 2))
            rates.append(trainer.optimizer.param_groups[0]["lr"])
    expected = [warmup_cosine(0.1, 1e-6)(3e-4, step / 20) for step in range(15)]
    assert rates == pytest.approx(expected)


def batch(trainer, size: int, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = trainer.configuration_manager.patch_size
    target = (torch.rand(size, 1, *shape, generator=generator) * torch.linspace(0, 3, size)[:, None, None, None]).long()
    return {"data": torch.randn(size, 1, *shape, generator=generator), "target": target.clamp(max=2).to(torch.int16)}


def balanced_by_hand(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The mean over present classes of the mean over their voxels of minus log softmax."""
    log_p = logits.log_softmax(1)
    means = [-log_p[:, c][labels == c].mean() for c in labels.unique().tolist()]
    return torch.stack(means).mean()


def test_balanced_cross_entropy_is_the_mean_of_class_means():
    torch.manual_seed(0)
    logits = torch.randn(2, 5, 6, 7, dtype=torch.float32)
    labels = torch.randint(0, 4, (2, 6, 7))  # class 4 is absent
    labels[0, :5] = 0
    expected = balanced_by_hand(logits, labels)
    torch.testing.assert_close(balanced_cross_entropy(logits, labels[:, None]), expected)
    # the "balanced" weights of scikit-learn, in torch's weighted mean
    counts = torch.bincount(labels.flatten(), minlength=5).float()
    weights = torch.where(counts > 0, labels.numel() / (4 * counts.clamp(min=1)), 0)
    torch.testing.assert_close(F.cross_entropy(logits, labels, weights), expected)


def test_balanced_cross_entropy_ignores_masked_voxels():
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 4, 4))
    mask = torch.rand(2, 4, 4) < 0.7
    log_p = logits.log_softmax(1)
    means = [-log_p[:, c][(labels == c) & mask].mean() for c in range(3)]
    torch.testing.assert_close(
        balanced_cross_entropy(logits, labels[:, None], mask[:, None]), torch.stack(means).mean()
    )
    nothing = balanced_cross_entropy(logits.requires_grad_(), labels[:, None], torch.zeros_like(mask)[:, None])
    assert nothing == 0
    nothing.backward()
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_balanced_binary_cross_entropy_weighs_inside_and_outside_equally():
    torch.manual_seed(0)
    logits, target = torch.randn(2, 3, 5, 5), (torch.rand(2, 3, 5, 5) < 0.2).float()
    target[:, 2] = 0  # an absent region has an outside only
    mask = torch.rand(2, 1, 5, 5) < 0.8
    kept = mask.expand(-1, 3, -1, -1)
    by_region = []
    for r in range(3):
        losses = F.binary_cross_entropy_with_logits(logits[:, r], target[:, r], reduction="none")
        sides = [losses[(target[:, r] == side) & kept[:, r]] for side in (0, 1)]
        by_region.append(torch.stack([side.mean() for side in sides if len(side)]).mean())
    torch.testing.assert_close(balanced_binary_cross_entropy(logits, target, mask), torch.stack(by_region).mean())


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("ignore", [False, True])
def test_trainers_loss_is_nnunets_dice_plus_balanced_cross_entropy(nnunet_home, monkeypatch, regions, ignore):
    trainer = make_trainer(nnunet_home, NAME)
    labels = {"background": 0, "whole": [1, 2], "core": 2} if regions else {"background": 0, "ring": 1, "core": 2}
    trainer.dataset_json["labels"] = {**labels, **({"ignore": 3} if ignore else {})}
    if regions:
        trainer.dataset_json["regions_class_order"] = [1, 2]
    trainer.label_manager = trainer.plans_manager.get_label_manager(trainer.dataset_json)
    trainer.initialize()
    torch.manual_seed(0)
    classes = 2 if regions else 3
    logits = torch.randn(2, classes, 8, 8)
    plain = torch.randint(0, 4 if ignore else 3, (2, 1, 8, 8))
    mask = plain != 3 if ignore else None
    if regions:
        target = torch.cat(
            [torch.isin(plain, torch.tensor([1, 2])), plain == 2, *([plain == 3] if ignore else [])], dim=1
        )
        dice = trainer.loss.dice(logits, target[:, :2], loss_mask=mask)
        expected = dice + balanced_binary_cross_entropy(logits, target[:, :2], mask)
    else:
        target = plain
        dice = trainer.loss.dice(logits, torch.where(plain == 3, 0, plain), loss_mask=mask)
        expected = dice + balanced_cross_entropy(logits, torch.where(plain == 3, 0, plain), mask)
    torch.testing.assert_close(trainer.loss(logits, target), expected)
    assert type(trainer.loss.dice).__name__ == "MemoryEfficientSoftDiceLoss"


@pytest.mark.parametrize("batch_dice", [True, False])
@pytest.mark.parametrize("size", [7, 4, 9])
def test_accumulated_step_is_the_large_batchs(nnunet_home, batch_dice, size):
    """Gradients of the whole batch in one backward, in float64; also where the batch does not divide."""
    trainer = make_trainer(nnunet_home, NAME, batch_dice=batch_dice, patch_size=[32, 32])
    trainer._architecture = trainer.new_architecture()
    trainer._architecture["arch_kwargs"]["drop_path"] = 0.0
    trainer.initialize()
    trainer.network.double()
    trainer.micro_batch_size = 3
    data = batch(trainer, size)
    data["data"] = data["data"].double()
    trainer.network.zero_grad()
    loss = trainer.loss(trainer.network(data["data"]), data["target"])
    loss.backward()
    expected = {name: p.grad.clone() for name, p in trainer.network.named_parameters()}
    norm = math.sqrt(sum(float(g.square().sum()) for g in expected.values()))
    trainer.on_train_epoch_start()
    returned = trainer.train_step(data)["loss"]
    assert float(returned) == pytest.approx(float(loss.detach()), rel=1e-6)
    clip = min(1.0, 12 / (norm + 1e-6))
    for name, parameter in trainer.network.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name] * clip, rtol=1e-4, atol=1e-8 * max(norm, 1), msg=name)


def test_stochastic_depth_is_drawn_once_for_both_passes(nnunet_home):
    """The second pass drops the very blocks of the first, else gradients belong to another network."""
    trainer = make_trainer(nnunet_home, NAME, patch_size=[32, 32])
    trainer.initialize()
    trainer.micro_batch_size = 2
    for block in trainer.network.encoder.blocks:
        nn.init.ones_(block.gamma_1)
        nn.init.ones_(block.gamma_2)
    passes = []
    trainer.network.register_forward_hook(lambda module, inputs, output: passes.append(output.detach().clone()))
    torch.manual_seed(5)
    trainer.on_train_epoch_start()
    trainer.train_step(batch(trainer, 6))
    assert len(passes) == 6
    for first, second in zip(passes[:3], passes[3:], strict=True):
        assert torch.equal(first, second)
    assert not torch.equal(passes[0], passes[1])


def test_activations_of_one_micro_batch_at_a_time(nnunet_home):
    trainer = make_trainer(nnunet_home, NAME, patch_size=[32, 32])
    trainer.initialize()
    sizes = []
    trainer.network.register_forward_hook(lambda module, inputs, output: sizes.append(len(inputs[0])))
    trainer.on_train_epoch_start()
    trainer.train_step(batch(trainer, 10))
    assert max(sizes) <= trainer.micro_batch_size == 4
    assert sum(sizes) == 20


def loss_of_rank(rank: int, folder: Path, port: int) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    logits, labels = torch.load(folder / "batch.pth")
    logits = logits[rank::2].requires_grad_()
    loss = balanced_cross_entropy(logits, labels[rank::2])
    loss.backward()
    torch.save((loss.detach(), logits.grad), folder / f"rank{rank}.pth")
    dist.destroy_process_group()


def test_balance_is_that_of_all_ranks(tmp_path):
    torch.manual_seed(0)
    labels = torch.cat([torch.zeros(1, 1, 6, 6), torch.randint(0, 3, (3, 1, 6, 6))]).long()
    logits = torch.randn(4, 3, 6, 6)
    torch.save((logits, labels), tmp_path / "batch.pth")
    mp.spawn(loss_of_rank, (tmp_path, 29000 + os.getpid() % 2000), nprocs=2)
    whole = logits.clone().requires_grad_()
    expected = balanced_cross_entropy(whole, labels)
    expected.backward()
    parts = [torch.load(tmp_path / f"rank{rank}.pth") for rank in range(2)]
    torch.testing.assert_close((parts[0][0] + parts[1][0]) / 2, expected.detach())
    for rank, (_, gradient) in enumerate(parts):
        torch.testing.assert_close(gradient / 2, whole.grad[rank::2])  # DDP averages over the ranks


def test_float16_is_the_recipes(nnunet_home):
    trainer = make_trainer(nnunet_home, NAME)
    trainer.initialize()
    assert trainer.network.precision == "float16"
    assert autocast_dtype("cuda", "float16") == torch.float16
    assert needs_loss_scaling("cuda", "float16")
    assert not needs_loss_scaling("cpu", "float16")
    seen = []
    trainer.network.encoder.blocks[0].attn.register_forward_hook(lambda m, i, out: seen.append(out.dtype))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        trainer.network(torch.randn(1, 1, 32, 32))
    assert seen == [torch.float16]
