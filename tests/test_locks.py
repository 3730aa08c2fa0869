"""One command at a time: who is refused, and whose lock is taken over."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from nnunetv2_meddino import locks
from nnunetv2_meddino.errors import BusyError
from nnunetv2_meddino.locks import NAME, Holder, locked
from tests.processes import LIMIT_S, until

HOLDS = """
import signal, sys
from pathlib import Path
from nnunetv2_meddino.locks import locked
with locked(Path(sys.argv[1])):
    Path(sys.argv[1], "held").touch()
    signal.pause()
"""


@pytest.fixture(autouse=True)
def outside_of_slurm(monkeypatch):
    for name in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)

    def waits(seconds: float) -> None:
        raise AssertionError("it waits")

    monkeypatch.setattr(locks, "sleep", waits)


def left_by(folder: Path, holder: Holder, *, age_s: float = 0) -> None:
    """Write the lock of another command, last touched a while ago."""
    path = folder / NAME
    path.write_text(json.dumps(asdict(holder)))
    touched = path.stat().st_mtime - age_s
    os.utime(path, (touched, touched))


def elsewhere(**changes: object) -> Holder:
    return replace(Holder.this_process(), **{"token": "other", "host": "node7", "machine": "another"} | changes)


def test_the_lock_is_there_meanwhile_and_says_who_holds_it(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/meddino", "demo", "--work-dir", "my demo"])
    with locked(tmp_path / "new" / "folder"):
        content = json.loads((tmp_path / "new" / "folder" / NAME).read_text())
        assert content["command"] == "meddino demo --work-dir 'my demo'"
        assert (content["host"], content["pid"]) == (socket.gethostname(), os.getpid())
    assert list((tmp_path / "new" / "folder").iterdir()) == []


def test_a_second_command_is_told_who_works_there(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLDS, tmp_path]) as holder:
        try:
            until((tmp_path / "held").exists)
            with pytest.raises(BusyError) as caught, locked(tmp_path):
                pass
            message = str(caught.value)
            assert f"(process {holder.pid} on {socket.gethostname()}, since 20" in message
            assert message.endswith(f"Only if it is certainly dead, delete {tmp_path / NAME}")
        finally:
            holder.kill()
            holder.wait(LIMIT_S)


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path, caplog):
    with subprocess.Popen([sys.executable, "-c", HOLDS, tmp_path]) as holder:
        until((tmp_path / "held").exists)
        holder.kill()
        until(lambda: Path(f"/proc/{holder.pid}/stat").read_text().split()[2] == "Z")
        with locked(tmp_path):  # not even waited for by its parent yet
            assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()
    assert "has died, and is taken over" in caplog.text


def test_a_new_process_of_an_old_id_is_another_one(tmp_path):
    left_by(tmp_path, replace(Holder.this_process(), started="1"))
    with locked(tmp_path):
        pass
    left_by(tmp_path, Holder.this_process())
    with pytest.raises(BusyError), locked(tmp_path):
        pass


@pytest.mark.parametrize(("job", "restarts", "dead"), [("7", "1", True), ("7", "0", False), ("8", "1", False)])
def test_a_job_that_was_queued_again_goes_on_at_once_on_another_machine(tmp_path, monkeypatch, job, restarts, dead):
    left_by(tmp_path, elsewhere(job="7"))
    monkeypatch.setenv("SLURM_JOB_ID", job)
    monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)
    if dead:
        with locked(tmp_path):
            assert json.loads((tmp_path / NAME).read_text())["job"] == "7"
        return
    with pytest.raises(AssertionError, match="it waits"), locked(tmp_path):
        pass


def test_a_lock_of_another_machine_that_is_not_touched_any_more_is_taken_over(tmp_path, caplog):
    left_by(tmp_path, elsewhere(), age_s=locks.DEAD_S + 1)
    with locked(tmp_path):
        pass
    (tmp_path / NAME).touch()  # by a command that died before it could write who it is
    os.utime(tmp_path / NAME, (0, 0))
    with locked(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []
    assert "of unknown origin" in caplog.text


def test_a_holder_on_another_machine_is_given_time_for_a_sign_of_life(tmp_path, monkeypatch, caplog):
    left_by(tmp_path, elsewhere(), age_s=20)
    monkeypatch.setattr(locks, "sleep", lambda seconds: os.utime(tmp_path / NAME))
    with pytest.raises(BusyError, match="node7"), locked(tmp_path):
        pass
    assert "Waiting for a sign of life, up to 280 s" in caplog.text


def test_a_lock_that_is_given_up_meanwhile_is_taken(tmp_path, monkeypatch):
    left_by(tmp_path, elsewhere())
    monkeypatch.setattr(locks, "sleep", lambda seconds: (tmp_path / NAME).unlink())
    with locked(tmp_path):
        assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()


def test_of_two_that_take_over_a_dead_lock_the_second_leaves_the_first_ones(tmp_path, monkeypatch):
    """The second has seen the dead lock; before it can remove it, the first has put its own there."""
    left_by(tmp_path, replace(Holder.this_process(), started="1", token="dead"))
    now_s = locks._now_s

    def meanwhile(path: Path) -> float:
        left_by(tmp_path, replace(Holder.this_process(), token="first"))
        return now_s(path)

    monkeypatch.setattr(locks, "_now_s", meanwhile)
    with pytest.raises(BusyError), locked(tmp_path):
        pass
    assert json.loads((tmp_path / NAME).read_text())["token"] == "first"
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_the_holder_touches_its_lock_and_no_other(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(locks, "BEAT_S", 0.01)
    path = tmp_path / NAME
    with locked(tmp_path):
        os.utime(path, (0, 0))
        until(lambda: path.stat().st_mtime > 0)
        left_by(tmp_path, elsewhere())
        until(lambda: "no longer held by this command" in caplog.text)
    assert json.loads(path.read_text())["token"] == "other"


def test_a_folder_that_cannot_be_written_to_is_an_error_of_the_system(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError), locked(tmp_path / "file" / "folder"):
        pass
