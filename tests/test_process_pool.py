"""Work in processes of which some are killed."""

from __future__ import annotations

import os
import subprocess
import sys

from nnunetv2_meddino import process_pool
from tests.conftest import PROJECT

_KILLER = """
import os, signal, sys
from nnunetv2_meddino import process_pool

def work(item):
    if item == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return item

def lost(item):
    return -item

if __name__ == "__main__":
    results = []
    process_pool.run(work, list(range(8)), processes=2, lost=lost, keep=results.append)
    print(sorted(results))
"""


def test_an_item_that_kills_its_process_takes_no_other_with_it(tmp_path):
    script = tmp_path / "killer.py"
    script.write_text(_KILLER)
    env = os.environ | {"PYTHONPATH": str(PROJECT)}
    done = subprocess.run([sys.executable, str(script)], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[-3, 0, 1, 2, 4, 5, 6, 7]"


def test_a_script_without_a_guard_ends_with_advice(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(_KILLER.replace('if __name__ == "__main__":', "if True:"))
    env = os.environ | {"PYTHONPATH": str(PROJECT)}
    done = subprocess.run([sys.executable, str(script)], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "A script must call this under: if __name__ == '__main__':" in done.stderr


def test_pool_with_one_process_works_here():
    results: list[int] = []
    process_pool.run(lambda item: item * 2, [1, 2, 3], processes=1, lost=lambda item: -item, keep=results.append)
    assert results == [2, 4, 6]
