"""Where a trainer's batches come from: one switch, kept in the checkpoint, exact on resume and over several ranks."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from batchgenerators.utilities.file_and_folder_operations import load_pickle, write_pickle
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader

from nnunetv2_meddino.dataloading.device_augmentation import BoxBatches
from nnunetv2_meddino.dataloading.loader import BatchLoader
from nnunetv2_meddino.errors import ConfigurationError, TrainingError
from nnunetv2_meddino.trainers.meddinov3 import MedDINOv3Trainer
from nnunetv2_meddino.trainers.training_input import choose_loader
from tests.nnunet import make_trainer

SIZE = [40, 32]


@pytest.fixture(autouse=True)
def random_tiny(nnunet_home, monkeypatch):
    monkeypatch.setenv("MEDDINO_WEIGHTS", "none")
    monkeypatch.setenv("MEDDINO_BACKBONE", "tiny")


@pytest.fixture
def whole_slice(monkeypatch):
    monkeypatch.setenv("MEDDINO_LOADER", "whole_slice")


@pytest.fixture
def on_device(whole_slice, monkeypatch):
    monkeypatch.setenv("MEDDINO_AUGMENT", "device")


def short_trainer(home: Path, *, epochs: int = 1, **plans_changes):
    trainer = make_trainer(home, **{"patch_size": SIZE, "batch_size": 3, **plans_changes})
    trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = epochs, 2, 2
    return trainer


def note_batches(trainer) -> list[tuple[str, dict]]:
    """Note every batch that the trainer is given."""
    given: list[tuple[str, dict]] = []
    steps = {"train_step": trainer.train_step, "validation_step": trainer.validation_step}
    for name in steps:

        def noting(batch, name=name, step=steps[name]):
            given.append((name, {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in batch.items()}))
            return step(batch)

        setattr(trainer, name, noting)
    return given


def assert_same(first: list, second: list) -> None:
    assert len(first) == len(second) > 0
    for (a_name, a), (b_name, b) in zip(first, second, strict=True):
        assert (a_name, a["keys"]) == (b_name, b["keys"])
        assert torch.equal(a["data"], b["data"])
        assert torch.equal(a["target"], b["target"])


def kept_loader(trainer, name: str = "checkpoint_final.pth") -> dict:
    checkpoint = torch.load(Path(trainer.output_folder) / name, weights_only=False)
    return checkpoint["init_args"]["meddino"]["loader"]


@pytest.mark.parametrize("loader", ["stock", "whole_slice"])
@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_training_with_either_loader_says_which_it_was(nnunet_home, monkeypatch, loader, workers):
    monkeypatch.setenv("MEDDINO_LOADER", loader)
    monkeypatch.setenv("nnUNet_n_proc_DA", workers)
    trainer = short_trainer(nnunet_home)
    given = note_batches(trainer)
    trainer.run_training()
    assert [name for name, _ in given] == ["train_step"] * 2 + ["validation_step"] * 2
    for _, batch in given:
        assert batch["data"].shape == (3, 1, *SIZE)
        assert batch["target"].shape == (3, 1, *SIZE)
    assert isinstance(trainer.dataloader_train, BatchLoader) == (loader == "whole_slice")
    assert kept_loader(trainer)["name"] == loader
    assert f"Loader: {loader}" in Path(trainer.log_file).read_text()
    if loader == "whole_slice":
        assert (trainer.dataloader_train._iterator, trainer.dataloader_val._iterator) == (None, None)


def test_nnunets_loader_is_the_default_and_a_trainer_may_choose(nnunet_home, monkeypatch):
    trainer = short_trainer(nnunet_home)
    trainer.on_train_start()
    assert isinstance(trainer.dataloader_train.data_loader, nnUNetDataLoader)
    assert trainer.my_init_kwargs["meddino"]["loader"] == {"name": "stock"}
    monkeypatch.setattr(MedDINOv3Trainer, "loader", "whole_slice")
    trainer = short_trainer(nnunet_home)
    trainer.on_train_start()
    assert isinstance(trainer.dataloader_train, BatchLoader)
    monkeypatch.setenv("MEDDINO_LOADER", "stock")
    trainer = short_trainer(nnunet_home)
    trainer.on_train_start()
    assert not isinstance(trainer.dataloader_train, BatchLoader)


def test_an_unknown_loader_is_refused(nnunet_home, monkeypatch):
    monkeypatch.setenv("MEDDINO_LOADER", "whole-slice")
    with pytest.raises(ConfigurationError, match="MEDDINO_LOADER is 'whole-slice'; it must be one of stock, whole_sl"):
        short_trainer(nnunet_home).on_train_start()
    monkeypatch.delenv("MEDDINO_LOADER")
    monkeypatch.setattr(MedDINOv3Trainer, "loader", "fast")
    with pytest.raises(ConfigurationError, match="loader of this trainer is 'fast'"):
        short_trainer(nnunet_home).on_train_start()


@pytest.mark.parametrize("workers", ["0", "1"])
@pytest.mark.parametrize("augmentation", ["worker", "device"])
def test_a_resumed_training_is_given_what_it_would_have_been_given(
    nnunet_home, monkeypatch, whole_slice, augmentation, workers
):
    monkeypatch.setenv("nnUNet_n_proc_DA", workers)
    monkeypatch.setenv("MEDDINO_AUGMENT", augmentation)
    torch.manual_seed(8)
    straight = short_trainer(nnunet_home, epochs=3)
    expected = note_batches(straight)
    straight.run_training()
    assert straight.my_init_kwargs["meddino"]["loader"]["seed"] == 8

    torch.manual_seed(8)
    begun = short_trainer(nnunet_home, epochs=1)
    given = note_batches(begun)
    begun.run_training()
    torch.manual_seed(1234)
    monkeypatch.delenv("MEDDINO_LOADER")  # as a job script that forgets them
    monkeypatch.delenv("MEDDINO_AUGMENT")
    resumed = short_trainer(nnunet_home, epochs=3)
    resumed.load_checkpoint(str(Path(begun.output_folder) / "checkpoint_final.pth"))
    given_later = note_batches(resumed)
    resumed.run_training()
    assert_same(given + given_later, expected)
    assert kept_loader(resumed) == {"name": "whole_slice", "seed": 8, "augmentation": augmentation}


def test_another_loader_is_refused_on_resume_and_a_checkpoint_that_names_none_is_stock(nnunet_home, monkeypatch):
    trainer = short_trainer(nnunet_home)
    trainer.run_training()
    path = Path(trainer.output_folder) / "checkpoint_final.pth"
    content = torch.load(path, weights_only=False)
    del content["init_args"]["meddino"]["loader"]
    torch.save(content, path)
    monkeypatch.setenv("MEDDINO_LOADER", "whole_slice")
    resumed = short_trainer(nnunet_home)
    resumed.load_checkpoint(str(path))  # as for --val, which draws no batches
    with pytest.raises(ConfigurationError, match="begun with the loader stock, and MEDDINO_LOADER is whole_slice"):
        resumed.on_train_start()
    monkeypatch.delenv("MEDDINO_LOADER")
    monkeypatch.setattr(MedDINOv3Trainer, "loader", "whole_slice")
    resumed = short_trainer(nnunet_home)
    resumed.load_checkpoint(str(path))
    resumed.on_train_start()
    assert not isinstance(resumed.dataloader_train, BatchLoader)


def test_a_training_that_augments_on_the_device_is_given_what_workers_would_make_and_says_so(
    nnunet_home, monkeypatch, on_device
):
    given = {}
    for augmentation in ("device", "worker"):
        monkeypatch.setenv("MEDDINO_AUGMENT", augmentation)
        torch.manual_seed(8)
        trainer = short_trainer(nnunet_home)
        given[augmentation] = note_batches(trainer)
        trainer.run_training()
        assert kept_loader(trainer) == {"name": "whole_slice", "seed": 8, "augmentation": augmentation}
        assert f"Loader: whole_slice, seed 8, augmentation {augmentation}" in Path(trainer.log_file).read_text()
        assert isinstance(trainer.dataloader_train.batches, BoxBatches) == (augmentation == "device")
        assert not isinstance(trainer.dataloader_val.batches, BoxBatches)
    assert len(given["device"]) == 4
    rounded = []
    for (step, batch), (its_step, its) in zip(given["device"], given["worker"], strict=True):
        assert (step, batch["keys"]) == (its_step, its["keys"])
        assert (batch["target"] != its["target"]).float().mean() < 1e-3
        torch.testing.assert_close(batch["data"], its["data"], rtol=0, atol=1e-3)
        rounded.append(not torch.equal(batch["data"], its["data"]))
    assert any(rounded), "it was not augmented by torch"


def test_augmentation_in_an_unknown_place_or_by_the_stock_loader_is_refused(nnunet_home, monkeypatch):
    monkeypatch.setenv("MEDDINO_AUGMENT", "device")
    with pytest.raises(ConfigurationError, match="MEDDINO_AUGMENT is device, .* Set MEDDINO_LOADER=whole_slice"):
        short_trainer(nnunet_home).on_train_start()
    monkeypatch.setenv("MEDDINO_AUGMENT", "gpu")
    with pytest.raises(ConfigurationError, match="MEDDINO_AUGMENT is 'gpu'; it must be one of worker, device"):
        short_trainer(nnunet_home).on_train_start()
    monkeypatch.setenv("MEDDINO_AUGMENT", "worker")
    trainer = short_trainer(nnunet_home)
    trainer.on_train_start()
    assert trainer.my_init_kwargs["meddino"]["loader"] == {"name": "stock"}


@pytest.mark.parametrize(
    ("kept", "wanted", "begun"),
    [
        ({"name": "whole_slice", "seed": 1, "augmentation": "worker"}, "device", "worker"),
        ({"name": "whole_slice", "seed": 1, "augmentation": "device"}, "worker", "device"),
        ({"name": "whole_slice", "seed": 1}, "device", "worker"),  # begun before there was a choice
        ({"name": "stock"}, "device", "worker"),
    ],
)
def test_another_augmentation_is_refused_on_resume(monkeypatch, kept, wanted, begun):
    monkeypatch.setenv("MEDDINO_AUGMENT", wanted)
    with pytest.raises(ConfigurationError, match=f"with the augmentation {begun}, and MEDDINO_AUGMENT is {wanted}"):
        choose_loader("stock", kept)
    monkeypatch.setenv("MEDDINO_AUGMENT", begun)
    assert choose_loader("stock", kept) == kept
    monkeypatch.delenv("MEDDINO_AUGMENT")
    assert choose_loader("stock", kept) == kept


def test_trainings_differ_unless_they_are_seeded(nnunet_home, whole_slice):
    seeds = []
    for _ in range(2):
        torch.seed()
        trainer = short_trainer(nnunet_home)
        trainer.on_train_start()
        seeds.append(trainer.my_init_kwargs["meddino"]["loader"]["seed"])
    assert seeds[0] != seeds[1]


def test_masks_regions_and_mirroring_are_those_of_the_plans_and_the_trainer(nnunet_home, whole_slice, monkeypatch):
    monkeypatch.setattr(
        MedDINOv3Trainer,
        "configure_rotation_dummyDA_mirroring_and_inital_patch_size",
        lambda self: ((-0.1, 0.2), False, SIZE, None),
    )
    trainer = short_trainer(nnunet_home, use_mask_for_norm=[True])
    trainer.on_train_start()
    training, validation = (loader.batches.settings for loader in trainer.get_dataloaders())
    assert training.masked == validation.masked == (True,)
    assert (training.augmentation.rotation_rad, training.augmentation.mirror_axes) == ((-0.1, 0.2), ())
    assert validation.augmentation is None
    assert training.regions is None


@pytest.mark.parametrize("attribute", ["is_cascaded", "enable_deep_supervision"])
def test_what_it_cannot_make_is_refused(nnunet_home, whole_slice, attribute):
    trainer = short_trainer(nnunet_home)
    trainer.initialize()
    setattr(trainer, attribute, True)
    with pytest.raises(ConfigurationError, match="previous stage nor .* MEDDINO_LOADER=stock"):
        trainer.get_dataloaders()


def test_a_killed_process_of_the_loader_ends_the_training_with_advice(nnunet_home, whole_slice, monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    trainer = short_trainer(nnunet_home)
    step = trainer.train_step

    def killing(batch):
        os.kill(trainer.dataloader_train._iterator._workers[0].pid, 9)
        return step(batch)

    trainer.train_step = killing
    trainer.num_iterations_per_epoch = 20
    with pytest.raises(TrainingError, match="nnUNet_n_proc_DA"):
        trainer.run_training()


def rank_batches(rank: int, home: Path, port: int) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.manual_seed(rank + 5)  # the seed is that of rank 0
    trainer = make_trainer(home, patch_size=SIZE, batch_size=4)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    trainer.is_ddp, trainer.local_rank = True, rank
    trainer._set_batch_size_and_oversample()
    trainer.is_cascaded, trainer.num_input_channels = False, 1
    loaders = trainer.get_dataloaders()
    torch.save([next(loader) for loader in loaders for _ in range(3)], home / f"batches{rank}.pth")
    dist.destroy_process_group()


def test_two_processes_make_one_batch(nnunet_home, whole_slice):
    from nnunetv2.run.run_training import find_free_network_port

    mp.spawn(rank_batches, args=(nnunet_home, find_free_network_port()), nprocs=2)
    first, second = (torch.load(nnunet_home / f"batches{rank}.pth", weights_only=False) for rank in (0, 1))
    torch.manual_seed(5)
    single = make_trainer(nnunet_home, patch_size=SIZE, batch_size=4)
    single.initialize()
    expected = [next(loader) for loader in single.get_dataloaders() for _ in range(3)]
    for a, b, whole in zip(first, second, expected, strict=True):
        assert a["keys"] + b["keys"] == whole["keys"]
        assert torch.equal(torch.cat((a["data"], b["data"])), whole["data"])
        assert torch.equal(torch.cat((a["target"], b["target"])), whole["target"])


def test_regions_and_the_ignore_label_reach_the_loss_as_nnunet_makes_them(nnunet_home, whole_slice, monkeypatch):
    preprocessed = nnunet_home / "preprocessed"
    shared = preprocessed.resolve()
    preprocessed.unlink()
    shutil.copytree(shared, preprocessed)
    file = preprocessed / "Dataset998_Discs/dataset.json"
    for case in (file.parent / "nnUNetPlans_2d").glob("*.pkl"):  # as preprocessing with an ignore label leaves it
        properties = load_pickle(str(case))
        properties["class_locations"][(-1, 0, 1, 2)] = properties["class_locations"][1]
        write_pickle(properties, str(case))
    labels = {"background": 0, "disc": [1, 2], "core": 2, "ignore": 3}
    dataset = json.loads(file.read_text()) | {"labels": labels, "regions_class_order": [1, 2]}
    given, loaders = [], []
    for loader, augmentation in (("whole_slice", "worker"), ("whole_slice", "device"), ("stock", "worker")):
        monkeypatch.setenv("MEDDINO_LOADER", loader)
        monkeypatch.setenv("MEDDINO_AUGMENT", augmentation)
        plans = json.loads(file.with_name("nnUNetPlans.json").read_text()) | {"continue_training": False}
        plans["configurations"]["2d"].update(patch_size=SIZE, batch_size=3)
        trainer = MedDINOv3Trainer(plans, "2d", 0, dataset, torch.device("cpu"))
        trainer.on_train_start()
        loaders.append(trainer.dataloader_train)
        given.append(next(trainer.dataloader_train))
        trainer.on_train_epoch_start()
        assert math.isfinite(trainer.train_step(given[-1])["loss"])
    assert loaders[0].batches.draws.annotated == loaders[2].data_loader.annotated_classes_key
    assert [batch["target"].dtype for batch in given] == [torch.bool] * 3
    assert [batch["target"].shape for batch in given] == [(3, 3, *SIZE)] * 3
