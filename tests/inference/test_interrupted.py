"""Predictions that are ended at any moment leave whole files, and the next command completes them."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from tests.forked import CONTEXT
from tests.inference import interrupting
from tests.inference.models import write_model
from tests.inference.test_folders import noise, write_simpleitk

KILLS = 30
CONTINUED = ("--continue_prediction", "--save_probabilities")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``model``, ``images`` of four cases, and ``undisturbed`` predictions with probabilities."""
    home = tmp_path_factory.mktemp("world")
    write_model(home / "model")
    (home / "images").mkdir()
    for seed in range(4):
        write_simpleitk(home / "images" / f"case_{seed}_0000.nii.gz", noise((3, 48, 40), seed))
    assert in_process(interrupting.predict, world=home, out=home / "undisturbed") == 0
    labels = np.asanyarray(nibabel.load(home / "undisturbed" / "case_0.nii.gz").dataobj)
    assert len(np.unique(labels)) == 3
    return home


def in_process(
    work: Callable[..., object], *before: object, world: Path, out: Path, options: tuple[str, ...] = CONTINUED
) -> int:
    """Call a prediction in a process and return its exit code."""
    process = CONTEXT.Process(target=work, args=(*before, world / "model", world / "images", out, *options))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder, if there is one, but the record of the command, which names the folder."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and "predict_from_raw_data_args.json" not in file.name
    }


def check_whole(out: Path, undisturbed: Path) -> None:
    """Whatever bears a final name is whole; where a label map is, all files of its case are."""
    expected = contents(undisturbed)
    found = {name: content for name, content in contents(out).items() if not name.startswith(".")}
    for name, content in found.items():
        assert content == expected[name], name
    for name in found:
        if name.endswith(".nii.gz"):
            assert {name.replace(".nii.gz", ending) for ending in (".npz", ".pkl")} <= found.keys(), name


def check_complete(out: Path, undisturbed: Path) -> None:
    """Everything is there, and nothing else but at most a part of the JSON files, which other commands may write."""
    there = {name: content for name, content in contents(out).items() if not name.endswith(".json.partial")}
    left = [path for path in out.iterdir() if path.name.startswith(".") and ".json." not in path.name]
    assert not left
    assert {name: there[name] for name in there if not name.startswith(".")} == contents(undisturbed)


def test_a_kill_before_every_file_operation_of_the_last_case(world: Path, tmp_path: Path) -> None:
    """Breaks if a label map gets its name before the files beside it, or a left-over folder stays."""
    out = tmp_path / "out"
    assert in_process(interrupting.predict_until, -1, world=world, out=out) == 0
    total = int((tmp_path / "operations").read_text())
    assert total > 4 * 5
    for last in range(total - total // 4, total + 1):
        shutil.rmtree(out)
        assert in_process(interrupting.predict_until, last, world=world, out=out) == -signal.SIGKILL
        check_whole(out, world / "undisturbed")
        assert in_process(interrupting.predict, world=world, out=out) == 0
        check_complete(out, world / "undisturbed")


@pytest.mark.soak
def test_thirty_kills_at_random_moments(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    began = time.perf_counter()
    assert in_process(interrupting.predict, world=world, out=tmp_path / "first") == 0
    whole_s = time.perf_counter() - began
    rng, out = random.Random(0), tmp_path / "out"
    found: list[int] = []
    finished = 0
    while len(found) < KILLS and finished < 2 * KILLS:
        arguments = (world / "model", world / "images", out, *CONTINUED)
        process = CONTEXT.Process(target=interrupting.predict, args=arguments)
        process.start()
        process.join(rng.uniform(0.2, 0.9) * whole_s)
        process.kill()
        process.join()
        if process.exitcode == -signal.SIGKILL:
            check_whole(out, world / "undisturbed")
            found.append(len(list(out.glob("*.nii.gz"))))
        else:
            check_complete(out, world / "undisturbed")
            finished += 1
            shutil.rmtree(out)
    assert len(found) == KILLS
    assert in_process(interrupting.predict, world=world, out=out) == 0
    check_complete(out, world / "undisturbed")
    with capsys.disabled():
        print(f"\n{KILLS} kills within {whole_s:.2f} s: finished cases after each {found}; {finished} times complete")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_whole_files_and_the_command_continues(
    world: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    out = tmp_path / "out"
    assert in_process(interrupting.predict_and_signal, number, world=world, out=out) == code
    check_whole(out, world / "undisturbed")
    assert [file.name for file in out.glob("*.nii.gz")] == ["case_0.nii.gz"]
    assert not list(out.glob(".*"))
    assert "add --continue_prediction" in (tmp_path / "stderr").read_text()
    assert (tmp_path / "stdout").read_text() == ""
    first = (out / "case_0.nii.gz").stat().st_mtime_ns
    assert in_process(interrupting.predict, world=world, out=out) == 0
    check_complete(out, world / "undisturbed")
    assert (out / "case_0.nii.gz").stat().st_mtime_ns == first


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_a_full_disk_is_an_error_that_names_the_file_and_leaves_none(world: Path, tmp_path: Path, ending: str) -> None:
    """Breaks if labels are not read again: SimpleITK writes a part of a NIfTI file and reports success."""
    write_model(tmp_path / "model", file_ending=ending)
    (tmp_path / "images").mkdir()
    write_simpleitk(tmp_path / "images" / f"case_0000{ending}", noise((30, 48, 40)))
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert in_process(interrupting.predict, world=tmp_path, out=whole, options=()) == 0
    size = (whole / f"case{ending}").stat().st_size
    limit = max(file.stat().st_size for file in whole.glob("*.json")) + 1
    assert limit < size
    assert in_process(interrupting.predict_to_full_disk, limit, world=tmp_path, out=out, options=()) == 2
    message = (tmp_path / "stderr").read_text().splitlines()[-1]
    assert message == (
        f"OSError: {out / 'case'}{ending}: File too large. No file may become that large here: see ulimit -f, or write "
        "to another file system, and run the same command again."
    )
    assert sorted(file.name for file in out.iterdir()) == [
        "dataset.json",
        "plans.json",
        "predict_from_raw_data_args.json",
    ]


def test_a_full_disk_is_an_error_for_probabilities_too(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert in_process(interrupting.predict_to_full_disk, 20_000, world=world, out=out) == 2
    message = (tmp_path / "stderr").read_text().splitlines()[-1]
    assert str(out / ".case_0.partial" / "probabilities.raw") in message
    assert "File too large" in message
    assert not list(out.glob("*case*")) + list(out.glob(".*"))
