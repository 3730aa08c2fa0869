"""Batches of whole slices: from the right places, in the same order by any number of workers and ranks."""

from __future__ import annotations

import itertools
import os
import pickle
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.utils.seg_to_regions import ConvertSegmentationToRegionsTransform
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader

from nnunetv2_meddino.dataloading.augmentation import AugmentationSettings
from nnunetv2_meddino.dataloading.cases import PreprocessedCases
from nnunetv2_meddino.dataloading.draws import Draws, Stream
from nnunetv2_meddino.dataloading.loader import BatchLoader, SampleSettings, SliceBatches
from nnunetv2_meddino.errors import DataError, TrainingError
from tests.conftest import PROJECT
from tests.dataloading.datasets import CHANNELS, SHAPE, volume, write_dataset

AUGMENTED = AugmentationSettings(CHANNELS, (-np.pi, np.pi))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("dataset"))


def batches(
    dataset, *, size=(32, 40), batch_size=4, places=None, augmentation=None, masked=(), regions=None, forced=1 / 3
):
    cases = PreprocessedCases(dataset)
    draws = Draws(cases, size, batch_size=4, forced=forced, seed=9, stream=Stream.TRAINING)
    return SliceBatches(cases, draws, SampleSettings(augmentation, masked, regions), places or range(4))


def taken(dataset, count, *, first_step=0, workers=0, **settings):
    loader = BatchLoader(batches(dataset, **settings), first_step=first_step, workers=workers, pin_memory=False)
    return list(itertools.islice(loader, count))


def assert_same(first, second):
    assert len(first) == len(second) > 0
    for a, b in zip(first, second, strict=True):
        assert a["keys"] == b["keys"]
        assert torch.equal(a["data"], b["data"])
        assert torch.equal(a["target"], b["target"])


def test_a_sample_without_augmentation_is_the_box_that_was_drawn(dataset):
    source = batches(dataset)
    for step in range(10):
        batch = source.batch(step)
        assert batch["data"].shape == (4, CHANNELS, 32, 40)
        assert (batch["data"].dtype, batch["target"].dtype) == (torch.float32, torch.int16)
        for place, (data, target) in enumerate(zip(batch["data"], batch["target"], strict=True)):
            draw = source.draws.draw(step, place)
            image, labels = volume(int(draw.case[-1]))
            y, x = draw.corner
            box = (draw.slice_index, slice(y, y + 32), slice(x, x + 40))
            np.testing.assert_array_equal(data, image[(slice(None), *box)])
            np.testing.assert_array_equal(target[0], labels[(0, *box)].clip(0))
            assert draw.label is None or draw.label in target


def padding(targets, outside) -> np.ndarray:
    return np.array([float((target == outside).float().mean()) for target in targets])


def test_samples_as_large_as_the_slice_hold_no_padding_where_those_of_nnunet_do(dataset):
    """The image is nowhere 0 inside the slice."""
    ours = [b["data"][:, :1] for b in taken(dataset, 60, size=SHAPE[1:], forced=1)]
    labels = SimpleNamespace(all_labels=[0, 1, 2], has_ignore_label=False)
    np.random.seed(0)
    stock_loader = nnUNetDataLoader(dataset, 4, SHAPE[1:], SHAPE[1:], labels, oversample_foreground_percent=1.0)
    stock = [next(stock_loader)["data"][:, :1] for _ in range(60)]
    assert padding(torch.cat(ours), 0).max() == 0
    assert padding(torch.cat(stock), 0).mean() > 0.05


def test_what_a_smaller_slice_lacks_is_zero_all_around(dataset):
    (batch,) = taken(dataset, 1, size=(60, 50))
    for data, target in zip(batch["data"], batch["target"], strict=True):
        inside = data[0, 10:50, 1:49]
        assert inside.min() > 0
        assert data[0].count_nonzero() == inside.numel()
        assert target.min() >= 0


def test_an_augmented_sample_reads_all_that_it_shows(dataset):
    """The box that is read from the file and the whole slice give the same samples."""

    class WholeSlices(SliceBatches):
        def _read(self, draw, matrix):
            rows, columns = self.cases.shape(draw.case)[1:]
            return *self.cases.read(draw.case, draw.slice_index, (0, rows), (0, columns)), matrix

    read = batches(dataset, augmentation=AUGMENTED, size=(20, 24))
    whole = WholeSlices(read.cases, read.draws, read.settings, read.places)
    for step in range(30):
        a, b = read.batch(step), whole.batch(step)
        assert torch.equal(a["target"], b["target"])
        torch.testing.assert_close(a["data"], b["data"], rtol=1e-4, atol=1)  # of values up to 2e6


def test_regions_are_those_of_nnunet(dataset):
    regions = ((1, 2), 2, (3,))
    transform = ConvertSegmentationToRegionsTransform(regions)
    (labels,), (made,) = taken(dataset, 1), taken(dataset, 1, regions=regions)
    expected = torch.stack([transform(segmentation=target)["segmentation"] for target in labels["target"]])
    assert made["target"].dtype == torch.bool
    assert torch.equal(made["target"], expected)


@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_workers_gives_the_same_batches_in_the_same_order(dataset, workers):
    expected = taken(dataset, 9, augmentation=AUGMENTED)
    assert_same(taken(dataset, 9, augmentation=AUGMENTED, workers=workers), expected)


def test_resuming_gives_the_batches_of_the_undisturbed_training(dataset):
    expected = taken(dataset, 8, augmentation=AUGMENTED)[5:]
    assert_same(taken(dataset, 3, augmentation=AUGMENTED, first_step=5, workers=1), expected)


def test_two_ranks_share_the_batch_of_one(dataset):
    whole = taken(dataset, 5, augmentation=AUGMENTED)
    first, second = (taken(dataset, 5, augmentation=AUGMENTED, places=range(r, r + 2)) for r in (0, 2))
    joined = [
        {k: a[k] + b[k] if k == "keys" else torch.cat((a[k], b[k])) for k in a}
        for a, b in zip(first, second, strict=True)
    ]
    assert_same(joined, whole)


def test_the_random_state_of_the_training_is_left_alone(dataset):
    torch.manual_seed(1)
    np.random.seed(1)
    taken(dataset, 3, augmentation=AUGMENTED, workers=1)
    after = torch.rand(3), np.random.rand(3)
    torch.manual_seed(1)
    np.random.seed(1)
    assert torch.equal(after[0], torch.rand(3))
    assert np.array_equal(after[1], np.random.rand(3))


def test_a_killed_worker_is_an_error_that_says_what_to_do(dataset):
    class Dying(SliceBatches):
        def __getitem__(self, step):
            if step == 5:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__getitem__(step)

    made = batches(dataset)
    loader = BatchLoader(
        Dying(made.cases, made.draws, made.settings, made.places), first_step=0, workers=2, pin_memory=False
    )
    with pytest.raises(TrainingError, match="is gone .*nnUNet_n_proc_DA.*--c"):
        list(itertools.islice(loader, 20))


def test_torchs_handler_of_dead_processes_knows_other_loaders_and_not_ours(tmp_path):
    """It raises in the middle of anything: of ours, that would be while the training handles the error or has ended."""
    code = f"""
import os, signal, subprocess
from pathlib import Path
from torch.utils.data import DataLoader
from nnunetv2_meddino.errors import TrainingError
from tests.dataloading.test_loader import BatchLoader, batches, write_dataset
loader = BatchLoader(batches(write_dataset(Path({str(tmp_path)!r}))), first_step=0, workers=1, pin_memory=False)
other = iter(DataLoader(range(100), num_workers=1))
next(loader), next(other)
for worker, name in ((loader._iterator._workers[0], "ours"), (other._workers[0], "other")):
    try:
        os.kill(worker.pid, signal.SIGKILL)
        os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)
        subprocess.run(["true"])  # whose end is a SIGCHLD too
        print(name, "quiet")
    except RuntimeError as error:
        print(name, "is killed by signal" in str(error))
    if name == "ours":
        try:
            for _ in range(20):
                next(loader)
        except TrainingError as error:
            print("told")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PROJECT)
    assert done.stdout.strip().splitlines()[-3:] == ["ours quiet", "told", "other True"], done.stderr
    assert done.returncode == 0


def test_a_worker_killed_between_two_batches_is_an_error_too(dataset):
    loader = BatchLoader(batches(dataset), first_step=0, workers=1, pin_memory=False)
    with pytest.raises(TrainingError):
        next(loader)
        (worker,) = loader._iterator._workers
        os.kill(worker.pid, signal.SIGKILL)
        list(itertools.islice(loader, 20))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_case_is_told_in_one_sentence_by_workers_too(tmp_path, workers):
    dataset = write_dataset(tmp_path, cases=1)
    (tmp_path / "case_0.pkl").write_bytes(b"half")
    with pytest.raises(DataError, match="^The preprocessed case case_0"):
        taken(dataset, 3, workers=workers, forced=0.1)  # the tenth sample is the first that needs the file


def test_too_little_shared_memory_is_an_error_before_the_kernel_kills_a_worker(dataset, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(DataError, match="shared memory"):
        taken(dataset, 1, workers=1)
    taken(dataset, 1)


def test_workers_may_be_spawned_after_files_were_opened(dataset):
    source = batches(dataset, augmentation=AUGMENTED)
    expected = source.batch(3)
    assert_same([pickle.loads(pickle.dumps(source)).batch(3)], [expected])
