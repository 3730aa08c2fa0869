"""Children end with their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nnunetv2_meddino.commands import check_installed, run_command
from nnunetv2_meddino.errors import CommandError, ConfigurationError
from tests.processes import FAMILY, LIMIT_S, family, has_ended, until

RUNS_A_COMMAND = f"""
import os, signal, sys
from pathlib import Path
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
from nnunetv2_meddino.command_line import exit_code_of
from nnunetv2_meddino.commands import run_command

def work():
    run_command([sys.executable, "-c", {FAMILY!r}], dict(os.environ), Path("log"), lambda line: None)
    return 0

sys.exit(exit_code_of(work, interrupted="The same command continues."))
"""

WORKS_IN_PROCESSES = """
import os, signal, sys
from nnunetv2_meddino import process_pool
from nnunetv2_meddino.command_line import exit_code_of

def tell(item):
    with open("pids", "a") as file:
        file.write(f"{os.getpid()}\\n")
    signal.pause()

if __name__ == "__main__":
    sys.exit(exit_code_of(lambda: process_pool.run(tell, [0, 1], processes=2, lost=print, keep=print)))
"""


def started(code: str, folder: Path) -> subprocess.Popen[str]:
    (folder / "parent.py").write_text(code)
    return subprocess.Popen([sys.executable, "parent.py"], cwd=folder, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("number", "status", "said"),
    [
        (signal.SIGTERM, 143, "Ended by SIGTERM. The same command continues.\n"),
        (signal.SIGHUP, 129, "Ended by SIGHUP. The same command continues.\n"),
        (signal.SIGKILL, -signal.SIGKILL, ""),
    ],
)
def test_a_command_and_its_workers_end_with_the_process_that_runs_it(tmp_path, number, status, said):
    parent = started(RUNS_A_COMMAND, tmp_path)
    pids = family(tmp_path)
    parent.send_signal(number)
    assert parent.communicate(timeout=LIMIT_S)[1] == said
    assert parent.returncode == status
    if number != signal.SIGKILL:
        assert all(map(has_ended, pids)), "it waits for their end"
    until(lambda: all(map(has_ended, pids)))


def test_lines_are_followed_while_the_command_runs(tmp_path):
    seen = tmp_path / "seen"
    waits = f"""
import pathlib, time
print("line")
deadline = time.monotonic() + 60
while not pathlib.Path({str(seen)!r}).exists():
    assert time.monotonic() < deadline
    time.sleep(0.02)
"""
    run_command([sys.executable, "-c", waits], {}, tmp_path / "log", lambda line: line == "line" and seen.touch())


def test_a_worker_that_takes_no_sigterm_is_killed(tmp_path):
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    parent = started(RUNS_A_COMMAND.replace(repr(FAMILY), repr(deaf + FAMILY)), tmp_path)
    pids = family(tmp_path)  # both: that a signal is ignored is inherited
    parent.terminate()
    parent.communicate(timeout=LIMIT_S)
    until(lambda: all(map(has_ended, pids)))


def test_a_command_that_fails_tells_its_status_and_takes_its_workers_with_it(tmp_path):
    failing = f"import os; os.chdir({str(tmp_path)!r})\n" + FAMILY.rpartition("signal.pause()")[0]
    failing += "print('the cause', flush=True)\nos.kill(os.getpid(), signal.SIGKILL)\n"
    with pytest.raises(CommandError, match=r"status 137:\n(.*\n)*  the cause\n"):
        run_command([sys.executable, "-c", failing], {}, tmp_path / "log", lambda line: None)
    until(lambda: all(map(has_ended, family(tmp_path))))


def test_commands_are_found_where_pip_puts_scripts_elsewhere(tmp_path, monkeypatch):
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.symlink_to(Path(sys.executable).resolve())
    environment = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path.endswith("-packages"))}
    monkeypatch.setattr(sys, "executable", str(python))
    check_installed(["pygmentize", "nnUNetv2_train"])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pygments.py").write_text("raise ImportError('a module of the user, in the folder of their work')\n")
    printed: list[str] = []
    run_command(["pygmentize", "-N", "scan.py"], environment, tmp_path / "log", printed.append)  # which language it is
    assert printed == ["python"]
    with pytest.raises(ConfigurationError, match="nnUNetv2_fly not found for"):
        run_command(["nnUNetv2_fly"], environment, tmp_path / "log", printed.append)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_workers_of_a_pool_end_with_it(tmp_path, number):
    parent = started(WORKS_IN_PROCESSES, tmp_path)
    until(lambda: (tmp_path / "pids").exists() and (tmp_path / "pids").read_text().count("\n") == 2)
    parent.send_signal(number)
    parent.communicate(timeout=LIMIT_S)
    until(lambda: all(has_ended(int(pid)) for pid in (tmp_path / "pids").read_text().split()))
