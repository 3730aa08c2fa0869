"""The final validation of a training against nnU-Net's own, of the same network on the same preprocessed cases."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import SimpleITK as sitk
import torch
import torch.distributed as dist
from nnunetv2.run.run_training import find_free_network_port
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_meddino.trainers.base import BaseTrainer
from nnunetv2_meddino.trainers.validation import validate
from tests.forked import run_code
from tests.nnunet import make_trainer


@pytest.fixture(autouse=True)
def random_tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDDINO_WEIGHTS", "none")
    monkeypatch.setenv("MEDDINO_BACKBONE", "tiny")
    # processes that nnU-Net starts import it for seconds
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: SimpleNamespace(Pool=ThreadPool))
    monkeypatch.setattr("nnunetv2_meddino.trainers.base.default_num_processes", 1)


def made(home: Path, **changes: object) -> BaseTrainer:
    """A trainer whose random network is not undecided between the classes."""
    trainer = make_trainer(home, fold="all", **changes)
    torch.manual_seed(0)
    trainer.initialize()
    with torch.no_grad():
        for parameter in trainer.plain_network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return trainer


def test_gives_the_files_and_scores_of_nnunet(nnunet_home: Path) -> None:
    trainer = made(nnunet_home)
    validation = Path(trainer.output_folder) / "validation"
    with mock.patch.object(torch, "half", torch.float32):  # nnU-Net's rounding of logits is not what is compared
        nnUNetTrainer.perform_actual_validation(trainer, save_probabilities=True)
    stock = validation.rename(validation.with_name("stock"))
    trainer.perform_actual_validation(save_probabilities=True)
    assert {path.name for path in stock.iterdir()} | {"surface_metrics.json", "surface_metrics.csv"} == {
        path.name for path in validation.iterdir()
    }
    for path in stock.glob("*.nii.gz"):
        theirs, ours = sitk.ReadImage(str(path)), sitk.ReadImage(str(validation / path.name))
        labels = sitk.GetArrayFromImage(ours)
        assert len(np.unique(labels)) > 1
        np.testing.assert_array_equal(labels, sitk.GetArrayFromImage(theirs))
        assert (ours.GetSpacing(), ours.GetOrigin(), ours.GetDirection()) == (
            theirs.GetSpacing(),
            theirs.GetOrigin(),
            theirs.GetDirection(),
        )
        name = path.name.replace(".nii.gz", ".npz")
        with np.load(stock / name) as expected, np.load(validation / name) as found:
            np.testing.assert_allclose(found["probabilities"], expected["probabilities"], atol=1e-4)
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (stock, validation)]
    assert summaries[0] == summaries[1]
    log = Path(trainer.log_file).read_text()
    assert log.count(f"Mean Validation Dice:  {summaries[0]['foreground_mean']['Dice']}") == 2
    told = [match[1] for match in re.finditer(r": ((?:Validation: |predicting ).*?) *$", log, re.MULTILINE)]
    assert told[-4:] == [
        "predicting disc_004 (5 of 5)",
        "Validation: Dice as nnU-Net computes it (cases: 5)",
        "Validation: surface metrics NSD, ASSD and HD95 (cases: 5)",
        f"Validation: done; all scores are in {validation / 'surface_metrics.json'}",
    ]


def test_plans_that_resample_otherwise_are_validated_by_nnunet(
    nnunet_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = made(nnunet_home, resampling_fn_probabilities="no_resampling_hack")
    called = []
    monkeypatch.setattr(nnUNetTrainer, "perform_actual_validation", lambda self, save: called.append(save))
    monkeypatch.setattr("nnunetv2_meddino.trainers.base.evaluate_validation", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trainer.perform_actual_validation()
    assert called == [False]
    assert "nnU-Net's own prediction: The plans resample probabilities" in Path(trainer.log_file).read_text()


def as_rank(rank: int, home: str) -> None:
    """Validate as one of two ranks."""
    multiprocessing.get_context = lambda _: SimpleNamespace(Pool=ThreadPool)  # type: ignore[assignment,misc]
    trainer = made(Path(home))
    trainer.is_ddp, trainer.local_rank = True, rank
    dist.init_process_group("gloo", rank=rank, world_size=2)
    validate(trainer, save_probabilities=False)
    dist.destroy_process_group()


def test_two_ranks_share_the_cases(nnunet_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five cases: the ranks have three and two, and must not wait for each other after the second."""
    trainer = made(nnunet_home)
    validation = Path(trainer.output_folder) / "validation"
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(find_free_network_port()))
    validate(trainer, save_probabilities=False)
    alone = validation.rename(validation.with_name("alone"))
    code = "from tests.trainers.test_validation import as_rank; as_rank({}, {!r})"
    with ThreadPool(2) as pool:
        ended = pool.map(lambda rank: run_code(code.format(rank, str(nnunet_home)), dict(os.environ)), range(2))
    assert [exit_code for exit_code, _ in ended] == [0, 0], ended
    cases = sorted(alone.glob("*.nii.gz"))
    assert len(cases) == 5
    for path in cases:
        assert (validation / path.name).read_bytes() == path.read_bytes()
    assert (validation / "summary.json").is_file()
