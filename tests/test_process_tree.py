"""Processes that this one has started: which they are, and the memory that they hold together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nnunetv2_meddino.process_tree import descendants
from tests.processes import FAMILY, family, has_ended, until

HOLDS_MIB = 200

FORKED = f"""
import os, signal, time
values = bytearray({HOLDS_MIB} * 2**20)
values[::4096] = b"1" * len(values[::4096])
for child in range(3):
    if os.fork() == 0:
        open(f"ready{{child}}", "w").close()
        signal.pause()
signal.pause()
"""
"""Three forks of a process: the memory is that of all four."""


def test_finds_children_and_theirs(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", FAMILY], cwd=tmp_path, start_new_session=True)
    try:
        pids = family(tmp_path)
        assert set(pids) <= set(descendants())
        assert os.getpid() not in descendants()
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    until(lambda: all(has_ended(pid) for pid in pids))
    assert not set(pids) & set(descendants())


WATCHED = f"""
import subprocess, sys, time
from pathlib import Path
from nnunetv2_meddino.process_tree import PeakMemory
with PeakMemory() as memory:
    child = subprocess.Popen([sys.executable, "-c", {FORKED!r}])
    while len(list(Path().glob("ready*"))) < 3 or memory.mib < {HOLDS_MIB}:
        time.sleep(0.01)
print(memory.mib)
"""


def test_memory_that_processes_share_counts_once(tmp_path: Path) -> None:
    """Breaks with the sum of resident memory, which is 800 MiB here. In a process that has started nothing else."""
    child = subprocess.Popen(
        [sys.executable, "-c", WATCHED], cwd=tmp_path, start_new_session=True, stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout is not None
        mib = float(child.stdout.readline())
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.communicate()
    assert mib == pytest.approx(HOLDS_MIB, abs=60)
