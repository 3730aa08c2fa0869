"""The trainers, built by hand on a small preprocessed dataset: recipe, weights, resume, bad input."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_meddino.errors import ConfigurationError, DataError, MedDINOError, PlanError, WeightsError
from nnunetv2_meddino.networks.vit import BACKBONES, VisionTransformer
from nnunetv2_meddino.trainers import TRAINERS, base, find_trainer
from nnunetv2_meddino.weights.load import write_weights
from tests.nnunet import make_trainer

FULL_LENGTH = ["MedDINOv3Trainer", "DINOv3Trainer", "DINOv3PrimusTrainer", "DINOv3PrimusScratchTrainer"]


@pytest.fixture
def random_tiny(monkeypatch):
    monkeypatch.setenv("MEDDINO_WEIGHTS", "none")
    monkeypatch.setenv("MEDDINO_BACKBONE", "tiny")


def tiny_weights(path: Path, seed: int = 7, **changes) -> Path:
    torch.manual_seed(seed)
    config = replace(BACKBONES["tiny"], **changes)
    vit = VisionTransformer(config)
    for parameter in vit.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    write_weights(path, vit.state_dict(), config, {"name": "tiny-test", "licence": "CC0-1.0"}, "meddino")
    return path


def encoder(trainer) -> dict[str, torch.Tensor]:
    return trainer.plain_network.encoder.state_dict()


def holds(trainer, path: Path) -> bool:
    from nnunetv2_meddino.weights.load import read_weights

    return all(torch.equal(encoder(trainer)[k], v) for k, v in read_weights(str(path)).tensors.items())


def batches(trainer, count: int, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    size = trainer.configuration_manager.patch_size
    return [
        {
            "data": torch.randn(2, 1, *size, generator=generator),
            "target": torch.randint(0, 3, (2, 1, *size), generator=generator).to(torch.int16),
        }
        for _ in range(count)
    ]


def run_epoch(trainer, epoch_batches) -> float:
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    outputs = [trainer.train_step(batch) for batch in epoch_batches]
    trainer.on_train_epoch_end(outputs)
    trainer.current_epoch += 1
    return float(outputs[-1]["loss"])


@pytest.mark.parametrize("name", FULL_LENGTH)
def test_recipe_is_the_published_one(nnunet_home, random_tiny, name):
    trainer = make_trainer(nnunet_home, name)
    trainer.initialize()
    assert (trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch) == (
        1000,
        250,
        50,
    )
    assert not trainer.enable_deep_supervision
    assert trainer.grad_scaler is None
    optimizer = trainer.optimizer
    assert type(optimizer) is torch.optim.AdamW
    decoder, encoder = optimizer.param_groups
    for group, rate in ((decoder, 3e-4), (encoder, 3e-5)):
        assert (group["lr"], group["betas"], group["weight_decay"]) == (rate, (0.9, 0.98), 5e-2)
    network = trainer.network
    assert {id(p) for p in encoder["params"]} == {id(p) for p in network.encoder.parameters()}
    assert {id(p) for p in decoder["params"]} == {id(p) for p in network.decoder.parameters()}
    for epoch in (0, 1, 500, 999):
        trainer.lr_scheduler.step(epoch)
        assert decoder["lr"] == pytest.approx(3e-4 * (1000 - epoch) / 1000, rel=1e-12)
        assert encoder["lr"] == pytest.approx(3e-5 * (1000 - epoch) / 1000, rel=1e-12)


def test_ablation_rows_differ_in_blocks_and_weights_only(nnunet_home, monkeypatch):
    expected = {
        "MedDINOv3Trainer": ([2, 5, 8, 11], "meddinov3_vitb16_ct3m"),
        "DINOv3Trainer": ([2, 5, 8, 11], "dinov3_vitb16_lvd1689m"),
        "DINOv3PrimusTrainer": ([11], "dinov3_vitb16_lvd1689m"),
        "DINOv3PrimusScratchTrainer": ([11], None),
    }
    for name, (blocks, weights) in expected.items():
        trainer = make_trainer(nnunet_home, name)
        kwargs = trainer.new_architecture()["arch_kwargs"]
        assert (kwargs["blocks"], trainer.weights()) == (blocks, weights)
        assert (kwargs["drop_path"], kwargs["aggregation"]) == (0.2, "concat")
        vit = kwargs["vit"]
        assert (vit["embed_dim"], vit["depth"], vit["num_heads"], vit["num_registers"]) == (768, 12, 12, 4)
    monkeypatch.setenv("MEDDINO_BACKBONE", "vitl16")
    assert make_trainer(nnunet_home, "DINOv3Trainer").weights() == "dinov3_vitl16_lvd1689m"


@pytest.mark.parametrize(("name", "epochs"), [("MedDINOv3Trainer_5epochs", 5), ("MedDINOv3Trainer_100epochs", 100)])
def test_short_variants_decay_to_zero_over_their_own_length(nnunet_home, random_tiny, name, epochs):
    trainer = make_trainer(nnunet_home, name)
    trainer.initialize()
    assert (trainer.num_epochs, trainer.num_iterations_per_epoch) == (epochs, 250)
    trainer.lr_scheduler.step(epochs - 1)
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(3e-4 / epochs)


def test_every_trainer_is_found_under_its_name():
    for name in TRAINERS:
        assert find_trainer(name).__name__ == name


def test_architecture_travels_in_the_plans(nnunet_home, monkeypatch, tmp_path):
    monkeypatch.setenv("MEDDINO_WEIGHTS", str(tiny_weights(tmp_path / "w.safetensors", num_registers=2)))
    trainer = make_trainer(nnunet_home)
    trainer.initialize()
    plans = json.loads(json.dumps(trainer.plans_manager.plans))
    monkeypatch.setenv("MEDDINO_WEIGHTS", "/nonexistent")
    monkeypatch.setenv("MEDDINO_BACKBONE", "vitl16")
    manager = PlansManager(plans)
    network = find_trainer("MedDINOv3Trainer").build_network_architecture(
        manager, manager.get_configuration("2d"), 1, 3, False
    )
    network.load_state_dict(trainer.network.state_dict())
    assert network.encoder.config.num_registers == 2


def test_fresh_training_loads_the_weights_and_notes_where_they_came_from(nnunet_home, monkeypatch, tmp_path):
    path = tiny_weights(tmp_path / "w.safetensors")
    monkeypatch.setenv("MEDDINO_WEIGHTS", str(path))
    trainer = make_trainer(nnunet_home)
    trainer.initialize()
    assert not holds(trainer, path)
    before = [id(p) for p in trainer.network.parameters()]
    trainer.on_train_start()
    assert holds(trainer, path)
    assert [id(p) for p in trainer.network.parameters()] == before  # the optimizer holds these very tensors
    provenance = trainer.my_init_kwargs["meddino"]["weights"]
    assert provenance["name"] == "tiny-test"
    assert provenance["licence"] == "CC0-1.0"
    import hashlib

    assert provenance["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_weights_are_read_once_and_never_again(nnunet_home, monkeypatch, tmp_path):
    path = tiny_weights(tmp_path / "w.safetensors")
    monkeypatch.setenv("MEDDINO_WEIGHTS", str(path))
    trainer = make_trainer(nnunet_home)
    trainer.on_train_start()
    run_epoch(trainer, batches(trainer, 2))
    trainer.current_epoch -= 1
    checkpoint = Path(trainer.output_folder) / "checkpoint_latest.pth"
    trainer.save_checkpoint(str(checkpoint))
    trained = {k: v.clone() for k, v in encoder(trainer).items()}

    monkeypatch.setenv("MEDDINO_WEIGHTS", "/nonexistent")
    resumed = make_trainer(nnunet_home)
    resumed.load_checkpoint(str(checkpoint))
    resumed.on_train_start()
    assert all(torch.equal(v, trained[k]) for k, v in encoder(resumed).items())
    assert resumed.my_init_kwargs["meddino"]["weights"]["name"] == "tiny-test"
    resumed.save_checkpoint(str(checkpoint))
    again = torch.load(checkpoint, weights_only=False)["init_args"]["meddino"]["weights"]
    assert again == trainer.my_init_kwargs["meddino"]["weights"]

    monkeypatch.setenv("MEDDINO_WEIGHTS", str(tiny_weights(tmp_path / "other.safetensors", seed=8)))
    finetuned = make_trainer(nnunet_home, fold=1)
    finetuned.initialize()
    load_pretrained_weights(finetuned.network, str(checkpoint))
    finetuned.on_train_start()
    assert all(torch.equal(v, trained[k]) for k, v in encoder(finetuned).items())
    assert "-pretrained_weights" in finetuned.my_init_kwargs["meddino"]["weights"]["name"]


def test_resume_is_exact(nnunet_home, random_tiny):
    """Stochastic depth at work: without its random state in the checkpoint the weights would differ."""

    def fresh():
        trainer = make_trainer(nnunet_home)
        trainer.num_epochs = 5
        trainer.on_train_start()
        return trainer

    straight = fresh()
    for block in straight.network.encoder.blocks:  # LayerScale starts at 1e-5 and would hide the blocks
        torch.nn.init.ones_(block.gamma_1)
    start = {k: v.clone() for k, v in straight.network.state_dict().items()}
    data = [batches(straight, 3, seed) for seed in range(5)]
    torch.manual_seed(11)
    rates = []
    for epoch in range(5):
        run_epoch(straight, data[epoch])
        rates.append([g["lr"] for g in straight.optimizer.param_groups])

    interrupted = fresh()
    interrupted.network.load_state_dict(start)
    torch.manual_seed(11)
    for epoch in range(2):
        run_epoch(interrupted, data[epoch])
    interrupted.current_epoch -= 1  # nnU-Net counts up after it saves
    checkpoint = Path(interrupted.output_folder) / "checkpoint_latest.pth"
    interrupted.save_checkpoint(str(checkpoint))

    torch.manual_seed(99)
    resumed = make_trainer(nnunet_home)
    resumed.num_epochs = 5
    resumed.load_checkpoint(str(checkpoint))
    resumed.on_train_start()
    assert resumed.current_epoch == 2
    resumed_rates = []
    for epoch in range(2, 5):
        run_epoch(resumed, data[epoch])
        resumed_rates.append([g["lr"] for g in resumed.optimizer.param_groups])
    assert resumed_rates == rates[2:]
    for key, value in straight.network.state_dict().items():
        assert torch.equal(resumed.network.state_dict()[key], value), key
    expected, actual = straight.optimizer.state_dict(), resumed.optimizer.state_dict()
    assert actual["param_groups"] == expected["param_groups"]
    for index, state in expected["state"].items():
        for name, value in state.items():
            assert torch.equal(actual["state"][index][name], value), (index, name)


def test_a_checkpoint_is_whole_or_not_there(nnunet_home, random_tiny, monkeypatch):
    trainer = make_trainer(nnunet_home)
    trainer.on_train_start()
    path = Path(trainer.output_folder) / "checkpoint_latest.pth"
    trainer.save_checkpoint(str(path))
    good = path.read_bytes()

    def killed(content, filename):
        Path(filename).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        trainer.save_checkpoint(str(path))
    assert path.read_bytes() == good


def test_scratch_row_takes_the_architecture_and_not_the_weights(nnunet_home, monkeypatch, tmp_path):
    path = tiny_weights(tmp_path / "w.safetensors", num_registers=1)
    monkeypatch.setenv("MEDDINO_WEIGHTS", str(path))
    trainer = make_trainer(nnunet_home, "DINOv3PrimusScratchTrainer")
    trainer.on_train_start()
    assert trainer.network.encoder.config.num_registers == 1
    assert not holds(trainer, path)
    assert trainer.my_init_kwargs["meddino"]["weights"] == {"name": "none", "source": "random initialisation"}


def test_a_sister_fold_of_another_architecture_is_not_overwritten(nnunet_home, random_tiny, monkeypatch):
    first = make_trainer(nnunet_home)
    first.on_train_start()
    first.save_checkpoint(str(Path(first.output_folder) / "checkpoint_final.pth"))
    plans = (Path(first.output_folder_base) / "plans.json").read_text()
    make_trainer(nnunet_home, fold=1).on_train_start()
    monkeypatch.setenv("MEDDINO_BACKBONE", "vits16")
    with pytest.raises(ConfigurationError, match="fold_0 .* another architecture"):
        make_trainer(nnunet_home, fold=2).on_train_start()
    assert (Path(first.output_folder_base) / "plans.json").read_text() == plans
    make_trainer(nnunet_home, fold=0).on_train_start()  # the only trained fold may be trained anew


def test_unset_weights_never_fall_back_to_random(nnunet_home, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match="MedDINOv3-ViTB-16-CT-3M.*MEDDINO_WEIGHTS"):
        make_trainer(nnunet_home).on_train_start()


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"MEDDINO_WEIGHTS": "dinov3_vitb16_lvd1689"}, "dinov3_vitb16_lvd1689m"),
        ({"MEDDINO_WEIGHTS": "none", "MEDDINO_BACKBONE": "vitg14"}, "tiny, vits16, vitb16, vitl16"),
        ({"MEDDINO_BACKBONE": "tiny"}, "MEDDINO_WEIGHTS=none"),
        ({"MEDDINO_BACKBONE": "vits16", "MEDDINO_WEIGHTS": "dinov3_vitb16_lvd1689m"}, "Unset MEDDINO_BACKBONE"),
        ({"MEDDINO_WEIGHTS": "/nowhere/weights.pth"}, "/nowhere/weights.pth"),
    ],
)
def test_wrong_settings_are_refused_before_training(nnunet_home, monkeypatch, variables, message):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    trainer = make_trainer(nnunet_home)
    with pytest.raises(MedDINOError, match=message):
        trainer.on_train_start()
    assert not list(Path(trainer.output_folder_base).rglob("*.pth"))
    assert not (Path(trainer.output_folder_base) / "plans.json").exists()


def test_three_dimensional_and_unknown_configurations_are_refused(nnunet_home, random_tiny):
    with pytest.raises(ConfigurationError, match="slice by slice"):
        make_trainer(nnunet_home, patch_size=[16, 32, 32])
    folder = nnunet_home / "preprocessed/Dataset998_Discs"
    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    dataset = json.loads((folder / "dataset.json").read_text())
    with pytest.raises(PlanError, match="2d_896 is not in the plans .* meddino plan -d Dataset998_Discs"):
        find_trainer("MedDINOv3Trainer")(
            {**plans, "continue_training": False}, "2d_896", 0, dataset, torch.device("cpu")
        )
    assert not any((nnunet_home / "results").iterdir())


def test_an_undeclared_label_is_named(nnunet_home, random_tiny):
    trainer = make_trainer(nnunet_home)
    trainer.on_train_start()
    (batch,) = batches(trainer, 1)
    trainer.train_step(batch)
    batch["target"][1, 0, 3, 4] = 7
    with pytest.raises(DataError, match=r"label 7; dataset.json declares \[0, 1, 2\]"):
        trainer.train_step(batch)


def test_batch_of_one_oversamples_foreground_by_chance(nnunet_home, random_tiny):
    trainer = make_trainer(nnunet_home, batch_size=1)
    trainer.initialize()
    assert trainer.probabilistic_oversampling
    trainer = make_trainer(nnunet_home, batch_size=2)
    trainer.initialize()
    assert not trainer.probabilistic_oversampling


def test_compiled_training_saves_plain_names_and_resumes(nnunet_home, random_tiny, monkeypatch):
    """nnU-Net compiles on GPUs by default; here with a backend that needs none."""
    compile_with = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module: compile_with(module, backend="eager"))
    cls = find_trainer("MedDINOv3Trainer")
    monkeypatch.setattr(cls, "_do_i_compile", lambda self: True)
    trainer = make_trainer(nnunet_home)
    trainer.on_train_start()
    assert hasattr(trainer.network, "_orig_mod")
    assert [len(g["params"]) for g in trainer.optimizer.param_groups] == [
        len(list(part.parameters())) for part in (trainer.plain_network.decoder, trainer.plain_network.encoder)
    ]
    run_epoch(trainer, batches(trainer, 1))
    with torch.no_grad():
        trainer.on_validation_epoch_start()
        trainer.validation_step(batches(trainer, 1)[0])
    checkpoint = Path(trainer.output_folder) / "checkpoint_latest.pth"
    trainer.save_checkpoint(str(checkpoint))
    saved = torch.load(checkpoint, weights_only=False)["network_weights"]
    assert all(name.startswith(("encoder.", "decoder.")) for name in saved)
    resumed = make_trainer(nnunet_home)
    resumed.load_checkpoint(str(checkpoint))
    resumed.on_train_start()
    assert all(torch.equal(v, saved[k]) for k, v in resumed.plain_network.state_dict().items())


def end_epoch(trainer, tp: int | None) -> None:
    """End an epoch as nnU-Net does, with ``tp`` voxels right and one missed in one class; None: no foreground."""
    trainer.on_epoch_start()
    trainer.logger.log("lrs", 0.0, trainer.current_epoch)
    trainer.logger.log("train_losses", 0.0, trainer.current_epoch)
    counts = (0, 0) if tp is None else (tp, 1)
    zeros = np.zeros(2)
    output = {"tp_hard": np.array([counts[0], 0]), "fp_hard": zeros, "fn_hard": np.array([counts[1], 0]), "loss": 0.0}
    trainer.on_validation_epoch_end([output])
    trainer.on_epoch_end()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # nnU-Net's nanmean of nothing
def test_an_epoch_without_foreground_leaves_the_moving_average_where_it_was(nnunet_home, random_tiny):
    trainer = make_trainer(nnunet_home)
    trainer.initialize()
    best = Path(trainer.output_folder) / "checkpoint_best.pth"
    end_epoch(trainer, 1)  # Dice 2 / 3
    end_epoch(trainer, None)
    assert trainer.logger.get_value("ema_fg_dice", None) == [2 / 3, 2 / 3]
    best.unlink()
    end_epoch(trainer, 3)  # 6 / 7
    assert best.is_file()
    assert trainer.logger.get_value("ema_fg_dice", -1) == pytest.approx(0.9 * 2 / 3 + 0.1 * 6 / 7, rel=1e-12)
    assert math.isnan(trainer.logger.get_value("mean_fg_dice", 1))  # the epoch itself stays undefined


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_the_first_defined_epoch_is_the_best_of_a_training_that_began_without_foreground(nnunet_home, random_tiny):
    trainer = make_trainer(nnunet_home)
    trainer.initialize()
    best = Path(trainer.output_folder) / "checkpoint_best.pth"
    end_epoch(trainer, None)
    best.unlink()
    end_epoch(trainer, 1)
    assert trainer._best_ema == 2 / 3
    assert torch.load(best, weights_only=False)["_best_ema"] == 2 / 3


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_resumed_training_is_cured_of_a_moving_average_of_nan(nnunet_home, random_tiny, monkeypatch):
    trainer = make_trainer(nnunet_home)
    trainer.initialize()
    with monkeypatch.context() as stock:  # the checkpoint is as stock nnU-Net leaves it
        for name in ("on_validation_epoch_end", "on_epoch_end"):
            stock.setattr(type(trainer), name, getattr(nnUNetTrainer, name))
        for tp in (None, 1, 3):
            end_epoch(trainer, tp)
    checkpoint = Path(trainer.output_folder) / "checkpoint_latest.pth"
    trainer.current_epoch -= 1
    trainer.save_checkpoint(str(checkpoint))
    stored = torch.load(checkpoint, weights_only=False)
    assert all(map(math.isnan, [*stored["logging"]["ema_fg_dice"], stored["_best_ema"]]))

    resumed = make_trainer(nnunet_home)
    resumed.load_checkpoint(str(checkpoint))
    second = 0.9 * 2 / 3 + 0.1 * 6 / 7
    assert resumed.logger.get_value("ema_fg_dice", None)[1:] == pytest.approx([2 / 3, second], rel=1e-12)
    best = Path(resumed.output_folder) / "checkpoint_best.pth"
    best.unlink()
    end_epoch(resumed, 3)
    assert best.is_file()
    assert resumed._best_ema == pytest.approx(0.9 * second + 0.1 * 6 / 7, rel=1e-12)


def validate(trainer, monkeypatch, damaged: int) -> list[str]:
    """Validate with perfect predictions, the first ``damaged`` of which cannot be read; return what the log says."""
    truth = Path(trainer.preprocessed_dataset_folder_base) / "gt_segmentations"
    validation = Path(trainer.output_folder) / "validation"
    validation.mkdir()
    _, cases = trainer.do_split()
    for case in cases:
        (validation / f"{case}.nii.gz").write_bytes((truth / f"{case}.nii.gz").read_bytes())
    for case in cases[:damaged]:
        (validation / f"{case}.nii.gz").write_bytes(b"damaged")
    monkeypatch.setattr(base, "validate", lambda trainer, save_probabilities: None)
    trainer.perform_actual_validation()
    return [line.rstrip() for line in Path(trainer.log_file).read_text().splitlines()]


def test_the_log_tells_of_cases_that_could_not_be_evaluated(nnunet_home, random_tiny, monkeypatch):
    trainer = make_trainer(nnunet_home, fold="all")
    log = validate(trainer, monkeypatch, damaged=2)
    assert any(
        line.endswith("Mean Validation NSD_voxel_1mm: 1.0 over 3 of 5 cases; not evaluated: disc_000, disc_001")
        for line in log
    )
    assert any("disc_001.nii.gz cannot be read" in line for line in log)


def test_a_fold_of_which_nothing_can_be_evaluated_ends_well(nnunet_home, random_tiny, monkeypatch):
    trainer = make_trainer(nnunet_home)
    log = validate(trainer, monkeypatch, damaged=5)
    assert any("No surface metrics: none of 1 validation cases could be evaluated: disc_" in line for line in log)


def test_a_training_scores_its_own_validation_list_only(nnunet_home, random_tiny, monkeypatch):
    """The list is that of ``do_split``, which a trainer may have changed."""
    trainer = make_trainer(nnunet_home, fold="all")
    monkeypatch.setattr(trainer, "do_split", lambda: ([], ["disc_002"]))
    others = Path(trainer.output_folder) / "validation"
    validate(trainer, monkeypatch, damaged=0)
    stale = (others / "disc_002.nii.gz").read_bytes()
    (others / "disc_004.nii.gz").write_bytes(stale)
    trainer.perform_actual_validation()
    content = json.loads((others / "surface_metrics.json").read_text())
    assert [case["case"] for case in content["metric_per_case"]] == ["disc_002"]
    assert "summary.json counts them: disc_004." in Path(trainer.log_file).read_text()
