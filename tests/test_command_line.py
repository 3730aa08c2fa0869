"""How commands end: exit codes and last words."""

from __future__ import annotations

import argparse
import errno
import importlib
import re
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 (the name everyone gives it)
import torch

import nnunetv2_meddino
import pretraining.cli.main
from nnunetv2_meddino.cli import main
from nnunetv2_meddino.command_line import add_out, add_processes, exit_code_of
from nnunetv2_meddino.errors import DataError
from tests.processes import LIMIT_S, has_ended, until
from tests.trainers.test_trainers import tiny_weights

COMMANDS = (main.main, pretraining.cli.main.main)


@pytest.mark.parametrize("command", COMMANDS)
def test_versions_are_those_of_the_imported_modules(command, capsys):
    with pytest.raises(SystemExit) as stop:
        command(["--version"])
    assert stop.value.code == 0
    printed = dict(line.split() for line in capsys.readouterr().out.splitlines())
    modules = {name: sys.modules[name].__version__.partition("+")[0] for name in ("torch", "timm", "numba")}
    assert {name: printed[name].partition("+")[0] for name in modules} == modules
    assert set(printed) == {"nnunetv2-meddino", "nnunetv2", *modules}


@pytest.mark.parametrize("module", [main, pretraining.cli.main])
def test_a_shell_completes_sub_commands_and_their_options(module):
    shtab = pytest.importorskip("shtab")
    script = shtab.complete(module.parser(), "bash")
    assert ("--lazy-resample" if module is main else "--recipe") in script


class Interface(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pass


def test_only_the_warning_that_timm_causes_is_silenced():
    with warnings.catch_warnings(record=True) as caught:
        warnings.resetwarnings()
        warnings.simplefilter("always")
        importlib.reload(nnunetv2_meddino)
        torch.jit.interface(Interface)
        warnings.warn("`torch.jit.interface` is deprecated", FutureWarning, stacklevel=1)
        warnings.warn_explicit("`torch.jit.other` is deprecated", FutureWarning, "_script.py", 1, "torch.jit._script")
    assert [str(warning.message) for warning in caught] == [
        "`torch.jit.interface` is deprecated",
        "`torch.jit.other` is deprecated",
    ]


def raising(error: BaseException):
    def work() -> int:
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "/full/scores.json"),
            2,
            "OSError: /full/scores.json: No space left on device. Make room there, or write to another place, and run "
            "the same command again.\n",
        ),
        (
            OSError(errno.EROFS, "Read-only file system", "/a", None, "/b"),
            2,
            "OSError: /a -> /b: Read-only file system. Name a place that can be written to, and run the same command "
            "again.\n",
        ),
        (MemoryError(), 2, "MemoryError: There is not enough memory. Give fewer"),
        (DataError("what, where, what to do"), 2, "DataError: what, where, what to do\n"),
        (KeyboardInterrupt(), 130, "Interrupted. It goes on.\n"),
    ],
)
def test_an_error_is_one_message_and_an_exit_code(capsys, error, code, said):
    assert exit_code_of(raising(error), interrupted="It goes on.") == code
    assert capsys.readouterr().err.startswith(said)


def test_options_that_commands_share(capsys):
    parser = argparse.ArgumentParser()
    add_out(parser, "DIR", "folder")
    add_processes(parser)
    for spelling in ("-o", "--out"):
        assert parser.parse_args([spelling, "a/b", "-np", "3"]) == argparse.Namespace(out=Path("a/b"), processes=3)
    assert parser.parse_args([]).processes >= 1
    for wrong, message in (("0", "argument -np: must be 1 or more, not 0"), ("two", "argument -np: invalid int value")):
        with pytest.raises(SystemExit, match="2"):
            parser.parse_args(["-np", wrong])
        assert message in capsys.readouterr().err


def test_what_is_a_fault_of_the_program_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        exit_code_of(raising(ZeroDivisionError()))


COMMANDS = {
    "evaluate": (main.main, "evaluate -p CASE -r CASE -l LABELS -np 1 -o FILE/x/scores.json"),
    "features": (main.main, "features CASE --weights none -o FILE/x/picture.png"),
    "demo": (main.main, "demo --work-dir FILE/x"),
    "convert": (main.main, "weights convert WEIGHTS FILE/x/w.safetensors --format meddino"),
    "convert to meta": (main.main, "weights convert WEIGHTS FILE/x/w.pth --format meta"),
    "curate": (pretraining.cli.main.main, "curate --source BTCV=RELEASE --out FILE/x"),
    "export": (pretraining.cli.main.main, "export WEIGHTS --out FILE/x/w.safetensors"),
    "export to meta": (pretraining.cli.main.main, "export WEIGHTS --format meta --out FILE/x/w.pth"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_that_cannot_write_end_with_one_message(tmp_path, capsys, name):
    """The folder to write to lies below a file: so it fails for the superuser as well."""
    case = tmp_path / "RELEASE" / "Training" / "img" / "img0001.nii.gz"
    case.parent.mkdir(parents=True)
    sitk.WriteImage(sitk.GetImageFromArray(np.ones((16, 16, 16), np.uint8)), case)
    (tmp_path / "LABELS").write_text('{"organ": 1}')
    (tmp_path / "FILE").touch()
    tiny_weights(tmp_path / "weights.safetensors").rename(tmp_path / "WEIGHTS")
    main, line = COMMANDS[name]
    names = {"FILE", "CASE", "LABELS", "WEIGHTS", "RELEASE"}
    words = [re.sub("|".join(names), lambda match: str(tmp_path / match[0]), word) for word in line.split()]
    words = [str(case) if word == str(tmp_path / "CASE") else word for word in words]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "Not a directory" in error
    assert str(tmp_path / "FILE") in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("printing", ["print('line')", "Console().print('line')"])
def test_output_that_nobody_reads_ends_without_a_word(printing):
    script = f"""
import sys
from rich.console import Console
from nnunetv2_meddino.command_line import exit_code_of
def work():
    while True:
        {printing}
sys.exit(exit_code_of(work))
"""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", script], **pipes) as process:
        assert process.stdout.readline() == "line\n"
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(LIMIT_S) == 141


def test_a_hangup_that_is_ignored_stays_so():
    script = "import signal, sys; from nnunetv2_meddino.command_line import exit_code_of\n"
    script += "def work():\n    signal.raise_signal(signal.SIGHUP)\n    return 7\n"
    script += "sys.exit(exit_code_of(work))"
    for action, status in (("SIG_IGN", 7), ("SIG_DFL", 129)):
        code = f"import signal\nsignal.signal(signal.SIGHUP, signal.{action})\n{script}"
        assert subprocess.run([sys.executable, "-c", code], timeout=LIMIT_S, check=False).returncode == status


def test_code_that_is_not_made_for_it_dies_of_the_signal_at_once_and_so_do_its_workers(tmp_path):
    script = """
import multiprocessing, os, signal, sys
from nnunetv2_meddino.command_line import exit_code_of

def worker(pipe):
    pipe.send(os.getpid())
    while True:
        signal.pause()

def work():
    ours, theirs = multiprocessing.Pipe()
    multiprocessing.get_context("fork").Process(target=worker, args=(theirs,)).start()
    pid = ours.recv()
    open("worker.partial", "w").write(str(pid))
    os.replace("worker.partial", "worker")
    try:
        while True:
            signal.pause()
    finally:
        open("unwound", "w")

sys.exit(exit_code_of(work, unwinds=False))
"""
    with subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path) as process:
        until((tmp_path / "worker").exists)
        process.terminate()
        assert process.wait(LIMIT_S) == -signal.SIGTERM
    until(lambda: has_ended(int((tmp_path / "worker").read_text())))
    assert not (tmp_path / "unwound").exists()


def test_a_forked_worker_can_be_ended_from_its_first_moment_on():
    """With a handler of Python's, a pool that is closed early would wait for ever for a worker that goes to sleep."""
    script = """
import os, signal, sys
from signal import SIG_BLOCK, SIG_DFL, SIGHUP, SIGTERM, getsignal, pthread_sigmask

signal.signal(SIGHUP, SIG_DFL)  # under nohup it is ignored
os.register_at_fork(after_in_child=lambda: early.extend(pthread_sigmask(SIG_BLOCK, ())))
from nnunetv2_meddino.command_line import exit_code_of

early = []

def work():
    handler = getsignal(SIGTERM)
    pid = os.fork()
    if not pid:
        held = {SIGTERM, SIGHUP} <= set(early)
        ends = getsignal(SIGTERM) is getsignal(SIGHUP) is SIG_DFL and not pthread_sigmask(SIG_BLOCK, ())
        os._exit(2 * held + ends)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert getsignal(SIGTERM) is handler is not SIG_DFL and not pthread_sigmask(SIG_BLOCK, ())
    return code

sys.exit(exit_code_of(work))
"""
    assert subprocess.run([sys.executable, "-c", script], timeout=LIMIT_S, check=False).returncode == 3
