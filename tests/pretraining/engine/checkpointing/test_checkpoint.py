"""Checkpoints are whole or not there, return what was saved, and execute nothing when they are read."""

from __future__ import annotations

import json
import logging
import pickle
import random
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from nnunetv2_meddino.errors import CheckpointError
from pretraining.engine.checkpointing import checkpoint
from pretraining.engine.checkpointing.checkpoint import Checkpoints
from pretraining.engine.checkpointing.manifest import file_checksum, read_record, write_record
from pretraining.engine.checkpointing.state import FlatState
from tests.forked import CONTEXT
from tests.pretraining.engine.checkpointing import saving
from tests.pretraining.engine.checkpointing.saving import full_disk, held_writes, state_of
from tests.pretraining.processes import in_processes

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled", "ignore:Detected an existing")

KILLS = 50


def assert_same(found: Any, expected: Any, name: str = "state") -> None:
    assert type(found) is type(expected), name
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), name
        for key in expected:
            assert_same(found[key], expected[key], f"{name}.{key}")
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected), name
        for number, pair in enumerate(zip(found, expected, strict=True)):
            assert_same(*pair, f"{name}.{number}")
    elif isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype and torch.equal(found, expected), name
    else:
        assert found == expected, name


def assert_loads(checkpoints: Checkpoints, step: int) -> None:
    loaded = state_of(0)
    assert checkpoints.load(step, loaded) == {"step": step}
    assert_same(loaded, state_of(step))


def save(checkpoints: Checkpoints, *steps: int) -> None:
    for step in steps:
        checkpoints.save(step, state_of(step), {"step": step})
    checkpoints.wait()


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "checkpoints"


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_state_comes_back_with_all_its_values(folder, asynchronous):
    checkpoints = Checkpoints(folder, asynchronous=asynchronous)
    assert checkpoints.latest() is None
    state = {
        **state_of(1),
        "plain": {"none": None, "flag": True, "word": "räum", "nan": float("inf"), "big": 2**60, "tenth": 0.1},
        "empty": {"dict": {}, "list": [], "tensor": torch.zeros(0, 4)},
        "odd": torch.arange(12).reshape(3, 4).T[1:],
    }
    checkpoints.save(1, state, {"stage": 2, "names": ["a"]})
    if not asynchronous:
        assert (folder / "step_00000001").is_dir()
    target = {**state_of(0), "plain": dict.fromkeys(state["plain"]), "empty": state["empty"], "odd": torch.zeros(3, 3)}
    target["odd"] = torch.zeros(3, 3, dtype=torch.int64)
    weight = target["model"]["blocks.0.weight"]
    assert checkpoints.load(1, target) == {"stage": 2, "names": ["a"]}
    assert_same(target, state)
    assert target["model"]["blocks.0.weight"] is weight, "not loaded in place"


def test_a_part_of_a_state_is_loaded_alone(folder):
    checkpoints = Checkpoints(folder)
    save(checkpoints, 3)
    part = {"model": state_of(0)["model"]}
    checkpoints.load(3, part)
    assert_same(part, {"model": state_of(3)["model"]})


def test_weights_may_change_while_they_are_written(folder):
    checkpoints, state = Checkpoints(folder), state_of(1)
    with held_writes() as gate:
        checkpoints.save(1, state, {"step": 1})
        state["model"]["blocks.0.weight"].zero_()
        state["optimizer"]["state"]["count"].fill_(-1)
        state["optimizer"]["groups"][0]["lr"] = -1
        gate.set()
        checkpoints.wait()
    assert_loads(checkpoints, 1)


def test_the_next_save_waits_for_the_one_before(folder, monkeypatch):
    checkpoints = Checkpoints(folder)
    there_when_copied = []
    staged, wait = FlatState.staged, Checkpoints.wait
    with held_writes() as gate:
        save_first = state_of(1)
        checkpoints.save(1, save_first, {"step": 1})
        monkeypatch.setattr(Checkpoints, "wait", lambda self: (gate.set(), wait(self)))
        monkeypatch.setattr(
            FlatState, "staged", lambda self: (there_when_copied.extend(folder.glob("step_*")), staged(self))[1]
        )
        checkpoints.save(2, state_of(2), {"step": 2})
        gate.set()
    assert [path.name for path in there_when_copied] == ["step_00000001"]
    assert checkpoints.steps() == [1, 2]


def test_a_failed_save_is_told_at_the_next_and_does_not_last(folder, monkeypatch):
    checkpoints = Checkpoints(folder)
    with monkeypatch.context() as patched:
        patched.setattr(dcp.FileSystemWriter, "write_data", lambda *_: 1 / 0)
        checkpoints.save(1, state_of(1), {"step": 1})
        with pytest.raises(CheckpointError, match=r"step 1 could not be saved.*division"):
            checkpoints.save(2, state_of(2), {"step": 2})
    assert not list(folder.iterdir())
    save(checkpoints, 1)
    assert_loads(checkpoints, 1)


def test_the_newest_and_every_tenth_are_kept(folder):
    checkpoints = Checkpoints(folder, keep_last=2, keep_every=10)
    save(checkpoints, 5, 10, 15, 20, 25, 30, 31)
    assert checkpoints.steps() == [10, 20, 30, 31]
    assert sorted(path.name for path in folder.iterdir()) == [f"step_{step:08d}" for step in (10, 20, 30, 31)]
    for step in (10, 31):
        assert_loads(checkpoints, step)


def test_a_step_is_not_saved_twice_and_not_before_a_later_one(folder, caplog):
    checkpoints = Checkpoints(folder)
    save(checkpoints, 4)
    before = file_checksum(folder / "step_00000004" / "checkpoint.json")
    checkpoints.save(4, state_of(0), {})
    assert file_checksum(folder / "step_00000004" / "checkpoint.json") == before
    resumed = Checkpoints(folder)
    for step in (3, 4):
        with pytest.raises(CheckpointError, match="already holds step 4"):
            resumed.save(step, state_of(0), {})
    assert_loads(resumed, 4)
    resumed.save(4, state_of(0), {})
    save(resumed, 5)
    assert resumed.steps() == [4, 5]


def test_leftovers_of_killed_runs_are_removed(folder):
    for name in (".step_00000003.partial", ".step_00000001.deleted"):
        (folder / name).mkdir(parents=True)
        (folder / name / "part").write_text("half")
    checkpoints = Checkpoints(folder)
    assert checkpoints.steps() == []
    save(checkpoints, 3)
    assert [path.name for path in folder.iterdir()] == ["step_00000003"]


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "flipped": _flip,
    "short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "empty": lambda path: path.write_bytes(b""),
    "deleted": Path.unlink,
}


@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata", "checkpoint.json"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_set_aside_for_the_next_older(folder, caplog, damage, name):
    save(Checkpoints(folder), 1, 2, 3)
    newest = folder / "step_00000003"
    DAMAGES[damage](newest / name)
    with pytest.raises(CheckpointError, match=name):
        Checkpoints(folder).load(3, state_of(0))
    checkpoints = Checkpoints(folder)
    with caplog.at_level(logging.WARNING):
        assert checkpoints.latest() == 2
    assert str(newest / name) in caplog.text
    assert not newest.exists()
    assert len(list((folder / "step_00000003.damaged").iterdir())) == (2 if damage == "deleted" else 3)
    assert_loads(checkpoints, 2)
    save(checkpoints, 3)
    assert Checkpoints(folder).latest() == 3


def test_no_intact_checkpoint_is_an_error_and_nothing_is_lost(folder):
    for _ in range(2):
        save(Checkpoints(folder), 1)
        _flip(folder / "step_00000001" / ".metadata")
        for _ in range(2):  # a run that is started again must not begin with weights that nobody chose
            with pytest.raises(CheckpointError, match=r"all checkpoints in .* are damaged"):
                Checkpoints(folder).latest()
    assert {path.name for path in folder.iterdir()} == {"step_00000001.damaged", "step_00000001.damaged.2"}


def test_a_checkpoint_of_another_release_is_not_taken_for_damaged(folder, monkeypatch):
    monkeypatch.setattr("pretraining.engine.checkpointing.manifest.VERSION", 9)
    save(Checkpoints(folder), 1)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="version 9; this release reads"):
        Checkpoints(folder).latest()
    assert (folder / "step_00000001").is_dir()


@pytest.mark.parametrize("file", [".distcp", ".metadata.tmp", "checkpoint.json"])
def test_a_full_disk_is_told_and_leaves_what_was_there(folder, file):
    checkpoints = Checkpoints(folder, keep_last=1)
    save(checkpoints, 1)
    with full_disk(file), pytest.raises(CheckpointError) as told:
        save(checkpoints, 2)
    for words in (str(folder), "step 2", "needs 0.0", "MiB are free", "make room"):
        assert words in str(told.value)
    assert [path.name for path in folder.iterdir()] == ["step_00000001"]
    assert_loads(Checkpoints(folder), 1)
    save(checkpoints, 2)
    assert checkpoints.steps() == [2]


def test_room_is_looked_for_before_anything_is_written(folder, monkeypatch):
    checkpoints = Checkpoints(folder)
    save(checkpoints, 1)
    big = {"weight": torch.zeros(2**20)}
    usage = shutil.disk_usage(folder)
    monkeypatch.setattr(dcp.FileSystemWriter, "write_data", lambda *_: pytest.fail("written"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2**22))
    with pytest.raises(CheckpointError, match=r"needs 4\.0 MiB, 4\.0 MiB are free"):
        checkpoints.save(2, big, {})
    assert [path.name for path in folder.iterdir()] == ["step_00000001"]


@pytest.mark.parametrize("shapes", [[(1000, 1000)], [(3, 2)] * 200, [(64, 64)] * 50])
def test_the_room_looked_for_suffices(folder, shapes):
    names = [f"student.backbone.blocks.{number}.attention.projection.weight" for number in range(len(shapes))]
    state = {name: torch.zeros(shape) for name, shape in zip(names, shapes, strict=True)}
    checkpoints = Checkpoints(folder)
    checkpoints.save(1, state, {})
    checkpoints.wait()
    files = [path for path in (folder / "step_00000001").iterdir() if path.name != "checkpoint.json"]
    elements = 4 * sum(tensor.numel() for tensor in state.values())
    assert sum(path.stat().st_size for path in files) <= FlatState(state).bytes_on_disk(1)
    assert FlatState(state).bytes_on_disk(1) <= elements + 4096 * (len(names) + 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state["model"].pop("half"), "model.half is only in the checkpoint"),
        (lambda state: state["model"].update(new=torch.zeros(1)), "model.new is not in the checkpoint"),
        (lambda state: state["model"].update(half=torch.zeros(7)), r"bfloat16 in the checkpoint.*float32 here"),
        (lambda state: state["model"].update(half=torch.zeros(8).bfloat16()), r"\(7,\).*\(8,\)"),
        (lambda state: state["model"].update(half=1), "model.half is a tensor in only one"),
        (lambda state: state["model"].update(half=state["model"]["half"].to("meta")), "meta device"),
        (lambda state: state["optimizer"]["groups"][0].pop("lr"), r"optimizer.groups.0.lr is only in"),
        (lambda state: state["optimizer"]["groups"].append({"lr": 1}), r"optimizer.groups.1.lr is not in"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_untouched(folder, change, message):
    checkpoints = Checkpoints(folder)
    save(checkpoints, 1)
    state = state_of(0)
    change(state)
    weight = state["model"]["blocks.0.weight"].clone()
    with pytest.raises(CheckpointError, match=message):
        checkpoints.load(1, state)
    assert torch.equal(state["model"]["blocks.0.weight"], weight)


@pytest.mark.parametrize(
    ("state", "metadata", "message"),
    [
        ({"a": {1, 2}}, {}, "a of the training state is a set"),
        ({"a": {"b": torch.zeros(1)}, "a.b": 3}, {}, "called 'a.b'"),
        ({"a": (torch.zeros(1),)}, {}, "a of the training state is a tuple"),
        ({}, {"folder": Path("x")}, "must be JSON"),
    ],
)
def test_what_cannot_be_saved_is_refused_at_once(folder, state, metadata, message):
    with pytest.raises(CheckpointError, match=message):
        Checkpoints(folder).save(1, state, metadata)
    assert not folder.exists()


class _Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def _evil_index(folder: Path, evil: _Evil) -> None:
    (folder / ".metadata").write_bytes(pickle.dumps(evil))


def _evil_object(folder: Path, evil: _Evil) -> None:
    """DCP itself would unpickle what its index calls no tensor."""
    dcp.save({"weight": evil}, checkpoint_id=folder, no_dist=True)


def _evil_tensor(folder: Path, evil: _Evil) -> None:
    torch.save(evil, folder / "__0_0.distcp")
    index = pickle.loads((folder / ".metadata").read_bytes())
    for place in index.storage_data.values():
        place.length = (folder / "__0_0.distcp").stat().st_size
    (folder / ".metadata").write_bytes(pickle.dumps(index))


def _evil_path(folder: Path, evil: _Evil) -> None:
    index = pickle.loads((folder / ".metadata").read_bytes())
    for place in index.storage_data.values():
        place.relative_path = "../elsewhere"
    shutil.copy(folder / "__0_0.distcp", folder.parent / "elsewhere")
    (folder / ".metadata").write_bytes(pickle.dumps(index))


@pytest.mark.parametrize("replace_file", [_evil_index, _evil_object, _evil_tensor, _evil_path])
def test_nothing_in_a_checkpoint_is_executed(folder, tmp_path, replace_file):
    Checkpoints(folder, asynchronous=False).save(1, {"weight": torch.zeros(3)}, {})
    here, made = folder / "step_00000001", tmp_path / "executed"
    replace_file(here, _Evil(made))
    record = read_record(here)
    write_record(here, replace(record, files={name: file_checksum(here / name) for name in record.files}))
    checkpoints = Checkpoints(folder)
    assert checkpoints.latest() == 1
    with pytest.raises(CheckpointError):
        checkpoints.load(1, {"weight": torch.zeros(3)})
    assert not made.exists()


def test_an_entry_that_is_no_tensor_is_not_read_even_if_the_index_is_believed(folder, tmp_path, monkeypatch):
    made = tmp_path / "executed"
    dcp.save({"weight": _Evil(made)}, checkpoint_id=folder, no_dist=True)
    made.unlink(missing_ok=True)
    index = dcp.FileSystemReader(folder).read_metadata()
    agreement = checkpoint.Agreement()
    with pytest.raises(CheckpointError, match="weight is not a tensor"):
        checkpoint.read_tensors(folder, {"weight": torch.zeros(3)}, index, agreement)
    assert not made.exists()


def test_dcp_reads_the_tensors_by_itself(folder):
    save(Checkpoints(folder), 5)
    tensors = FlatState(state_of(0)).tensors
    dcp.load(tensors, checkpoint_id=folder / "step_00000005", no_dist=True)
    assert_same(tensors, FlatState(state_of(5)).tensors)
    assert str(folder) not in (folder / "step_00000005" / ".metadata").read_bytes().decode("latin1")
    record = json.loads((folder / "step_00000005" / "checkpoint.json").read_text())
    assert record["step"] == 5 and record["world_size"] == 1 and record["torch_version"] == torch.__version__


def test_a_kill_before_every_file_operation_of_a_save(folder):
    operations = CONTEXT.Value("i", 0)

    def run(step: int, last: int) -> int | None:
        process = CONTEXT.Process(target=saving.save_one_until, args=(folder, step, last, operations))
        process.start()
        process.join()
        return process.exitcode

    assert run(1, -1) == 0 and run(2, -1) == 0
    total = operations.value
    assert total > 15
    seen = set()
    for last in range(1, total + 1):
        step = 1 + 2 * last
        assert run(step, last) == -signal.SIGKILL
        checkpoints = Checkpoints(folder, keep_last=1)
        newest = checkpoints.latest()
        assert newest in (step - 1, step), f"killed before operation {last}"
        seen.add(step - newest)
        for there in checkpoints.steps():
            assert_loads(checkpoints, there)
        save(checkpoints, step + 1)
        assert [path.name for path in folder.iterdir()] == [f"step_{step + 1:08d}"]
    assert seen == {0, 1}


@pytest.mark.soak
def test_fifty_kills_at_random_moments(folder):
    rng, before = random.Random(0), 0
    for kill in range(KILLS):
        confirmed = CONTEXT.Value("i", before)
        process = CONTEXT.Process(target=saving.save_for_ever, args=(folder, confirmed))
        process.start()
        process.join(rng.uniform(0.05, 0.25))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        checkpoints = Checkpoints(folder)
        newest = checkpoints.latest() or 0
        assert newest >= max(before, confirmed.value), f"kill {kill}"
        for step in checkpoints.steps():
            assert_loads(checkpoints, step)
        assert not list(folder.glob("*.damaged"))
        before = newest
    assert before > KILLS, "hardly anything was saved between the kills"


@pytest.fixture(scope="module", params=["fsdp", "ddp"])
def saved_by_two(request, tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    folder, meeting = tmp_path_factory.mktemp("saved"), tmp_path_factory.mktemp("meeting")
    return folder, in_processes(2, meeting, saving.save_network, folder, request.param)[0]


@pytest.mark.parametrize(("processes", "kind"), [(1, "plain"), (4, "fsdp")])
def test_what_two_processes_saved_one_or_four_resume(saved_by_two, tmp_path, processes, kind):
    folder, saved = saved_by_two
    if processes == 1:
        found = [saving.resume_network(folder, kind)]
    else:
        found = in_processes(processes, tmp_path, saving.resume_network, folder, kind)
    for state in found:
        assert_same(state, saved)


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> list[dict[str, Any]]:
    return in_processes(2, tmp_path_factory.mktemp("meeting"), saving.disagree, tmp_path_factory.mktemp("two") / "run")


def test_an_error_of_one_process_is_told_in_all(two):
    for rank, found in enumerate(two):
        *full, own, foreign = found["errors"]
        assert len(full) == 4
        for error in full:
            assert "no room to save step 3" in error
        assert own == ("DataError", "of this package")
        told = ("MedDINOError", "Process 0 failed: OSError('of another')")
        assert foreign == (told if rank else ("OSError", "of another"))
        assert found["after errors"] == [1, 2]


def test_training_goes_on_while_processes_write(two):
    for found in two:
        assert found["sums"] == [3 * number for number in range(500)]
        assert found["saved"] == [1, 2, 3]


def test_the_first_process_judges_for_all(two):
    assert [found["latest"] for found in two] == [2, 2]
