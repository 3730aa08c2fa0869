"""Checking a whole corpus, and mending what is damaged."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from nnunetv2_meddino.errors import DataError
from pretraining.corpus.verify import verify_corpus
from tests.pretraining.corpora import flip_silent_bit
from tests.pretraining.curation.folders import corpus_bytes, curated, phantom, write_volume


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for seed in range(3):
        voxels = phantom(seed, (5, 64, 64))
        voxels[4] = (0, -1000, -1024)[seed]  # stored as a mark or as one value, not as voxels
        write_volume(voxels, root / f"case_{seed}.nii.gz")
    return root


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory) -> Path:
    corpus = tmp_path_factory.mktemp("whole") / "corpus"
    curated(corpus, ("one", data))
    return corpus


@pytest.fixture
def corpus(whole, tmp_path) -> Path:
    return shutil.copytree(whole, tmp_path / "corpus")


def _volume(corpus: Path, seed: int) -> Path:
    return corpus / "volumes" / "one" / f"case_{seed}.b2nd"


def test_nothing_is_wrong_with_a_whole_corpus(corpus):
    steps: list[tuple] = []
    assert verify_corpus(corpus, lambda *step: steps.append(step)) == []
    assert steps == [("verifying", done, 3) for done in (1, 2, 3)]


@pytest.mark.parametrize("index", [0, 3])
def test_a_flipped_bit_is_found_in_any_slice(corpus, index):
    flip_silent_bit(_volume(corpus, 1), index)
    (message,) = verify_corpus(corpus)
    assert f"slice {index + 1} of {_volume(corpus, 1)}" in message
    assert "checksum" in message


def test_every_damaged_volume_is_named_once(corpus):
    for index in (1, 3):
        flip_silent_bit(_volume(corpus, 0), index)
    _volume(corpus, 2).unlink()
    first, last = verify_corpus(corpus)
    assert f"slice 2 of {_volume(corpus, 0)}" in first
    assert f"{_volume(corpus, 2)}: the file does not exist" in last


def test_volumes_that_changed_places_are_found(corpus):
    """Both files are whole, and of the shape the manifest says."""
    one, two = _volume(corpus, 0).read_bytes(), _volume(corpus, 1).read_bytes()
    _volume(corpus, 0).write_bytes(two)
    _volume(corpus, 1).write_bytes(one)
    assert len(verify_corpus(corpus)) == 2


def test_a_damaged_volume_is_mended_as_the_message_says(whole, corpus, data):
    before = {seed: _volume(corpus, seed).stat().st_mtime_ns for seed in (0, 2)}
    flip_silent_bit(_volume(corpus, 1), 0)
    _volume(corpus, 1).unlink()
    curated(corpus, ("one", data))
    assert corpus_bytes(corpus) == corpus_bytes(whole)
    assert {seed: _volume(corpus, seed).stat().st_mtime_ns for seed in (0, 2)} == before


def test_a_folder_without_a_corpus_is_an_error(tmp_path):
    with pytest.raises(DataError, match="holds no finished corpus"):
        verify_corpus(tmp_path)
