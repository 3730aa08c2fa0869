"""The whole chain on phantoms: volumes, corpus, three stages, export, fine-tuning by the stock command."""

from __future__ import annotations

import json

import pytest
import torch

from pretraining.cli.main import main
from tests.nnunet import command
from tests.pretraining.cli.test_train import STAGES
from tests.pretraining.curation.folders import phantom, write_volume
from tests.pretraining.training import ANY_STAGE, SMALL, STEPS
from tests.stock.commands import DEVICE, environment, model

pytestmark = pytest.mark.slow

TRAINER = "MedDINOv3OneStepTrainer"


def test_from_volumes_to_a_fine_tuned_model(nnunet_home, tmp_path):
    record = tmp_path / "own.yaml"
    record.write_text("name: own\nmodality: CT\nimages: ['/(?P<case>[^/]+)\\.nii\\.gz$']\n")
    for seed in range(2):
        write_volume(phantom(seed), tmp_path / "ct" / f"patient_{seed}.nii.gz")
    corpus, run, weights = tmp_path / "corpus", tmp_path / "run", tmp_path / "own.safetensors"
    assert main(["curate", "--source", f"{record}={tmp_path / 'ct'}", "--out", str(corpus), "-np", "1"]) == 0
    settings = [f"--{stage}.{s[2:]}" if s.startswith("--") else s for stage in STAGES for s in ANY_STAGE[stage]]
    where = ["--corpus", str(corpus), "--out", str(run), "--recipe", "smoke", "-device", "cpu"]
    assert main(["train", "all", *where, *SMALL, *settings]) == 0
    assert main(["export", str(run), "--out", str(weights)]) == 0

    env = environment(nnunet_home, MEDDINO_WEIGHTS=str(weights))
    command(env, "nnUNetv2_train", 998, "2d", 0, "-tr", TRAINER, *DEVICE)

    folder = model(nnunet_home, TRAINER)
    checkpoint = torch.load(folder / "fold_0/checkpoint_final.pth", weights_only=False)
    origin = checkpoint["init_args"]["meddino"]["weights"]["derived_from"]
    assert origin["configuration"]["stage"] == "stage3"
    assert origin["step"] == STEPS
    assert origin["corpus"]["hash"] == json.loads((corpus / "corpus.json").read_text())["hash"]
    summary = json.loads((folder / "fold_0/validation/summary.json").read_text())
    assert "Dice" in summary["metric_per_case"][0]["metrics"]["1"]
