"""Scripts of ``benchmarks/``, which nothing else runs: what they take from the packages and one another is there."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = sorted(path.stem for path in BENCHMARKS.glob("*.py"))
OURS = ("nnunetv2_meddino", "pretraining", "benchmarks")

CHECK = """
import importlib, sys
for line in sys.stdin.read().split("\\n"):
    script, module, name = line.split()
    if not hasattr(importlib.import_module(module), name):
        print(script, "imports", name, "from", module)
"""


def test_all_that_scripts_import_exists():
    taken = [
        f"{script} {node.module} {alias.name}"
        for script in SCRIPTS
        for node in ast.walk(ast.parse((BENCHMARKS / f"{script}.py").read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module in SCRIPTS or node.module.startswith(OURS))
        for alias in node.names
    ]
    assert len(taken) > 100
    # in a process of its own: some set the number of threads when they are imported
    command = [sys.executable, "-W", "ignore", "-c", CHECK]
    found = subprocess.run(command, input="\n".join(taken), cwd=BENCHMARKS, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert found.stdout == ""
