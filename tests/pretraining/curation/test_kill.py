"""Curation killed with SIGKILL at any moment and run again makes the corpus of an undisturbed run."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import PROJECT
from tests.forked import CONTEXT
from tests.pretraining.curation import killing
from tests.pretraining.curation.folders import corpus_bytes, phantom, write_volume
from tests.processes import until

KILLS = 20


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    shape = (6, 48, 48)
    for seed in range(6):
        write_volume(phantom(seed, shape), root / "one" / f"case_{seed}.nii.gz")
    write_volume(phantom(0, shape), root / "two" / "copy.nrrd")
    write_volume(phantom(9, shape), root / "two" / "own.mha")
    (root / "two" / "bad.nii.gz").write_text("bad")
    return root


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory) -> dict[str, bytes]:
    corpus = tmp_path_factory.mktemp("undisturbed") / "corpus"
    killing.curate(data, corpus)
    return corpus_bytes(corpus)


def _start(data: Path, corpus: Path) -> multiprocessing.process.BaseProcess:
    process = CONTEXT.Process(target=killing.curate, args=(data, corpus))
    process.start()
    return process


def _check_whole_files(corpus: Path, undisturbed: dict[str, bytes]) -> None:
    """Whatever bears a final name is complete."""
    for name, content in corpus_bytes(corpus).items():
        if not name.endswith(".partial"):
            assert content == undisturbed[name], name
    for record in (corpus / "parts").rglob("*.json"):
        if not record.name.endswith(".partial"):
            json.loads(record.read_text())


@pytest.mark.soak
def test_twenty_kills_at_random_moments(data, undisturbed, tmp_path):
    corpus = tmp_path / "corpus"
    _start(data, tmp_path / "first").join()  # with the start of the server
    began = time.perf_counter()
    process = _start(data, corpus)
    process.join()
    whole_s = time.perf_counter() - began
    assert corpus_bytes(corpus) == undisturbed
    rng = random.Random(0)
    kills, finished = 0, 0
    while kills < KILLS and finished < 40:
        if (corpus / "corpus.json").exists():
            shutil.rmtree(corpus)
        process = _start(data, corpus)
        process.join(rng.uniform(0.02, 0.9) * whole_s)
        process.kill()
        process.join()
        if process.exitcode == -signal.SIGKILL:
            kills += 1
        else:
            finished += 1
        if corpus.exists():
            _check_whole_files(corpus, undisturbed)
    assert kills == KILLS
    killing.curate(data, corpus)
    assert corpus_bytes(corpus) == undisturbed


def test_a_kill_before_every_single_file_operation(tmp_path):
    data = tmp_path / "data"
    shape = (4, 48, 48)
    write_volume(phantom(0, shape), data / "one" / "a.nii.gz")
    write_volume(phantom(0, shape), data / "two" / "b.nii.gz")
    (data / "two" / "bad.nii.gz").write_text("bad")
    corpus = tmp_path / "corpus"

    def killed(last: int) -> bool:
        process = CONTEXT.Process(target=killing.curate_until, args=(data, corpus, last))
        process.start()
        process.join()
        return process.exitcode == -signal.SIGKILL

    assert not killed(-1)
    expected = corpus_bytes(corpus)
    total = int((tmp_path / "operations").read_text())
    assert total > 30
    for last in range(1, total + 1):
        shutil.rmtree(corpus)
        assert killed(last)
        _check_whole_files(corpus, expected)
        killing.curate(data, corpus)
        assert corpus_bytes(corpus) == expected, f"killed before operation {last}"
        assert not list(corpus.rglob("*.partial"))


def test_a_killed_parent_takes_its_workers_with_it(data, undisturbed, tmp_path):
    corpus = tmp_path / "corpus"
    command = [sys.executable, "-m", killing.__name__, str(data), str(corpus)]
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    while not list((corpus / "parts" / "records").rglob("[!.]*.json")) or not _members(process.pid):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    until(lambda: not _members(process.pid))
    killing.curate(data, corpus)
    assert corpus_bytes(corpus) == undisturbed


def _members(session: int) -> list[int]:
    """Return the living processes of a session, but its leader."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != session:
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(entry.name))
    return found
