"""What every trainer of the package must do at any plan, with any channels; one test for all of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_meddino.environment import ext_trainer_value
from nnunetv2_meddino.trainers import TRAINERS, find_trainer
from nnunetv2_meddino.trainers.base import BaseTrainer
from tests.nnunet import make_trainer
from tests.pretended_cuda import pretended_backward, pretended_cuda, to_cuda

OURS = [name for name in TRAINERS if issubclass(find_trainer(name), BaseTrainer)]


@pytest.fixture(autouse=True)
def random_tiny(nnunet_home, monkeypatch):
    monkeypatch.setenv("MEDDINO_WEIGHTS", "none")
    monkeypatch.setenv("MEDDINO_BACKBONE", "tiny")
    monkeypatch.setenv("nnUNet_extTrainer", ext_trainer_value())


def batch(trainer, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    size = trainer.configuration_manager.patch_size
    return {
        "data": torch.randn(3, 1, *size, generator=generator),
        "target": torch.randint(0, 3, (3, 1, *size), generator=generator).to(torch.int16),
    }


def start(trainer) -> None:
    """Begin an epoch in the middle: where there is a warm-up, the first rates are too small to move anything."""
    trainer.on_train_start()
    trainer.current_epoch = trainer.num_epochs // 2
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()


def test_all_but_the_stock_row_are_ours():
    assert set(TRAINERS) - set(OURS) == {"nnUNetTrainer_demo"}


@pytest.mark.parametrize("name", OURS)
def test_network_and_loss_stay_on_their_device_and_do_not_wait_for_it(nnunet_home, name):
    trainer = make_trainer(nnunet_home, name, patch_size=[40, 56], batch_size=3)
    start(trainer)
    given = batch(trainer)
    with pretended_cuda():
        network = to_cuda(trainer.network)
        with torch.autocast("cuda", torch.bfloat16):
            loss = trainer.loss(network(given["data"].to("cuda")), given["target"].to("cuda"))
        with pretended_backward(network):
            loss.backward()
        logits = network.eval()(given["data"].to("cuda"))
    assert logits.device.type == "cuda"
    assert logits.shape == (3, 3, 40, 56)


@pytest.mark.parametrize("name", OURS)
def test_trains_saves_and_predicts(nnunet_home, name):
    torch.manual_seed(0)
    trainer = make_trainer(nnunet_home, name, patch_size=[40, 56], batch_size=3)
    start(trainer)
    before = {k: v.clone() for k, v in trainer.network.state_dict().items()}
    losses = [float(trainer.train_step(batch(trainer))["loss"]) for _ in range(2)]
    assert all(torch.isfinite(torch.tensor(losses)))
    for key, parameter in trainer.network.named_parameters():
        moved = not torch.equal(parameter, before[key])
        assert moved == parameter.requires_grad, key
        assert parameter.requires_grad or key.startswith("encoder.")
    with torch.no_grad():
        validated = trainer.validation_step(batch(trainer, 1))
    assert validated["tp_hard"].shape == (2,)

    folder = Path(trainer.output_folder)
    trainer.save_checkpoint(str(folder / "checkpoint_final.pth"))
    predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(folder.parent), (0,), "checkpoint_final.pth")
    trainer.network.eval()
    image = torch.randn(1, 1, 40, 56)
    with torch.no_grad():
        expected = trainer.network(image)
        predictor.network.load_state_dict(predictor.list_of_parameters[0])
        assert torch.equal(predictor.network.eval()(image), expected)
        logits = predictor.predict_sliding_window_return_logits(torch.randn(1, 2, 61, 70))
    assert logits.shape == (3, 2, 61, 70)

    resumed = make_trainer(nnunet_home, name, patch_size=[40, 56], batch_size=3)
    resumed.load_checkpoint(str(folder / "checkpoint_final.pth"))
    assert all(torch.equal(v, trainer.network.state_dict()[k]) for k, v in resumed.network.state_dict().items())
    assert len(resumed.optimizer.state_dict()["state"]) == len(trainer.optimizer.state_dict()["state"])


@pytest.mark.parametrize("name", OURS)
def test_any_channels_and_any_size(nnunet_home, name):
    trainer = make_trainer(nnunet_home, name)
    trainer.initialize()
    manager = PlansManager(json.loads(json.dumps(trainer.plans_manager.plans)))  # as nnU-Net saves them
    configuration = manager.get_configuration("2d")
    for channels in (1, 2, 3, 5):
        network = find_trainer(name).build_network_architecture(manager, configuration, channels, 4, False).eval()
        for size in ((16, 17), (40, 56), (64, 96)):
            with torch.no_grad():
                logits = network(torch.randn(2, channels, *size))
            assert (logits.shape, logits.dtype) == ((2, 4, *size), torch.float32)


@pytest.mark.parametrize("name", ["MedDINOv3Trainer", "SegFormerTrainer", "DINOUNetTrainer"])
def test_compiled_network_computes_the_same(nnunet_home, name):
    """Whole, without a break: nnU-Net compiles networks on GPUs by default."""
    torch.manual_seed(0)
    trainer = make_trainer(nnunet_home, name)
    trainer.initialize()
    network = trainer.network.eval()
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    image = torch.randn(2, 1, 64, 64)
    torch.testing.assert_close(compiled(image), network(image), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["SegFormerTrainer", "DINOUNetTrainer"])
def test_own_weights_are_never_replaced_by_random_ones(nnunet_home, monkeypatch, name):
    monkeypatch.delenv("MEDDINO_WEIGHTS")
    monkeypatch.delenv("MEDDINO_BACKBONE")
    trainer = make_trainer(nnunet_home, name)
    expected = {"SegFormerTrainer": "mit_b2_imagenet1k", "DINOUNetTrainer": "dinov3_vitb16_lvd1689m"}[name]
    assert trainer.weights() == expected


def test_baselines_have_their_authors_optimizers(nnunet_home):
    segformer = make_trainer(nnunet_home, "SegFormerTrainer")
    segformer.initialize()
    new, encoder = segformer.optimizer.param_groups
    assert (new["lr"], encoder["lr"], encoder["betas"], encoder["weight_decay"]) == (6e-4, 6e-5, (0.9, 0.999), 0.01)
    segformer.lr_scheduler.step(0)
    assert encoder["lr"] == 0
    segformer.lr_scheduler.step(500)
    assert encoder["lr"] == pytest.approx(3e-5)

    scratch = make_trainer(nnunet_home, "SegFormerScratchTrainer")
    scratch.initialize()
    assert [g["lr"] for g in scratch.optimizer.param_groups] == [2e-5, 2e-5]
    assert scratch.weights() is None
    scratch.lr_scheduler.step(500)
    assert scratch.optimizer.param_groups[0]["lr"] == pytest.approx(2e-5 * 0.5**0.9)

    dino = make_trainer(nnunet_home, "DINOUNetTrainer")
    dino.initialize()
    (group,) = dino.optimizer.param_groups
    assert type(dino.optimizer) is torch.optim.SGD
    assert (group["lr"], group["momentum"], group["nesterov"], group["weight_decay"]) == (1e-2, 0.99, True, 3e-5)
    assert sum(p.numel() for p in group["params"]) == sum(
        p.numel() for name, p in dino.network.named_parameters() if not name.startswith("encoder.")
    )


def test_the_stock_row_differs_from_nnunet_in_length_only(nnunet_home):
    cls = find_trainer("nnUNetTrainer_demo")
    own = {name for name in vars(cls) if not name.startswith("__") or name == "__init__"}
    assert cls.__bases__ == (nnUNetTrainer,)
    assert own == {"__init__"}
    stock = nnUNetTrainer(*arguments(nnunet_home))
    short = make_trainer(nnunet_home, "nnUNetTrainer_demo")
    lengths = {"num_epochs": 12, "num_iterations_per_epoch": 25, "num_val_iterations_per_epoch": 2}
    for name, value in vars(stock).items():
        if isinstance(value, (bool, int, float)):
            assert getattr(short, name) == lengths.get(name, value), name


def arguments(home: Path) -> tuple:
    folder = home / "preprocessed/Dataset998_Discs"
    plans = {**json.loads((folder / "nnUNetPlans.json").read_text()), "continue_training": False}
    return plans, "2d", 0, json.loads((folder / "dataset.json").read_text()), torch.device("cpu")
