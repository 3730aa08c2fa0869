from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from nnunetv2_meddino.comparison.folders import Method
from nnunetv2_meddino.comparison.jobs.run import run_missing
from nnunetv2_meddino.comparison.jobs.steps import Fold, Step
from nnunetv2_meddino.errors import ConfigurationError
from nnunetv2_meddino.locks import locked

PYTHON = Path(sys.executable).name


def python(name: str, code: str, *needs: str) -> Step:
    return Step(name, f"title of {name}", (PYTHON, "-c", code), needs)


def write(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def run(steps: list[Step], out: Path) -> tuple[list[str], str]:
    with redirect_stdout(io.StringIO()) as screen:
        failed = run_missing(steps, out)
    return [f"{f.step.name}: {f.message}" for f in failed], screen.getvalue()


def test_every_step_has_a_log_and_a_line(tmp_path):
    failed, screen = run([python("first", "print('hello')"), python("second", "print('bye')", "first")], tmp_path)
    assert failed == []
    assert "hello" in (tmp_path / "logs" / "first.log").read_text()
    assert [line.rsplit(" in ", 1)[0] for line in screen.splitlines()] == [
        "[1/2] title of first: done",
        "[2/2] title of second: done",
    ]


def test_after_a_failure_independent_steps_still_run(tmp_path):
    steps = [
        python("data", "print('the cause'); raise SystemExit(3)"),
        python("training", "open('trained', 'w')", "data"),
        python("validation", "", "training"),
        python("other", "print('done')"),
    ]
    failed, screen = run(steps, tmp_path)
    assert [entry.split(":")[0] for entry in failed] == ["data", "training", "validation"]
    assert "status 3" in failed[0] and "the cause" in failed[0] and "data.log" in failed[0]
    assert failed[1] == "training: not started: title of data failed"
    assert "FAILED" in screen and "the cause" in screen
    assert "[4/4] title of other: done" in screen
    assert not (tmp_path / "logs" / "training.log").exists()


def test_commands_find_our_trainers_and_planning_is_spared_a_setting_that_crashes_it(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    code = "import os; print(os.environ.get('nnUNet_n_proc_DA'), os.environ['nnUNet_extTrainer'])"
    run([python("plan", code)], tmp_path)
    printed = (tmp_path / "logs" / "plan.log").read_text().splitlines()[-1]
    assert printed.startswith("None ") and printed.endswith("nnunet_ext")


def test_a_validation_leaves_the_curves_of_weights_and_biases_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_wandb_enabled", "1")
    fold = Fold("Dataset701_Abdomen", Method("T", "P", "2d"), "0", tmp_path / "fold_0")
    code = "import os, sys; print(os.environ['nnUNet_wandb_enabled'], sys.argv[1:])"
    for checkpoint in ("best", "final"):
        write(fold.folder / f"checkpoint_{checkpoint}.pth")
        run([Step(checkpoint, checkpoint, (PYTHON, "-c", code), training=fold)], tmp_path)
    logs = [(tmp_path / "logs" / f"{name}.log").read_text().splitlines()[-1] for name in ("best", "final")]
    assert logs == ["1 ['--c']", "0 ['--val']"]


def test_a_fold_that_another_command_has_finished_since_is_not_trained_again(tmp_path):
    fold = Fold("Dataset701_Abdomen", Method("T", "P", "2d"), "0", tmp_path / "fold_0")
    written = [fold.folder / "checkpoint_final.pth", fold.folder / "validation" / "summary.json"]
    code = f"import os; os.makedirs({str(written[1].parent)!r}); [open(name, 'w') for name in {[*map(str, written)]}]"
    steps = [python("other", code), Step("train", "train", (PYTHON, "-c", "raise SystemExit(1)"), training=fold)]
    assert run(steps, tmp_path)[0] == []
    assert not (tmp_path / "logs" / "train.log").exists()


def test_a_fold_that_another_command_trains_is_left_to_it(tmp_path):
    fold = Fold("Dataset701_Abdomen", Method("T", "P", "2d"), "0", tmp_path / "fold_0")
    steps = [Step("train", "train", (PYTHON, "-c", ""), training=fold), python("other", "")]
    with locked(fold.folder):
        failed, screen = run(steps, tmp_path / "out")
    assert len(failed) == 1
    assert f"[1/2] train: left out\n  another command works in {fold.folder}" in screen
    assert "[2/2] title of other: done" in screen
    assert run(steps, tmp_path / "out")[0] == []


def test_a_missing_command_is_told_before_anything_runs(tmp_path):
    with pytest.raises(ConfigurationError, match="no_such_command not found for"):
        run([python("first", ""), Step("x", "x", ("no_such_command",))], tmp_path)
    assert not (tmp_path / "logs").exists()


def test_an_interrupt_ends_the_running_command(tmp_path):
    script = f"""
import signal
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background are born with Ctrl-C ignored
from nnunetv2_meddino.comparison.folders import Method
from nnunetv2_meddino.comparison.jobs.run import run_missing
from nnunetv2_meddino.comparison.jobs.steps import Fold, Step
code = "import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(60)"
run_missing([Step("long", "long", ({PYTHON!r}, "-c", code))], Path("."))
"""
    running = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 180
    while not (pid_file := tmp_path / "pid").exists() or not pid_file.read_text():
        assert time.monotonic() < deadline and running.poll() is None
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in running.communicate(timeout=180)[1]
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)
