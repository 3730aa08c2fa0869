import itertools
import os
import shutil
import signal

import pytest
import torch

from benchmarks.corpora import write_manifest
from nnunetv2_meddino.errors import ConfigurationError, DataError
from pretraining.corpus.dataset import SliceDataset
from pretraining.corpus.loader import slice_loader
from tests.pretraining.corpora import flip_silent_bit, write_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder)
    return folder


def taken(corpus, count, **settings):
    """Batches as plain values: the ring is overwritten."""
    batches = itertools.islice(slice_loader(corpus, **{"batch_size": 3, "seed": 1} | settings), count)
    return [(step, b.indices.tolist(), b.global_index.tolist(), b.pixels.clone()) for step, b in batches]


def assert_same(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a[:3] == b[:3]
        assert torch.equal(a[3], b[3])


def test_a_batch_holds_the_slices_it_names(corpus):
    dataset = SliceDataset(corpus)
    for step, rows, places, pixels in taken(corpus, 9):
        assert torch.equal(pixels, dataset.__getitems__(rows).pixels), step
        assert places == [0, 1, 2]


@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_workers_gives_the_same_batches_in_the_same_order(corpus, workers):
    # more batches than the ring has slots, so that slots are used again
    assert_same(taken(corpus, 15, workers=workers), taken(corpus, 15))


def test_two_ranks_with_workers_share_the_global_batch(corpus):
    whole = taken(corpus, 6, batch_size=4)
    halves = [taken(corpus, 6, batch_size=2, rank=rank, world_size=2, workers=1) for rank in (0, 1)]
    for (step, rows, _, pixels), first, second in zip(whole, *halves, strict=True):
        assert (first[0], first[1] + second[1]) == (step, rows)
        assert torch.equal(torch.cat((first[3], second[3])), pixels)
        assert second[2] == [2, 3]


def test_resuming_gives_the_batches_of_the_undisturbed_run(corpus):
    weights = {"alpha": 1.0, "beta": 3.0}
    assert_same(taken(corpus, 3, start_step=5, weights=weights, workers=1), taken(corpus, 8, weights=weights)[5:])


def test_weights_leave_out_sources_that_they_do_not_name(corpus):
    rows = {row for _, batch, _, _ in taken(corpus, 10, weights={"beta": 1}) for row in batch}
    assert rows == {6, 7, 8, 9, 10}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_outlives_the_next_one(corpus, workers):
    batches = slice_loader(corpus, batch_size=3, seed=1, workers=workers)
    previous = copy = None
    for _, batch in itertools.islice(batches, 12):
        if previous is not None:
            assert torch.equal(previous, copy)
        previous, copy = batch.pixels, batch.pixels.clone()


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_file_is_one_clear_error_from_any_process(tmp_path, workers):
    write_corpus(tmp_path)
    path = tmp_path / "volumes" / "beta" / "b1.b2nd"
    path.unlink()
    with pytest.raises(DataError) as error:
        taken(tmp_path, 20, workers=workers)
    assert str(path) in str(error.value)
    assert "does not exist" in str(error.value)
    assert "Traceback" not in str(error.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_flipped_bit_is_one_clear_error_from_any_process(tmp_path, workers):
    write_corpus(tmp_path)
    path = tmp_path / "volumes" / "beta" / "b1.b2nd"
    flip_silent_bit(path, 2)
    with pytest.raises(DataError, match=f"slice 3 of {path}.*checksum") as error:
        taken(tmp_path, 20, workers=workers)
    assert "Traceback" not in str(error.value)


class _Dying(SliceDataset):
    def decode(self, rows, pixels):
        if torch.utils.data.get_worker_info().id == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        super().decode(rows, pixels)


def test_a_killed_worker_is_a_clear_error(corpus):
    with pytest.raises(DataError, match=r"killed|exited unexpectedly") as error:
        taken(_Dying(corpus), 20, workers=2)
    assert str(corpus) in str(error.value)


def test_too_little_shared_memory_is_an_error_before_the_kernel_kills_a_worker(corpus, monkeypatch):
    full = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    with pytest.raises(DataError, match="shared memory"):
        slice_loader(corpus, batch_size=3, seed=1, workers=1)
    slice_loader(corpus, batch_size=3, seed=1)


def test_a_corpus_of_nothing_but_air_is_an_error(tmp_path):
    write_manifest(tmp_path, [("alpha", "a", (2, 16, 16))], {(0, 0): "empty", (0, 1): "empty"})
    with pytest.raises(DataError, match="no usable slices"):
        slice_loader(tmp_path, batch_size=1, seed=0)


def test_mistakes_are_reported_before_the_first_batch(corpus):
    with pytest.raises(ConfigurationError, match="seed"):
        slice_loader(corpus, batch_size=1, seed=-1)
    with pytest.raises(ConfigurationError, match="rank 2 of 2"):
        slice_loader(corpus, batch_size=1, seed=0, rank=2, world_size=2)
