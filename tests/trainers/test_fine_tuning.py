"""How the pretrained ViT is fine-tuned: what moves, at which rate, and that a training keeps to it to the end."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunetv2_meddino.environment import ext_trainer_value
from nnunetv2_meddino.errors import ConfigurationError
from nnunetv2_meddino.export import export_stock
from nnunetv2_meddino.inference.model import read_model
from nnunetv2_meddino.networks.vit import VisionTransformer
from nnunetv2_meddino.trainers.meddinov3 import MedDINOv3Trainer
from nnunetv2_meddino.weights.load import read_weights
from tests.nnunet import make_trainer
from tests.trainers.test_trainers import batches, holds, run_epoch, tiny_weights

CHANGED = ("frozen", "lora", "layer_decay")
COSINE = "MedDINOv3CosineTrainer"


@pytest.fixture(autouse=True)
def weights(nnunet_home, monkeypatch, tmp_path) -> Path:
    """Pretrained weights of a tiny ViT, in which every block matters."""
    path = tiny_weights(tmp_path / "w.safetensors")
    monkeypatch.setenv("MEDDINO_WEIGHTS", str(path))
    monkeypatch.setenv("nnUNet_extTrainer", ext_trainer_value())
    return path


def started(home: Path, name: str = "MedDINOv3Trainer", *, epochs: int = 3, **plans_changes):
    trainer = make_trainer(home, name, **plans_changes)
    trainer.num_epochs, trainer.num_iterations_per_epoch = epochs, 2
    trainer.on_train_start()
    return trainer


def state(trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.plain_network.state_dict().items()}


def log(trainer) -> str:
    return Path(trainer.log_file).read_text()


def save(trainer) -> Path:
    path = Path(trainer.output_folder) / "checkpoint_final.pth"
    trainer.save_checkpoint(str(path))
    return path


@pytest.mark.parametrize("value", [None, "full"])
def test_full_fine_tuning_leaves_checkpoints_as_they_were(nnunet_home, monkeypatch, value):
    if value:
        monkeypatch.setenv("MEDDINO_FINETUNE", value)
    trainer = started(nnunet_home)
    content = torch.load(save(trainer), weights_only=False)
    assert content["init_args"]["meddino"].keys() == {"weights", "loader", "rng"}
    options = content["init_args"]["plans"]["configurations"]["2d"]["architecture"]["arch_kwargs"]
    assert options.keys() == {"vit", "blocks", "drop_path", "aggregation", "precision"}
    decoder, encoder = content["optimizer_state"]["param_groups"]
    assert "lr_scale" not in decoder.keys() | encoder.keys()
    assert "Fine-tuning: full" in log(trainer)


@pytest.mark.parametrize("name", ["MedDINOv3Trainer", COSINE])
def test_a_frozen_encoder_is_bitwise_what_was_loaded_and_has_no_optimizer_state(
    nnunet_home, monkeypatch, weights, name
):
    monkeypatch.setenv("MEDDINO_FINETUNE", "frozen")
    trainer = started(nnunet_home, name)
    before = state(trainer)
    trainer.current_epoch = 1  # past the warm-up, in which the first rate is 0
    run_epoch(trainer, batches(trainer, 2))
    after = state(trainer)
    assert holds(trainer, weights)
    for key, tensor in after.items():
        assert torch.equal(tensor, before[key]) == key.startswith("encoder."), key
    decoder = list(trainer.network.decoder.parameters())
    (group,) = trainer.optimizer.param_groups
    assert list(map(id, group["params"])) == list(map(id, decoder))
    assert len(trainer.optimizer.state) == len(decoder)
    assert trainer.my_init_kwargs["meddino"]["fine_tuning"] == {"name": "frozen"}
    assert "Fine-tuning: frozen" in log(trainer)


def test_features_of_a_frozen_encoder_are_the_same_in_training_and_prediction(nnunet_home, monkeypatch):
    """Without stochastic depth, which full fine-tuning has: its rate here is 0.2 in each of eight branches."""
    image = torch.randn(4, 1, 48, 32)
    for value, equal in (("frozen", True), ("full", False)):
        monkeypatch.setenv("MEDDINO_FINETUNE", value)
        encoder = started(nnunet_home).network.encoder
        training, prediction = (encoder.train(mode).forward_features(image) for mode in (True, False))
        assert torch.equal(training, prediction) == equal


@pytest.mark.parametrize("name", ["MedDINOv3Trainer", COSINE])
def test_lora_begins_with_the_pretrained_network_and_trains_its_adapters_alone(nnunet_home, monkeypatch, name):
    image = torch.randn(2, 1, 48, 32)
    plain = started(nnunet_home, name).network.encoder.eval().forward_features(image)
    monkeypatch.setenv("MEDDINO_FINETUNE", "lora")
    trainer = started(nnunet_home, name)
    assert torch.equal(trainer.network.encoder.eval().forward_features(image), plain)
    before = state(trainer)
    trainer.current_epoch = 1
    run_epoch(trainer, batches(trainer, 2))  # the first step moves up, and only then has down a gradient
    adapters = {f"encoder.blocks.{i}.attn.{layer}" for i in range(4) for layer in ("qkv", "proj")}
    moved = {key for key, tensor in state(trainer).items() if not torch.equal(tensor, before[key])}
    expected = {f"{layer}.parametrizations.weight.0.{part}" for layer in adapters for part in ("up", "down")}
    assert {key for key in moved if key.startswith("encoder.")} == expected
    (group,) = trainer.optimizer.param_groups
    assert len(group["params"]) == len(expected) + len(list(trainer.network.decoder.parameters()))
    assert trainer.my_init_kwargs["meddino"]["fine_tuning"] == {"name": "lora", "rank": 8, "alpha": 16}
    assert "Fine-tuning: lora, rank 8, alpha 16" in log(trainer)


def expected_scale(name: str) -> float:
    """Clark et al. 2020 for a ViT of four blocks: 1 after the last block, 0.75 less for each layer below."""
    if name.startswith("norm"):
        return 1.0
    return 0.75 ** (4 - int(name.split(".")[1])) if name.startswith("blocks") else 0.75**5


def rates(trainer) -> dict[str, float]:
    by_parameter = {id(p): group["lr"] for group in trainer.optimizer.param_groups for p in group["params"]}
    return {name: by_parameter[id(p)] for name, p in trainer.plain_network.named_parameters()}


@pytest.mark.parametrize(
    ("name", "share_of_base", "final"),
    [
        ("MedDINOv3Trainer", 0.4, 0.0),
        (COSINE, (1 + math.cos(math.pi * 5 / 9)) / 2, 1e-6),  # after a warm-up over the first tenth
    ],
)
def test_layer_decay_scales_every_layer_and_the_whole_schedule(nnunet_home, monkeypatch, name, share_of_base, final):
    monkeypatch.setenv("MEDDINO_FINETUNE", "layer_decay")
    trainer = started(nnunet_home, name, epochs=10)
    trainer.lr_scheduler.step(6)
    found = rates(trainer)
    assert len(found) == len(list(trainer.network.parameters()))
    for key, rate in found.items():
        module, _, inner = key.partition(".")
        base, scale = (3e-5, expected_scale(inner)) if module == "encoder" else (3e-4, 1.0)
        assert rate == pytest.approx(scale * (final + (base - final) * share_of_base), rel=1e-9), key
    assert trainer.my_init_kwargs["meddino"]["fine_tuning"] == {"name": "layer_decay", "decay": 0.75}
    first = trainer.optimizer.param_groups[0]["params"]  # whose rate nnU-Net logs
    assert list(map(id, first)) == list(map(id, trainer.network.decoder.parameters()))


@pytest.mark.parametrize("value", CHANGED)
def test_a_resumed_training_goes_on_exactly_without_the_variable(nnunet_home, monkeypatch, value):
    monkeypatch.setenv("MEDDINO_FINETUNE", value)
    straight = started(nnunet_home)
    start = state(straight)
    data = [batches(straight, 2, seed) for seed in range(3)]
    torch.manual_seed(11)
    for epoch in data:
        run_epoch(straight, epoch)
    begun = started(nnunet_home)
    begun.network.load_state_dict(start)
    torch.manual_seed(11)
    run_epoch(begun, data[0])
    begun.current_epoch -= 1  # nnU-Net counts up after it saves
    checkpoint = save(begun)

    monkeypatch.delenv("MEDDINO_FINETUNE")  # as a job script that forgets them
    monkeypatch.setenv("MEDDINO_WEIGHTS", "/nonexistent")
    torch.manual_seed(99)
    resumed = make_trainer(nnunet_home)
    resumed.num_epochs = 3
    resumed.load_checkpoint(str(checkpoint))
    resumed.on_train_start()
    for epoch in data[1:]:
        run_epoch(resumed, epoch)
    expected, found = straight.optimizer.state_dict(), resumed.optimizer.state_dict()
    assert found["param_groups"] == expected["param_groups"]
    for index, moments in expected["state"].items():
        assert all(torch.equal(found["state"][index][key], value) for key, value in moments.items())
    assert all(torch.equal(state(resumed)[key], tensor) for key, tensor in state(straight).items())
    kept = torch.load(save(resumed), weights_only=False)["init_args"]["meddino"]["fine_tuning"]
    assert kept == straight.my_init_kwargs["meddino"]["fine_tuning"]


@pytest.mark.parametrize(("begun", "wanted"), [("full", "lora"), ("frozen", "full"), ("layer_decay", "frozen")])
def test_another_fine_tuning_is_refused_on_resume_and_not_in_validation(nnunet_home, monkeypatch, begun, wanted):
    monkeypatch.setenv("MEDDINO_FINETUNE", begun)
    checkpoint = save(started(nnunet_home))
    monkeypatch.setenv("MEDDINO_FINETUNE", wanted)
    resumed = make_trainer(nnunet_home)
    resumed.load_checkpoint(str(checkpoint))  # as for --val
    with pytest.raises(ConfigurationError, match=f"with the fine-tuning {begun}, and MEDDINO_FINETUNE is {wanted}"):
        resumed.on_train_start()
    monkeypatch.setenv("MEDDINO_FINETUNE", begun)
    resumed.on_train_start()


@pytest.mark.parametrize("value", CHANGED)
def test_stock_nnunet_our_prediction_and_an_export_rebuild_what_was_trained(nnunet_home, monkeypatch, value):
    monkeypatch.setenv("MEDDINO_FINETUNE", value)
    trainer = started(nnunet_home)
    run_epoch(trainer, batches(trainer, 2))
    checkpoint = save(trainer)
    for name in ("MEDDINO_FINETUNE", "MEDDINO_WEIGHTS"):
        monkeypatch.delenv(name)
    model = Path(trainer.output_folder_base)
    shutil.copytree(model / "fold_0", model / "fold_1")
    image = torch.randn(1, 1, 48, 40)
    with torch.no_grad():
        expected = trainer.network.eval()(image)
        for folder in (model, export_stock(model)):
            predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
            predictor.initialize_from_trained_model_folder(str(folder), (0,), "checkpoint_final.pth")
            predictor.network.load_state_dict(predictor.list_of_parameters[0])
            assert torch.equal(predictor.network.eval()(image), expected)
            networks = read_model(folder, None).networks
            assert len(networks) == 2
            assert all(torch.equal(network(image), expected) for network in networks)
        read = read_weights(str(checkpoint))  # what the next training begins with
        encoder = VisionTransformer(read.config, 1).eval()
        encoder.load_state_dict(read.tensors)
        assert torch.equal(encoder.forward_features(image), trainer.network.encoder.forward_features(image))


@pytest.mark.parametrize("value", CHANGED)
def test_a_compiled_training_is_the_same(nnunet_home, monkeypatch, value):
    """Compiled by a backend that needs no GPU, on which nnU-Net compiles by default."""
    monkeypatch.setenv("MEDDINO_FINETUNE", value)
    trained = {}
    compile_with = torch.compile
    for compiled in (False, True):
        if compiled:
            monkeypatch.setattr(torch, "compile", lambda module: compile_with(module, backend="eager"))
            monkeypatch.setattr(MedDINOv3Trainer, "_do_i_compile", lambda self: True)
        torch.manual_seed(3)
        trainer = started(nnunet_home)
        torch.manual_seed(4)
        run_epoch(trainer, batches(trainer, 2))
        assert hasattr(trainer.network, "_orig_mod") == compiled
        trained[compiled] = state(trainer), rates(trainer) if value == "layer_decay" else None
    assert trained[True][1] == trained[False][1]
    for key, tensor in trained[False][0].items():
        torch.testing.assert_close(trained[True][0][key], tensor, atol=1e-5, rtol=1e-4)


def test_a_trainer_may_choose_and_the_variable_wins(nnunet_home, monkeypatch):
    monkeypatch.setattr(MedDINOv3Trainer, "fine_tuning", "frozen")
    assert started(nnunet_home).my_init_kwargs["meddino"]["fine_tuning"] == {"name": "frozen"}
    monkeypatch.setenv("MEDDINO_FINETUNE", "full")
    trainer = started(nnunet_home)
    assert "fine_tuning" not in trainer.my_init_kwargs["meddino"]
    monkeypatch.delenv("MEDDINO_FINETUNE")
    resumed = make_trainer(nnunet_home)
    resumed.load_checkpoint(str(save(trainer)))
    resumed.on_train_start()
    assert all(p.requires_grad for p in resumed.network.parameters())


def test_what_does_not_exist_is_refused(nnunet_home, monkeypatch):
    monkeypatch.setenv("MEDDINO_FINETUNE", "LoRA")
    with pytest.raises(ConfigurationError, match="MEDDINO_FINETUNE is 'LoRA'; it must be one of full, frozen, lora, l"):
        started(nnunet_home)
    monkeypatch.delenv("MEDDINO_FINETUNE")
    monkeypatch.setattr(MedDINOv3Trainer, "fine_tuning", "head")
    with pytest.raises(ConfigurationError, match="fine_tuning of MedDINOv3Trainer is 'head'"):
        started(nnunet_home)


@pytest.mark.parametrize("name", ["SegFormerTrainer", "DINOUNetTrainer", "nnUNetTrainer_demo"])
@pytest.mark.parametrize("value", ["full", "lora"])
def test_trainers_without_a_choice_refuse_the_variable(nnunet_home, monkeypatch, name, value):
    monkeypatch.setenv("MEDDINO_FINETUNE", value)
    monkeypatch.setenv("MEDDINO_WEIGHTS", "none")
    with pytest.raises(ConfigurationError, match=f"MEDDINO_FINETUNE is {value}, and {name} has no choice"):
        started(nnunet_home, name)


@pytest.mark.parametrize(("value", "told"), [("frozen", True), ("lora", True), ("layer_decay", False), ("full", False)])
def test_random_weights_that_are_not_trained_are_told_and_not_refused(nnunet_home, monkeypatch, value, told):
    monkeypatch.setenv("MEDDINO_WEIGHTS", "none")
    monkeypatch.setenv("MEDDINO_BACKBONE", "tiny")
    monkeypatch.setenv("MEDDINO_FINETUNE", value)
    assert ("weights that are not trained are random" in log(started(nnunet_home))) == told


def test_a_fold_that_is_fine_tuned_by_another_network_than_its_sisters_is_refused(nnunet_home, monkeypatch):
    save(started(nnunet_home))
    monkeypatch.setenv("MEDDINO_FINETUNE", "lora")
    with pytest.raises(ConfigurationError, match="another architecture .*MEDDINO_FINETUNE"):
        make_trainer(nnunet_home, fold=1).on_train_start()
