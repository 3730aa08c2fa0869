"""How commands end: exit codes and last words."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys

import pytest

from nnunetv2_meddino.command_line import ended, naming
from nnunetv2_meddino.errors import DataError
from tests.processes import LIMIT_S, has_ended, until


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
        (MemoryError(), 2, "MemoryError: There is not enough memory. Not enough memory: give fewer"),
        (DataError("what, where, what to do"), 2, "DataError: what, where, what to do\n"),
        (KeyboardInterrupt(), 130, "Interrupted. It goes on.\n"),
    ],
)
def test_an_error_is_one_message_and_an_exit_code(capsys, error, code, said):
    assert ended(raising(error), interrupted="It goes on.") == code
    assert capsys.readouterr().err.startswith(said)


def test_what_is_a_fault_of_the_program_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        ended(raising(ZeroDivisionError()))


def test_an_error_of_a_write_gets_the_name_of_the_file(tmp_path):
    wanted = tmp_path / "scores.json"
    for name in (None, str(tmp_path / ".scores.json.123.tmp")):
        with pytest.raises(OSError) as caught, naming(wanted):
            raise OSError(errno.ENOSPC, "No space left on device", name)
        assert caught.value.filename == str(wanted)
    with pytest.raises(OSError) as caught, naming(wanted):
        (tmp_path / "other" / "file").read_bytes()
    assert caught.value.filename == str(tmp_path / "other" / "file")


@pytest.mark.parametrize("printing", ["print('line')", "Console().print('line')"])
def test_output_that_nobody_reads_ends_without_a_word(printing):
    script = f"""
import sys
from rich.console import Console
from nnunetv2_meddino.command_line import ended
def work():
    while True:
        {printing}
sys.exit(ended(work))
"""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", script], **pipes) as process:
        assert process.stdout.readline() == "line\n"
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(LIMIT_S) == 141


def test_a_hangup_that_is_ignored_stays_so():
    script = "import signal, sys; from nnunetv2_meddino.command_line import ended\n"
    script += "def work():\n    signal.raise_signal(signal.SIGHUP)\n    return 7\n"
    script += "sys.exit(ended(work))"
    for ignored, status in (("signal.signal(signal.SIGHUP, signal.SIG_IGN)\n", 7), ("", 129)):
        code = f"import signal\n{ignored}{script}"
        assert subprocess.run([sys.executable, "-c", code], timeout=LIMIT_S, check=False).returncode == status


def test_code_that_is_not_made_for_it_dies_of_the_signal_at_once_and_so_do_its_workers(tmp_path):
    script = """
import multiprocessing, os, signal, sys
from nnunetv2_meddino.command_line import ended

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

sys.exit(ended(work, unwinds=False))
"""
    with subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path) as process:
        until((tmp_path / "worker").exists)
        process.terminate()
        assert process.wait(LIMIT_S) == -signal.SIGTERM
    until(lambda: has_ended(int((tmp_path / "worker").read_text())))
    assert not (tmp_path / "unwound").exists()
