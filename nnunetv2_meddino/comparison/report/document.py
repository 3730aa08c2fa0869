"""A report as a list of blocks, and its two forms: one self-contained HTML file, and Markdown."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path


@dataclass(frozen=True)
class Heading:
    """A title; level 1 is the report's own."""

    level: int
    text: str


@dataclass(frozen=True)
class Paragraph:
    """A few sentences."""

    text: str


@dataclass(frozen=True)
class Notes:
    """A list of warnings, or of remarks."""

    texts: tuple[str, ...]
    are_warnings: bool


@dataclass(frozen=True)
class Cell:
    """A cell of a table: the value, and smaller beside it an interval or the like."""

    text: str
    small: str = ""


@dataclass(frozen=True)
class Table:
    """A table; the first ``left`` columns hold text and are aligned left, the others hold numbers."""

    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    left: int = 1
    caption: str = ""


@dataclass(frozen=True)
class Picture:
    """A PNG file below the report's folder."""

    path: Path
    alt: str
    wide: bool = False
    """Takes the whole width; others stand two in a row where there is room."""


@dataclass(frozen=True)
class Details:
    """Blocks that are folded away."""

    title: str
    blocks: tuple[Heading | Paragraph | Table, ...]


Block = Heading | Paragraph | Notes | Table | Picture | Details

_STYLE = """
:root { --ink: #1c2430; --soft: #5b6675; --line: #e3e7ec; --paper: #fff; --back: #f5f6f8; --accent: #0b63a5; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink); line-height: 1.5;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 76rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.7rem; margin: .5rem 0 .25rem; letter-spacing: -.01em; }
h2 { font-size: 1.3rem; margin: 2.6rem 0 .5rem; padding-top: 1rem; border-top: 2px solid var(--line); }
h3 { font-size: 1.02rem; margin: 1.8rem 0 .5rem; }
p { margin: .4rem 0; max-width: 52rem; color: var(--soft); overflow-wrap: anywhere; }
ul.notes { list-style: none; margin: .8rem 0; padding: 0; }
ul.notes li { margin: .4rem 0; padding: .55rem .8rem; border-left: 4px solid #8a97a8; background: #eef1f5;
  border-radius: 0 6px 6px 0; overflow-wrap: anywhere; font-size: .93rem; }
ul.warnings li { border-color: #d9822b; background: #fff4e5; }
.scroll { overflow-x: auto; background: var(--paper); border: 1px solid var(--line);
  border-radius: 8px; margin: .6rem 0; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th, td { padding: .5rem .75rem; text-align: right; border-bottom: 1px solid var(--line); vertical-align: top;
  font-variant-numeric: tabular-nums; white-space: nowrap; }
th { color: var(--soft); font-weight: 600; font-size: .82rem; background: #fafbfc; vertical-align: bottom; }
th.text, td.text { text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 6.5rem; }
td.text:first-child { min-width: 11rem; }
td.text:first-child { font-weight: 600; }
tr:last-child td { border-bottom: 0; }
small { display: block; color: var(--soft); font-size: .78rem; font-weight: 400; }
.caption { font-size: .84rem; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: .8rem;
  margin: .8rem 0; }
.pictures img { width: 100%; height: auto; display: block; padding: .6rem; background: var(--paper);
  border: 1px solid var(--line); border-radius: 8px; }
.pictures .wide { grid-column: 1 / -1; max-width: 60rem; }
details { margin: .6rem 0; background: var(--paper); border: 1px solid var(--line); border-radius: 8px;
  padding: .6rem .8rem; }
summary { cursor: pointer; font-weight: 600; color: var(--accent); }
details .scroll { border: 0; }
@media (max-width: 40rem) { main { padding: 1rem .6rem 3rem; } th, td { padding: .45rem .5rem; }
  table { font-size: .85rem; } }
@media print { body { background: #fff; } .scroll { overflow: visible; } }
"""


def to_html(blocks: Sequence[Block]) -> str:
    """Return a page that needs no other file: styles within, pictures as base64."""
    title = next((block.text for block in blocks if isinstance(block, Heading)), "")
    parts, index = [], 0
    while index < len(blocks):
        pictures = []
        while index < len(blocks) and isinstance(picture := blocks[index], Picture):
            pictures.append(_html_picture(picture))
            index += 1
        if pictures:
            parts.append(f'<div class="pictures">{"".join(pictures)}</div>')
        else:
            parts.append(_html(blocks[index]))
            index += 1
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(parts)
        + "\n</main>\n</body>\n</html>\n"
    )


def _html(block: Block) -> str:
    if isinstance(block, Heading):
        return f"<h{block.level}>{escape(block.text)}</h{block.level}>"
    if isinstance(block, Paragraph):
        return f"<p>{escape(block.text)}</p>"
    if isinstance(block, Notes):
        kind = "notes warnings" if block.are_warnings else "notes"
        return f'<ul class="{kind}">{"".join(f"<li>{escape(text)}</li>" for text in block.texts)}</ul>'
    if isinstance(block, Table):
        return _html_table(block)
    if isinstance(block, Details):
        inner = "\n".join(_html(part) for part in block.blocks)
        return f"<details><summary>{escape(block.title)}</summary>\n{inner}\n</details>"
    return _html_picture(block)


def _html_table(table: Table) -> str:
    def row(tag: str, cells: Sequence[str]) -> str:
        kinds = [' class="text"' if column < table.left else "" for column in range(len(cells))]
        return "<tr>" + "".join(f"<{tag}{k}>{c}</{tag}>" for k, c in zip(kinds, cells, strict=True)) + "</tr>"

    def content(cell: Cell) -> str:
        return escape(cell.text) + (f"<small>{escape(cell.small)}</small>" if cell.small else "")

    head = row("th", [escape(text) for text in table.head])
    body = "\n".join(row("td", [content(cell) for cell in cells]) for cells in table.rows)
    caption = f'<p class="caption">{escape(table.caption)}</p>' if table.caption else ""
    html = f'<div class="scroll"><table>\n<thead>{head}</thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'
    return html + caption


def _html_picture(picture: Picture) -> str:
    data = base64.b64encode(picture.path.read_bytes()).decode("ascii")
    kind = ' class="wide"' if picture.wide else ""
    return f'<img{kind} alt="{escape(picture.alt)}" src="data:image/png;base64,{data}">'


def to_markdown(blocks: Sequence[Block], folder: Path) -> str:
    """Return the report as Markdown that lies in ``folder``, from where it links its pictures."""
    return "\n\n".join(_markdown(block, folder) for block in blocks) + "\n"


def _markdown(block: Block, folder: Path) -> str:
    if isinstance(block, Heading):
        return f"{'#' * block.level} {_plain(block.text)}"
    if isinstance(block, Paragraph):
        return _plain(block.text)
    if isinstance(block, Notes):
        kind = "**Warning.** " if block.are_warnings else "Note. "
        return "\n".join(f"- {kind}{_plain(text)}" for text in block.texts)
    if isinstance(block, Table):
        rule = [":---" if column < block.left else "---:" for column in range(len(block.head))]
        rows = [[f"{cell.text} {cell.small}".strip() for cell in cells] for cells in block.rows]
        lines = [[_plain(text) for text in block.head], rule, *([_plain(text) for text in row] for row in rows)]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return f"{table}\n\n{_plain(block.caption)}" if block.caption else table
    if isinstance(block, Details):
        return "\n\n".join([f"#### {_plain(block.title)}", *(_markdown(part, folder) for part in block.blocks)])
    return f"![{_plain(block.alt)}]({block.path.relative_to(folder).as_posix()})"


def _plain(text: str) -> str:
    """Escape what Markdown would take for markup; names of methods hold double underscores."""
    for mark in ("\\", "|", "_", "*", "<", "`"):
        text = text.replace(mark, f"\\{mark}")
    return text
