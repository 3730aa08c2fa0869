"""Every setting is read by something."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import get_args, get_type_hints

import pretraining
from pretraining.config import RunConfig

CHECKS = "__post_init__"
"""What refuses a setting does not use it."""


def leaves(cls: type) -> Iterator[tuple[str, str]]:
    """Yield class and name of every setting."""
    for name, hint in get_type_hints(cls).items():
        nested = [part for part in (hint, *get_args(hint)) if is_dataclass(part)]
        if not nested:
            yield cls.__name__, name
        for part in nested:
            yield from leaves(part)


def names_read(tree: ast.AST) -> Iterator[str]:
    """Yield the attributes that code reads, by name or by a string for ``getattr``."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef) and node.name == CHECKS:
            continue
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            yield node.attr
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        yield from names_read(node)


def test_every_setting_is_read_outside_of_its_check():
    files = Path(pretraining.__file__).parent.rglob("*.py")
    read = {name for file in files for name in names_read(ast.parse(file.read_text()))}
    settings = set(leaves(RunConfig))
    assert len(settings) > 90
    assert {(cls, name) for cls, name in settings if name not in read} == set()
