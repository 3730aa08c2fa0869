"""Tables of a report for a paper: LaTeX that needs the package booktabs."""

from __future__ import annotations

from collections.abc import Sequence

from nnunetv2_meddino.comparison.report.document import Cell, Table
from nnunetv2_meddino.comparison.wording import wrapped

_CELL_LETTERS, _HEAD_LETTERS = 26, 12
"""In a line: eight columns then fit into the width of a page."""

_SPECIAL = {
    **{sign: rf"\{sign}" for sign in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "\N{MINUS SIGN}": "$-$",
    "\N{EN DASH}": "--",
    "\N{NO-BREAK SPACE}": "~",
}


def to_latex(tables: Sequence[tuple[str, Table]]) -> str:
    """Return tables, each with a title above it, as LaTeX for a document to read in."""
    return "\n".join([r"% \usepackage{booktabs}", *(_table(title, table) for title, table in tables)])


def _table(title: str, table: Table) -> str:
    columns = "".join("l" if column < table.left else "r" for column in range(len(table.head)))
    rows = [
        " & ".join(_cell(cell, "t", columns[column]) for column, cell in enumerate(row)) + r" \\[2pt]"
        for row in table.rows
    ]
    caption = f"{escaped(title)}. {escaped(table.caption)}".rstrip()
    head = " & ".join(_cell(Cell(wrapped(text, _HEAD_LETTERS)), "b", columns[i]) for i, text in enumerate(table.head))
    lines = [r"\begin{table}", r"\centering\footnotesize\setlength{\tabcolsep}{4pt}", rf"\caption{{{caption}}}"]
    lines += [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", rf"{head} \\", r"\midrule", *rows, r"\bottomrule"]
    return "\n".join([*lines, r"\end{tabular}", r"\end{table}", ""])


def _cell(cell: Cell, position: str, column: str) -> str:
    """Return a cell; a long name takes several lines, and what is small stands below the value."""
    lines = [escaped(line) for line in wrapped(cell.text, _CELL_LETTERS).split("\n")]
    lines += [rf"{{\scriptsize {escaped(line)}}}" for line in cell.small.split("\n") if line]
    if len(lines) == 1:
        return lines[0]
    return rf"\begin{{tabular}}[{position}]{{@{{}}{column}@{{}}}}" + r"\\".join(lines) + r"\end{tabular}"


def escaped(text: str) -> str:
    """Return a text without characters that LaTeX would take for commands."""
    return "".join(_SPECIAL.get(sign, sign) for sign in text)
