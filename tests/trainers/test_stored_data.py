"""Trainings of a configuration that is resampled while training: their data, validation, prediction, resume."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.run.run_training import get_trainer_from_args

from nnunetv2_meddino.dataloading.cases import PreprocessedCases
from nnunetv2_meddino.dataloading.resampled_cases import ResampledCases
from nnunetv2_meddino.errors import ConfigurationError
from nnunetv2_meddino.inference.predictor import Predictor
from nnunetv2_meddino.planning.planner import plan_dataset
from nnunetv2_meddino.trainers.benchmark import measure
from nnunetv2_meddino.trainers.meddinov3 import MedDINOv3Trainer
from nnunetv2_meddino.trainers.training_input import LOADER
from nnunetv2_meddino.weights.trained import PROVENANCE
from tests.nnunet import command, make_trainer, nnunet_environment
from tests.trainers.test_training_input import assert_same, note_batches


@pytest.fixture(scope="module")
def both_ways(preprocessed_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders in which ``2d_96`` is planned to be resampled, and by other plans stored as nnU-Net does."""
    home = tmp_path_factory.mktemp("both_ways")
    for name in ("raw", "preprocessed"):
        shutil.copytree(preprocessed_home / name, home / name)
    folder = home / "preprocessed/Dataset998_Discs"
    with pytest.MonkeyPatch.context() as patch:
        for name in ("raw", "preprocessed", "results"):
            patch.setenv(f"nnUNet_{name}", str(home / name))
        plan_dataset(998, patch_size=96, lazy_resample=True, num_processes=1)
        plans = json.loads((folder / "nnUNetPlans.json").read_text()) | {"plans_name": "Stored"}
        del plans["configurations"]["2d_96"]
        (folder / "Stored.json").write_text(json.dumps(plans))
        plan_dataset(998, patch_size=96, plans_name="Stored", num_processes=1)
    env = nnunet_environment(home)
    command(env, "nnUNetv2_preprocess", "-d", 998, "-plans_name", "Stored", "-c", "2d_96", "-np", 1, threads=True)
    return home


@pytest.fixture
def home(both_ways: Path, nnunet_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """These folders for one test; what is preprocessed may be added to."""
    for name in ("raw", "preprocessed"):
        (nnunet_home / name).unlink()
        shutil.copytree(both_ways / name, nnunet_home / name)
    monkeypatch.setenv("MEDDINO_WEIGHTS", "none")
    monkeypatch.setenv("MEDDINO_BACKBONE", "tiny")
    # processes that nnU-Net starts import it for seconds
    monkeypatch.setattr(multiprocessing, "get_context", lambda *_: SimpleNamespace(Pool=ThreadPool))
    monkeypatch.setattr("nnunetv2_meddino.trainers.base.default_num_processes", 1)
    return nnunet_home


def trainer_of(home: Path, plans: str = "nnUNetPlans", *, epochs: int = 1):
    folder = home / "preprocessed/Dataset998_Discs"
    content, dataset = (json.loads((folder / f"{name}.json").read_text()) for name in (plans, "dataset"))
    trainer = MedDINOv3Trainer({**content, "continue_training": False}, "2d_96", 0, dataset, torch.device("cpu"))
    trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = epochs, 2, 1
    return trainer


def data_of(home: Path, name: str) -> str:
    return str(home / "preprocessed/Dataset998_Discs" / name)


@pytest.mark.parametrize("augmentation", ["worker", "device"])
def test_it_is_given_the_samples_of_stored_slices(home, monkeypatch, augmentation):
    """Catches slices that are not resampled, or counted in the spacing that they are stored in."""
    monkeypatch.setenv("MEDDINO_LOADER", "whole_slice")
    monkeypatch.setenv("MEDDINO_AUGMENT", augmentation)
    given = []
    for plans in ("nnUNetPlans", "Stored"):
        torch.manual_seed(5)
        trainer = trainer_of(home, plans)
        trainer.oversample_foreground_percent = 0.0  # voxels of foreground are others in other spacings
        given.append(note_batches(trainer))
        trainer.run_training()
        assert isinstance(trainer.dataloader_train.batches.cases, ResampledCases) == (plans == "nnUNetPlans")
    for (_, a), (_, b) in zip(*given, strict=True):
        assert a["keys"] == b["keys"]
        assert a["data"].shape == (2, 1, 96, 96)
        torch.testing.assert_close(a["data"], b["data"], rtol=1e-3, atol=2e-3)
        assert (a["target"] == b["target"]).float().mean() > 0.999


def test_validation_is_that_of_stored_slices_and_prediction_that_of_the_images(home, monkeypatch):
    """Catches slices that are validated in the spacing that they are stored in."""
    monkeypatch.setenv("MEDDINO_LOADER", "whole_slice")
    found = {}
    for plans in ("nnUNetPlans", "Stored"):
        trainer = trainer_of(home, plans)
        torch.manual_seed(0)
        trainer.initialize()
        with torch.no_grad():
            for parameter in trainer.plain_network.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
        trainer.on_train_start()
        trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
        trainer.perform_actual_validation()
        found[plans] = Path(trainer.output_folder) / "validation"
    model = found["nnUNetPlans"].parents[1]
    predictor = Predictor.from_folder(model, device="cpu")
    images, stock = home / "raw/Dataset998_Discs/imagesTs", home / "stock"
    arguments = ("-i", images, "-o", stock, "-m", model, "-f", 0, "-device", "cpu", "-npp", 1, "-nps", 1)
    command(nnunet_environment(home), "nnUNetv2_predict_from_modelfolder", *arguments)
    for path in images.iterdir():
        labels = sitk.GetArrayFromImage(sitk.ReadImage(str(stock / path.name.replace("_0000", ""))))
        assert (predictor.predict(path) == labels).mean() > 0.999
    paths = sorted(found["Stored"].glob("*.nii.gz"))
    assert paths
    for path in paths:
        resampled, stored = (
            sitk.GetArrayFromImage(sitk.ReadImage(str(folder / path.name))) for folder in found.values()
        )
        assert len(np.unique(stored)) > 1
        assert (resampled == stored).mean() > 0.999
        name = path.name.replace(".nii.gz", "_0000.nii.gz")
        assert (predictor.predict(home / "raw/Dataset998_Discs/imagesTr" / name) == resampled).mean() > 0.999


def test_a_training_is_resumed_exactly_and_validated_without_the_variable(home, monkeypatch):
    monkeypatch.setenv("MEDDINO_LOADER", "whole_slice")
    torch.manual_seed(8)
    straight = trainer_of(home, epochs=2)
    expected = note_batches(straight)
    straight.run_training()
    torch.manual_seed(8)
    begun = trainer_of(home, epochs=1)
    given = note_batches(begun)
    begun.run_training()
    monkeypatch.delenv("MEDDINO_LOADER")  # as a job script that forgets it
    resumed = trainer_of(home, epochs=2)
    resumed.load_checkpoint(str(Path(begun.output_folder) / "checkpoint_final.pth"))
    assert resumed.preprocessed_dataset_folder == data_of(home, "nnUNetPlans_2d")
    assert resumed.my_init_kwargs[PROVENANCE][LOADER] == begun.my_init_kwargs[PROVENANCE][LOADER]
    assert resumed.my_init_kwargs[PROVENANCE][LOADER]["slices_of"] == "2d"
    later = note_batches(resumed)
    resumed.run_training()
    assert_same(given + later, expected)
    for a, b in zip(resumed.network.parameters(), straight.network.parameters(), strict=True):
        assert torch.equal(a, b)
    validated = trainer_of(home)
    validated.load_checkpoint(str(Path(resumed.output_folder) / "checkpoint_final.pth"))  # --val
    validated.perform_actual_validation()
    assert (Path(validated.output_folder) / "validation/summary.json").is_file()


@pytest.mark.parametrize("loader", [None, "stock"])
def test_nnunets_loader_finds_no_data_and_is_told_what_to_do(home, monkeypatch, loader):
    if loader:
        monkeypatch.setenv("MEDDINO_LOADER", loader)
    message = (
        "2d_96 was planned with --lazy-resample: .* Set MEDDINO_LOADER=whole_slice; .* run: "
        "nnUNetv2_preprocess -d 998 -plans_name nnUNetPlans -c 2d_96$"
    )
    with pytest.raises(ConfigurationError, match=message):
        trainer_of(home).on_train_start()


def test_a_trainer_of_nnunet_finds_no_data(home):
    trainer = get_trainer_from_args("998", "2d_96", 0, "nnUNetTrainer", device=torch.device("cpu"))
    with pytest.raises(FileNotFoundError, match="nnUNetPlans_2d_96_lazy"):
        trainer.initialize()


def test_each_loader_keeps_to_its_data_where_both_are_stored(home, monkeypatch):
    shutil.copytree(data_of(home, "Stored_2d_96"), data_of(home, "nnUNetPlans_2d_96_lazy"))
    for loader, folder in (("stock", "nnUNetPlans_2d_96_lazy"), ("whole_slice", "nnUNetPlans_2d")):
        monkeypatch.setenv("MEDDINO_LOADER", loader)
        trainer = trainer_of(home)
        trainer.run_training()
        assert trainer.preprocessed_dataset_folder == data_of(home, folder)
        assert (trainer.slice_resampling is None) == (loader == "stock")
        shapes = {tuple(PreprocessedCases(d).shape("disc_000")) for d in trainer.get_tr_and_val_datasets()}
        assert shapes == {(6, 96, 96) if loader == "stock" else (6, 48, 40)}
        other = trainer_of(home)
        monkeypatch.delenv("MEDDINO_LOADER")
        other.load_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
        assert other.preprocessed_dataset_folder == data_of(home, folder)


def test_missing_data_of_the_source_is_told(home, monkeypatch):
    monkeypatch.setenv("MEDDINO_LOADER", "whole_slice")
    shutil.rmtree(data_of(home, "nnUNetPlans_2d"))
    with pytest.raises(ConfigurationError, match="data of 2d, .*2d is missing. Run: nnUNetv2_preprocess .* -c 2d$"):
        trainer_of(home).initialize()


def test_nnunets_own_validation_is_refused(home, monkeypatch):
    monkeypatch.setenv("MEDDINO_LOADER", "whole_slice")
    trainer = make_trainer(home, configuration="2d_96", resampling_fn_probabilities="no_resampling_hack")
    trainer.initialize()
    with pytest.raises(ConfigurationError, match="Stored slices cannot be resampled for nnU-Net's own validation"):
        trainer.perform_actual_validation()


def test_a_benchmark_measures_the_loader_that_finds_data(home):
    def quiet():
        trainer = trainer_of(home)
        trainer.print_to_log_file = lambda *words, **settings: None
        return trainer

    assert [row.loader for row in measure(quiet, 1)] == ["whole_slice"]
