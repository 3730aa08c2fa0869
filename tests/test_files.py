"""Files are whole or not there, errors name them, and results are not lost."""

from __future__ import annotations

import errno
import os
import resource
import signal
from pathlib import Path

import pytest
import torch

from nnunetv2_meddino.errors import DataError, OutputError, PlanError
from nnunetv2_meddino.files import check_writable, naming, read_json, replacing, write_json, written_or_rescued
from nnunetv2_meddino.weights.files import write_safetensors, write_torch


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "scores.json"
    with replacing(path) as temporary:
        temporary.write_text("first")
        assert not path.exists()
    with pytest.raises(KeyError), replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyError("a fault of the program")
    assert path.read_text() == "first"
    assert list(path.parent.iterdir()) == [path]


def test_a_file_that_must_survive_a_power_cut_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    path, synced = tmp_path / "scores.json", []

    def fsync(descriptor: int) -> None:
        synced.append((os.pread(descriptor, 100, 0), path.exists()))

    monkeypatch.setattr("os.fsync", fsync)
    with replacing(path, fsync=True) as temporary:
        temporary.write_text("scores")
    assert synced == [(b"scores", False)]
    assert path.exists()


def test_an_error_of_a_write_gets_the_name_of_the_file(tmp_path):
    wanted = tmp_path / "scores.json"
    for name in (None, str(tmp_path / ".scores.json.123.tmp")):
        with pytest.raises(OSError) as caught, naming(wanted):
            raise OSError(errno.ENOSPC, "No space left on device", name)
        assert caught.value.filename == str(wanted)
    with pytest.raises(OSError) as caught, naming(wanted):
        (tmp_path / "other" / "file").read_bytes()
    assert caught.value.filename == str(tmp_path / "other" / "file")


@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_torch(path, {"weight": torch.zeros(10_000)}),
        lambda path: write_safetensors(path, {"weight": torch.zeros(10_000)}, {}),
    ],
    ids=["torch", "safetensors"],
)
def test_an_error_of_the_system_that_a_library_wraps_is_one_again(tmp_path, write):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match=r"File too large: '.*/weights'") as caught:
            write(tmp_path / "weights")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert caught.value.errno == errno.EFBIG
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_is_found_before_the_work(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        check_writable(tmp_path / "file" / "out" / "scores.json")
    check_writable(tmp_path / "out" / "scores.json")
    assert list((tmp_path / "out").iterdir()) == []


def test_results_go_to_the_temporary_folder_where_the_wanted_one_fails(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    wanted = tmp_path / "scores.json"

    def write(path: Path) -> None:
        if path == wanted:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        path.write_text("scores")

    with pytest.raises(OutputError) as caught:
        written_or_rescued(write, wanted)
    (rescued,) = (tmp_path / "temporary").rglob("scores.json")
    assert rescued.read_text() == "scores"
    assert str(caught.value) == (
        f"{wanted} cannot be written: No space left on device. Nothing is lost: what was computed is in "
        f"{rescued.parent}; copy it from there."
    )


def test_results_that_can_be_written_nowhere_are_the_first_error(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def write(path: Path) -> None:
        raise OSError(errno.EDQUOT if path.parent == Path("wanted") else errno.ENOSPC, "")

    with pytest.raises(OSError) as caught:
        written_or_rescued(write, Path("wanted") / "scores.json")
    assert caught.value.errno == errno.EDQUOT
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error_type", [DataError, PlanError])
@pytest.mark.parametrize("content", [None, b"", b"{", b"[1, 2]", b"\xff\xfe{}"])
def test_whatever_is_wrong_with_a_json_file_ends_with_the_callers_advice(tmp_path, error_type, content):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error_type) as caught:
        read_json(path, error_type, "Curate it anew.")
    assert str(caught.value).startswith(f"{path} ")
    assert str(caught.value).endswith(" Curate it anew.")
    assert "plan" not in str(caught.value).replace(str(path), "")


def test_json_that_is_written_is_read(tmp_path):
    write_json({"a": [1, {"b": None}]}, tmp_path / "a.json")
    assert read_json(tmp_path / "a.json", DataError, "") == {"a": [1, {"b": None}]}
