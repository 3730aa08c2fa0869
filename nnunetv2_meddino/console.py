"""What commands show on the terminal: lines, tables, progress; rich is imported only where it is needed."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import TaskID
    from rich.table import Table

Show = Callable[..., None]
"""Called with a job, what is done of it, the total (None where unknown), and optionally ``detail``, a few words."""


def say(text: str, *, stderr: bool = False) -> None:
    """Write a line as it is."""
    (sys.stderr if stderr else sys.stdout).write(f"{text}\n")


@contextmanager
def progress(*, shown: bool = True) -> Iterator[Show]:
    """Yield a function that shows a bar for each job on a terminal, and nothing elsewhere; the bars vanish at the end.

    Without ``detail`` a bar says how many are done of how many.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(stderr=True)
    words = [TextColumn(f"{{task.{field}}}", markup=False) for field in ("description", "fields[detail]")]
    columns = (words[0], BarColumn(), words[1], TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not (shown and console.is_terminal)) as bars:
        tasks: dict[str, TaskID] = {}

        def show(job: str, done: float, total: float | None, detail: str | None = None) -> None:
            if job not in tasks:
                tasks[job] = bars.add_task(job, total=None, detail="")
            words = "" if total is None else f"{done}/{total}"
            bars.update(tasks[job], completed=done, total=total, detail=words if detail is None else detail)

        yield show


def print_table(table: Table, narrow: Table | None = None) -> None:
    """Print a table; where it goes to a file in full, however wide.

    Args:
        table: The table.
        narrow: What to print on a terminal that is too narrow for it; in full, so that lines overflow if need be. By
            default the columns shrink.
    """
    from rich.console import Console
    from rich.measure import Measurement

    console = Console()
    unlimited = console.options.update(width=1000)
    if narrow is not None and console.is_terminal:
        table = table if Measurement.get(console, unlimited, table).maximum <= console.width else narrow
    if narrow is not None or not console.is_terminal:
        console.width = max(console.width, Measurement.get(console, unlimited, table).maximum)
    console.print(table)


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
