"""Real CT from raw data to labels and scores, and the label settings that nnU-Net supports."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from tests.conftest import shared_path
from tests.nnunet import command, write_dataset
from tests.stock.commands import (
    DEVICE,
    TRAINER,
    check_streamed_like,
    environment,
    home_with,
    labels_of,
    model,
    plan_and_preprocess,
    predict,
    train_losses,
)

pytestmark = pytest.mark.slow


def test_real_ct_of_several_patients_from_raw_data_to_labels(tmp_path):
    home = home_with(tmp_path, shared_path("data/Dataset902_CTSarcoma"))
    plan_and_preprocess(home, 902)
    env = environment(home, MEDDINO_BACKBONE="tiny", MEDDINO_WEIGHTS="none")
    losses = train_losses(command(env, "meddino", "train", 902, "2d", 0, "-tr", TRAINER, *DEVICE, threads=True))
    assert len(losses) == 3
    assert losses[-1] < losses[0]
    probabilities = ("-tr", TRAINER, "--save_probabilities")
    predict(home, home / "predicted", *probabilities)
    for name, expected in labels_of(home / "raw/Dataset902_CTSarcoma/labelsTs").items():
        assert labels_of(home / "predicted")[name].shape == expected.shape
    check_streamed_like(home, home / "predicted", *probabilities)


def test_training_on_real_ct_learns_its_cases(tmp_path, capsys):
    """Fold ``all`` validates on the training cases: that is where a network that learns at all must improve."""
    home = home_with(tmp_path, shared_path("data/Dataset900_CTMini"))
    plan_and_preprocess(home, 900)
    env = environment(home, MEDDINO_BACKBONE="tiny", MEDDINO_WEIGHTS="none")
    dice = {}
    for trainer in ("MedDINOv3UntrainedTrainer", "MedDINOv3LearningTrainer"):
        losses = train_losses(command(env, "nnUNetv2_train", 900, "2d", "all", "-tr", trainer, *DEVICE, threads=True))
        summary = json.loads((model(home, trainer) / "fold_all/validation/summary.json").read_text())
        dice[trainer] = summary["foreground_mean"]["Dice"]
    with capsys.disabled():
        print(f"\nCTMini, training cases: loss {losses[0]} -> {losses[-1]}; mean foreground Dice {dice}")
    assert losses[-1] < 0.5 * losses[0]
    assert dice["MedDINOv3LearningTrainer"] > 0.08
    assert dice["MedDINOv3LearningTrainer"] > 3 * dice["MedDINOv3UntrainedTrainer"]
    learned = ("-tr", "MedDINOv3LearningTrainer", "-f", "all", "--save_probabilities")
    predict(home, home / "predicted", *learned)
    check_streamed_like(home, home / "predicted", *learned)


def test_regions_ignore_label_and_two_channels(tmp_path):
    home = home_with(tmp_path)
    write_dataset(
        home / "raw",
        channels=2,
        labels={
            "labels": {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3},
            "regions_class_order": [1, 2],
        },
    )
    plan_and_preprocess(home, 998)
    env = environment(home, MEDDINO_BACKBONE="tiny", MEDDINO_WEIGHTS="none")
    command(env, "nnUNetv2_train", 998, "2d", 0, "-tr", TRAINER, *DEVICE, threads=True)
    state = torch.load(model(home) / "fold_0/checkpoint_final.pth", weights_only=False)["network_weights"]
    assert state["encoder.patch_embed.proj.weight"].shape[1] == 2
    assert state["decoder.seg_layers.0.weight"].shape[0] == 2
    predict(home, home / "predicted")
    assert len(labels_of(home / "predicted")) == 2
    assert all(set(np.unique(v)) <= {0, 1, 2} for v in labels_of(home / "predicted").values())
