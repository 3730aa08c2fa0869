"""The Markdown pages of the tree and their fenced blocks."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import PROJECT

SHELL = ("bash", "sh", "console")
_FENCE = re.compile(r"\s*(`{3,}|~{3,})\s*(\S*)")


@dataclass(frozen=True)
class Block:
    """One fenced block: where its first line is (from 1), what it says it holds, and what it holds."""

    page: str
    line: int
    language: str
    text: str


def all_pages() -> list[str]:
    """Return every Markdown file of the tree, relative to it; hidden folders and environments are no part of it."""
    found = []
    for folder, names, files in os.walk(PROJECT):
        names[:] = [n for n in names if not n.startswith(".") and not Path(folder, n, "pyvenv.cfg").exists()]
        found += [Path(folder, file).relative_to(PROJECT).as_posix() for file in files if file.endswith(".md")]
    return sorted(found)


def blocks(page: str, text: str | None = None) -> list[Block]:
    """Return the fenced blocks of a page.

    Raises:
        ValueError: A block is not closed.
    """
    lines = ((PROJECT / page).read_text() if text is None else text).splitlines()
    found: list[Block] = []
    fence, language, start = "", "", 0
    for number, line in enumerate(lines, start=1):
        match = _FENCE.match(line)
        if not fence and match:
            fence, language, start = match[1], match[2], number
        elif fence and line.strip() == fence:
            found.append(Block(page, start + 1, language, "\n".join(lines[start : number - 1])))
            fence = ""
    if fence:
        msg = f"{page}:{start}: the block is not closed"
        raise ValueError(msg)
    return found


def script(shell_blocks: list[Block]) -> str:
    """Return the commands of a page as one script, every command on the line that it has in the page."""
    lines: list[str] = []
    for block in shell_blocks:
        lines += [""] * (block.line - 1 - len(lines))
        lines += block.text.splitlines()
    return "\n".join(lines) + "\n"


def command_lines(block: Block) -> list[tuple[int, str]]:
    """Return the lines of a shell block that hold a command, continued lines as one, and where each begins."""
    found: list[tuple[int, str]] = []
    for number, line in enumerate(block.text.splitlines(), start=block.line):
        if found and found[-1][1].endswith("\\"):
            found[-1] = (found[-1][0], f"{found[-1][1]}\n{line}")
        elif line.strip() and (line.startswith("#SBATCH ") or not line.lstrip().startswith("#")):
            found.append((number, line))
    return found
