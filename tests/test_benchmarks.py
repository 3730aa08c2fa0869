"""Scripts of ``benchmarks/``, which nothing else runs: what they take from the packages and one another is there."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = sorted(path.stem for path in BENCHMARKS.glob("*.py"))
OURS = ("nnunetv2_meddino", "pretraining", "benchmarks")


@pytest.mark.parametrize("script", SCRIPTS)
def test_all_that_a_script_imports_exists(script, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)  # as for a script that is run
    for node in ast.walk(ast.parse((BENCHMARKS / f"{script}.py").read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module in SCRIPTS or node.module.startswith(OURS)):
            module = importlib.import_module(node.module)
            for name in (alias.name for alias in node.names):
                assert hasattr(module, name), f"{node.module} has no {name}"
