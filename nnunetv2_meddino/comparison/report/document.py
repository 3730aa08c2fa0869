"""A report as a list of blocks, and its two forms: one self-contained HTML file, and Markdown.

How they look is in the templates ``report.html.j2`` and ``report.md.j2`` and in ``report.css``.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup, escape


@dataclass(frozen=True)
class Heading:
    """A title; level 1 is the report's own and comes first."""

    kind: ClassVar = "heading"
    level: int
    text: str


@dataclass(frozen=True)
class Paragraph:
    """A few sentences."""

    kind: ClassVar = "paragraph"
    text: str


@dataclass(frozen=True)
class Notes:
    """A list of warnings, or of remarks."""

    kind: ClassVar = "notes"
    texts: tuple[str, ...]
    are_warnings: bool


@dataclass(frozen=True)
class Cell:
    """A cell of a table: the value, and smaller below it an interval or the like, a line each."""

    text: str
    small: str = ""


@dataclass(frozen=True)
class Table:
    """A table; the first ``left`` columns hold text and are aligned left, the others hold numbers."""

    kind: ClassVar = "table"
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    left: int = 1
    caption: str = ""


@dataclass(frozen=True)
class Picture:
    """A PNG file below the report's folder."""

    kind: ClassVar = "picture"
    path: Path
    alt: str
    wide: bool = False
    """Takes the whole width; others stand two in a row where there is room."""


@dataclass(frozen=True)
class Details:
    """A table that is folded away."""

    kind: ClassVar = "details"
    title: str
    table: Table


Block = Heading | Paragraph | Notes | Table | Picture | Details


def to_html(blocks: Sequence[Block]) -> str:
    """Return a page that needs no other file: styles within, pictures as base64."""
    return _templates().get_template("report.html.j2").render(blocks=blocks)


def to_markdown(blocks: Sequence[Block], folder: Path) -> str:
    """Return the report as Markdown that lies in ``folder``, from where it links its pictures."""
    return _templates().get_template("report.md.j2").render(blocks=blocks, folder=folder)


def _templates() -> Environment:
    templates = Environment(
        loader=PackageLoader("nnunetv2_meddino.comparison", "report"),
        autoescape=select_autoescape(("html.j2",)),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    templates.filters["plain"] = lambda text: re.sub(r"[\\|_*<`]", r"\\\g<0>", text)  # what Markdown takes for markup
    templates.filters["breakable"] = _breakable
    templates.filters["base64"] = lambda path: base64.b64encode(path.read_bytes()).decode("ascii")
    return templates


def _breakable(text: str) -> Markup:
    """Return HTML that may break after an underscore, for names are long, but not between a number and its unit."""
    together = re.sub(r"(?<=\d) (?=(mm|%)(\W|$))", "\N{NO-BREAK SPACE}", text)
    return escape(together).replace("_", Markup("_<wbr>"))
