"""What the pages show besides commands: Python, records, layouts. Each is tried by what reads it."""

from __future__ import annotations

import io
import os
import re
from contextlib import redirect_stdout
from pathlib import Path

from nnunetv2_meddino.planning.presets import load_overlay
from pretraining.config import STAGES
from pretraining.config.parse import stage_configurations
from pretraining.curation.collections import load_collection
from tests.conftest import PROJECT
from tests.documentation.dry import Dry
from tests.documentation.pages import Block
from tests.documentation.programs import DocumentationError
from tests.documentation.world import World

LAYOUTS = {"docs/architecture.md": "the layout of the tree"}
"""Pages whose ``text`` blocks are no commands, and what they are instead."""

SETTINGS = "docs/pretraining.md"
"""Page whose ``yaml`` blocks hold settings of a training; elsewhere they describe sources."""

_PRINTED = re.compile(r"^print\(.*\)  # (.*)$", re.MULTILINE)
_FILE = re.compile(r"[\w./]+\.(?:py|cfg|toml)\b|\.ci/run")


def try_sample(block: Block, world: World, dry: Dry) -> str:
    """Try a block that holds no commands; return how.

    Raises:
        DocumentationError: It is wrong, or nothing is known that reads it.
    """
    file = world.work / f"sample.{block.language}"
    file.write_text(world.text_of(block.text))
    if block.language == "python":
        return _python(block, world, dry)
    if block.language == "yaml":
        if block.page == SETTINGS:
            stage_configurations(STAGES, "meddinov3", file)
        else:
            load_collection(file)
        return "read"
    if block.language == "json":
        load_overlay(file)
        return "read"
    if block.language == "text" and block.page in LAYOUTS:
        _check_layout(block.text)
        return "not a command"
    msg = f"no test knows what a block of {block.language or 'no language'} is on this page"
    raise DocumentationError(msg)


def _python(block: Block, world: World, dry: Dry) -> str:
    """Execute it; the accelerator is the CPU. What ``print`` has beside it as a comment must be what it prints."""
    dry.used = False
    said = io.StringIO()
    before = Path.cwd()
    os.chdir(world.work)
    try:
        code = world.text_of(block.text)
        with redirect_stdout(said):
            exec(compile(code.replace('"cuda"', '"cpu"'), f"{block.page}:{block.line}", "exec"), {})
    finally:
        os.chdir(before)
    if (shown := _PRINTED.findall(code)) and said.getvalue().splitlines() != shown:
        raise DocumentationError(f"the page shows {shown}, printed was {said.getvalue().splitlines()}")
    return "dry" if dry.used else "run"


def _check_layout(text: str) -> None:
    """Every file that is named must be there."""
    paths = (path.relative_to(PROJECT) for path in PROJECT.rglob("*") if path.is_file())
    files = [path.as_posix() for path in paths if path.parts[0] != ".venv"]  # what is installed is not ours
    absent = [name for name in _FILE.findall(text) if not any(f"/{file}".endswith(f"/{name}") for file in files)]
    if absent:
        msg = f"the tree has no {', '.join(absent)}"
        raise DocumentationError(msg)
