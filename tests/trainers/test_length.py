"""The number of epochs at the end of a trainer's name."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.training_length.nnUNetTrainer_Xepochs import nnUNetTrainer_5epochs
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunetv2_meddino.environment import ext_trainer_folder
from nnunetv2_meddino.trainers import UnknownTrainerError, find_trainer, split_length
from nnunetv2_meddino.trainers.baselines import SegFormerTrainer
from nnunetv2_meddino.trainers.variants import MedDINOv3Trainer_5epochs, MedDINOv3Trainer_demo, nnUNetTrainer_demo
from tests.comparison.results import LABELS, make_folders, plans, set_environment
from tests.conftest import PROJECT


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(make_folders(tmp_path), monkeypatch)
    extensions = (ext_trainer_folder(), PROJECT / "tests" / "ext_trainers")
    monkeypatch.setenv("nnUNet_extTrainer", os.pathsep.join(map(str, extensions)))


def made(trainer: Any) -> Any:
    dataset_json = {"channel_names": {"0": "CT"}, "labels": LABELS, "numTraining": 3, "file_ending": ".nii.gz"}
    settings = plans("Dataset701_Abdomen") | {"continue_training": False}
    return trainer(settings, "2d", 0, dataset_json, torch.device("cpu"))


@pytest.mark.parametrize(
    ("base", "inherited"),
    [
        ("nnUNetTrainer", nnUNetTrainer),
        ("nnUNetTrainer_demo", nnUNetTrainer_demo),
        ("SegFormerTrainer", SegFormerTrainer),
        ("MedDINOv3Trainer_demo", MedDINOv3Trainer_demo),
        ("MedDINOv3TestTrainer", object),
    ],
)
def test_nnunet_finds_any_trainer_for_any_number_of_epochs(base: str, inherited: type) -> None:
    name = f"{base}_37epochs"
    found = recursive_find_trainer_class_by_name(name)
    assert issubclass(found, inherited)
    assert (found.__name__, found.__mro__[1].__name__) == (name, base)
    assert found is recursive_find_trainer_class_by_name(name) is pickle.loads(pickle.dumps(found))
    trainer = made(found)
    assert trainer.num_epochs == 37
    assert trainer.my_init_kwargs["configuration"] == "2d", "what nnU-Net saves to build it anew"
    assert Path(trainer.output_folder_base).name == f"{name}__nnUNetPlans__2d"
    other = made(found.__mro__[1])
    assert other.num_epochs != 37
    assert trainer.num_iterations_per_epoch == other.num_iterations_per_epoch


def test_the_schedule_ends_with_the_last_epoch() -> None:
    trainer = made(find_trainer("SegFormerTrainer_4epochs"))
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    schedule = trainer.make_scheduler(optimizer)
    schedule.step(4)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)


def test_trainers_of_these_names_stay_what_they_are() -> None:
    assert recursive_find_trainer_class_by_name("nnUNetTrainer_5epochs") is nnUNetTrainer_5epochs
    assert recursive_find_trainer_class_by_name("MedDINOv3Trainer_5epochs") is MedDINOv3Trainer_5epochs


@pytest.mark.parametrize("name", ["NoTrainer_3epochs", "MedDINOv3Trainer_0epochs", "MedDINOv3Trainer_epochs", "Other"])
def test_other_names_are_unknown(name: str) -> None:
    with pytest.raises(UnknownTrainerError):
        find_trainer(name)
    with pytest.raises(RuntimeError, match=f"Could not find requested nnunet trainer {name}"):
        recursive_find_trainer_class_by_name(name)


def test_a_name_is_divided() -> None:
    assert split_length("MedDINOv3Trainer_demo_20epochs") == ("MedDINOv3Trainer_demo", 20)
    assert split_length("nnUNetTrainer_1epoch") == ("nnUNetTrainer", 1)
    assert split_length("nnUNetTrainerNoMirroring") == ("nnUNetTrainerNoMirroring", None)
