"""Command-line options as Markdown: what ``--help`` says, as tables."""

from __future__ import annotations

import argparse
import html
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence

_DEFAULT = re.compile(r"\s*\(default: (.*)\)$", re.DOTALL)


def command_page(parser: argparse.ArgumentParser, title: str, introduction: str) -> str:
    """Return a page with all sub-commands of a command."""
    parts = [f"# {title}", introduction]
    for command in subcommands(parser):
        parts += _command(command, level=2)
    return "\n\n".join(parts) + "\n"


def subcommands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Yield the parsers of the sub-commands, in the order of ``--help``."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.values()


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; cells are Markdown already."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines)


def code(text: str) -> str:
    """Return text in the typeface of code; unlike backticks it may hold anything, in tables too."""
    return f"<code>{html.escape(text)}</code>" if text else ""


def prose(text: str) -> str:
    """Return a text of ``--help`` as Markdown: what stands in backticks there is code, nothing else is markup."""
    parts = re.split(r"`+([^`]+)`+", " ".join(text.split()))
    return "".join(code(part) if number % 2 else _plain(part) for number, part in enumerate(parts))


def option_help(parser: argparse.ArgumentParser, action: argparse.Action) -> tuple[str, str]:
    """Return what an option means, and its default as ``--help`` states it, if it does."""
    text = parser._get_formatter()._expand_help(action) if action.help else ""
    stated = _DEFAULT.search(text)
    return (text[: stated.start()], stated[1]) if stated else (text, "")


def _command(parser: argparse.ArgumentParser, level: int) -> list[str]:
    name = parser.prog
    parts = [f"{'#' * level} {name}", prose(_sentence(parser.description or ""))]
    inner = list(subcommands(parser))
    if not inner:
        usage = " ".join(parser.format_usage().removeprefix("usage: ").split())
        usage = textwrap.fill(usage, 88, subsequent_indent="    ", break_on_hyphens=False, break_long_words=False)
        parts.append(f"```text\n{usage}\n```")
        parts += _options(parser)
    parts += _epilog(parser)
    for command in inner:
        parts += _command(command, level + 1)
    return parts


def _options(parser: argparse.ArgumentParser) -> list[str]:
    rows = []
    for action in parser._actions:
        if "--help" in action.option_strings or action.help == argparse.SUPPRESS:
            continue
        meaning, default = option_help(parser, action)
        rows.append([_written(parser, action), prose(meaning), code(default)])
    if not rows:
        return []
    if any(row[2] for row in rows):
        return [table(("option", "meaning", "default"), rows)]
    return [table(("option", "meaning"), [row[:2] for row in rows])]


def _written(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    """Return how an option is typed."""
    formatter = parser._get_formatter()
    if not action.option_strings:
        return code(formatter._format_args(action, formatter._get_default_metavar_for_positional(action)))
    names = ", ".join(map(code, action.option_strings))
    if action.nargs == 0:
        return names
    return f"{names} {code(formatter._format_args(action, formatter._get_default_metavar_for_optional(action)))}"


def _epilog(parser: argparse.ArgumentParser) -> list[str]:
    return [f"```text\n{parser.epilog.strip()}\n```"] if parser.epilog else []


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "." if text else ""


def _plain(text: str) -> str:
    return re.sub(r"([\\_*\[\]])", r"\\\1", html.escape(text, quote=False))
