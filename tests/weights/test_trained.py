"""Checkpoints of nnU-Net's trainers as weights: their encoder, what it was made from, and what they have seen."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_meddino.cli.main import main
from nnunetv2_meddino.errors import WeightsError
from nnunetv2_meddino.features.dense import read_encoder
from nnunetv2_meddino.networks.mit import MIT_BACKBONES
from nnunetv2_meddino.networks.segformer import MixTransformer
from nnunetv2_meddino.networks.vit import BACKBONES
from nnunetv2_meddino.weights.contamination import seen_cases, unlisted
from nnunetv2_meddino.weights.load import architecture_of, convert_file, read_weights, write_weights
from nnunetv2_meddino.weights.mit import read_mit_weights
from tests.nnunet import make_trainer
from tests.weights.checkpoints import ORIGIN, SMALL, Plants, checkpoint, features, network_of, random_tensors


@pytest.mark.parametrize("prefix", ["encoder.", "_orig_mod.encoder.", "module.encoder.", "module._orig_mod.encoder."])
def test_the_encoder_of_a_checkpoint_is_read(tmp_path, prefix):
    tensors = random_tensors()
    path = checkpoint(tmp_path / "checkpoint_final.pth", network_of(tensors, prefix))
    weights = read_weights(str(path))
    assert weights.config == SMALL == architecture_of(str(path))
    assert weights.tensors.keys() == tensors.keys()
    assert all(torch.equal(weights.tensors[name], tensor) for name, tensor in tensors.items())
    assert weights.dropped == {"decoder.head.weight": "of the segmentation network, not of its encoder"}


def test_what_a_checkpoint_says_of_itself_is_handed_on(tmp_path):
    path = checkpoint(tmp_path / "checkpoint_final.pth", network_of(random_tensors()))
    convert_file(str(path), tmp_path / "ours.safetensors", "meddino")
    for file in (path, tmp_path / "ours.safetensors"):
        provenance = read_weights(str(file)).provenance
        assert provenance["name"] == "MedDINOv3Trainer on Dataset027_LiTS, 2d_896, fold 2"
        assert provenance["licence"] == "CC0-1.0"
        json.dumps(provenance)
        assert seen_cases(provenance, ["lits_007", "lits_008"]) == {"lits_007": ("LiTS",), "lits_008": ()}
        # it has seen the cases of its own training, too, and they are not listed
        assert unlisted(provenance) == ("MedDINOv3Trainer on Dataset027_LiTS, 2d_896, fold 2",)


def test_random_weights_have_seen_nothing_before(tmp_path):
    path = checkpoint(tmp_path / "checkpoint_final.pth", network_of(random_tensors()))
    content = torch.load(path, weights_only=False)
    content["init_args"]["meddino"]["weights"] = {"name": "none", "source": "random initialisation"}
    torch.save(content, path)
    assert unlisted(read_weights(str(path)).provenance) == ("MedDINOv3Trainer on Dataset027_LiTS, 2d_896, fold 2",)


def test_features_see_ct_as_nnunet_normalised_it_in_the_training(tmp_path):
    encoder = read_encoder(str(checkpoint(tmp_path / "c.pth", network_of(random_tensors()))))
    assert (encoder.mean, encoder.std, encoder.window_hu) == ((80.5,), (42.25,), (-150.0, 220.0))


def test_commands_read_a_checkpoint(tmp_path, capsys):
    path = str(checkpoint(tmp_path / "checkpoint_final.pth", network_of(random_tensors())))
    assert main(["weights", "inspect", path]) == 0
    out = capsys.readouterr().out
    assert "name        MedDINOv3Trainer on Dataset027_LiTS, 2d_896, fold 2 (epochs 40, licence CC0-1.0)" in out
    assert "made from   our-run (licence CC0-1.0)" in out
    assert "seen cases  1 of LiTS" in out
    assert "decoder.head.weight: of the segmentation network" in out
    assert main(["weights", "seen", path, "lits_007"]) == 1
    assert "lits_007: seen in LiTS" in capsys.readouterr().out
    assert main(["weights", "seen", path, "lits_008"]) == 2
    assert "Made from MedDINOv3Trainer on Dataset027_LiTS" in capsys.readouterr().err


@pytest.mark.parametrize("trainer", ["MedDINOv3Trainer", "DINOUNetTrainer"])
def test_checkpoints_that_nnunet_writes_are_weights_for_the_next_training(nnunet_home, monkeypatch, trainer):
    torch.manual_seed(0)
    tensors = random_tensors(BACKBONES["tiny"])
    write_weights(nnunet_home / "tiny.safetensors", tensors, BACKBONES["tiny"], ORIGIN, "meddino")
    monkeypatch.setenv("MEDDINO_WEIGHTS", str(nnunet_home / "tiny.safetensors"))
    first = make_trainer(nnunet_home, trainer)
    first.on_train_start()
    with torch.no_grad():  # as a training would
        for parameter in first.plain_network.encoder.parameters():
            parameter.add_(0.125)
    first.logger.log("mean_fg_dice", np.float32(0.5), 0)
    path = Path(first.output_folder, "checkpoint_final.pth")
    first.save_checkpoint(str(path))
    weights = read_weights(str(path))
    image = torch.randn(1, 3, 32, 48)
    expected = features(BACKBONES["tiny"], first.plain_network.encoder.state_dict(), image)
    assert torch.equal(features(weights.config, weights.tensors, image), expected)
    assert seen_cases(weights.provenance, ["lits_007"]) == {"lits_007": ("LiTS",)}

    monkeypatch.setenv("MEDDINO_WEIGHTS", str(path))
    second = make_trainer(nnunet_home, trainer, fold=1)
    second.on_train_start()
    for name, tensor in first.plain_network.encoder.state_dict().items():
        assert torch.equal(second.plain_network.encoder.state_dict()[name], tensor), name


def test_a_checkpoint_of_another_network_says_so(nnunet_home):
    stock = make_stock(nnunet_home)
    with pytest.raises(WeightsError, match="nnU-Net's nnUNetTrainer.*PlainConvUNet, has no encoder of this package"):
        read_weights(str(stock))
    with pytest.raises(WeightsError, match="no encoder of this package; needed is a Mix Transformer"):
        read_mit_weights(str(stock))


def make_stock(home: Path) -> Path:
    folder = home / "preprocessed/Dataset998_Discs"
    plans, dataset = (json.loads((folder / name).read_text()) for name in ("nnUNetPlans.json", "dataset.json"))
    plans["continue_training"] = False
    trainer = nnUNetTrainer(plans, "2d", 0, dataset, torch.device("cpu"))
    trainer.initialize()
    path = Path(trainer.output_folder, "checkpoint_final.pth")
    trainer.save_checkpoint(str(path))
    return path


def test_the_encoder_of_a_segformer_is_for_segformers(tmp_path):
    tiny = MIT_BACKBONES["tiny"]
    tensors = MixTransformer(tiny).state_dict()
    path = checkpoint(tmp_path / "checkpoint_final.pth", network_of(tensors), {"mit": tiny.to_dict()})
    weights = read_mit_weights(str(path))
    assert all(torch.equal(weights.tensors[name], tensor) for name, tensor in tensors.items())
    assert weights.config == tiny
    assert weights.provenance["derived_from"]["derived_from"] == ORIGIN
    with pytest.raises(WeightsError, match=r"has another encoder \(Mix Transformer.*needed is a DINOv3 ViT"):
        read_weights(str(path))


@pytest.mark.parametrize("broken", [{"init_args": {"plans": {}}}, {"init_args": None}])
def test_a_checkpoint_that_nnunet_would_not_write_is_an_error(tmp_path, broken):
    with pytest.raises(WeightsError, match="not as nnU-Net .* writes it"):
        read_weights(str(checkpoint(tmp_path / "c.pth", network_of(random_tensors()), **broken)))


def test_nothing_in_a_checkpoint_is_run(tmp_path):
    log = {"mean_fg_dice": [Plants(tmp_path / "planted")]}
    path = checkpoint(tmp_path / "c.pth", network_of(random_tensors()), logging=log)
    with pytest.raises(WeightsError, match="holds Python objects besides tensors"):
        read_weights(str(path))
    assert not (tmp_path / "planted").exists()
