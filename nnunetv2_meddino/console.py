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

_WIDE = 110
"""Columns of a terminal that have place for a long bar beside words and times."""

_NARROW_BAR = 14

Show = Callable[..., None]
"""Called with a job, what is done of it, the total (None where unknown), and optionally ``detail``, a few words."""


def say(text: str, *, stderr: bool = False) -> None:
    """Write a line as it is."""
    (sys.stderr if stderr else sys.stdout).write(f"{text}\n")


@contextmanager
def progress(*, shown: bool = True) -> Iterator[Show]:
    """Yield a function that shows a bar for each job on a terminal, and nothing elsewhere; the bars vanish at the end.

    Without ``detail`` a bar says how many are done of how many. The job stands above its bar where it would take the
    place of the bar, of the words beside it, or of the time.
    """
    from rich.console import Console, RenderableType
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.text import Text

    console = Console(stderr=True)
    narrow = console.width < _WIDE
    words = [TextColumn(f"{{task.fields[{field}]}}", markup=False) for field in ("beside", "detail")]
    bar = BarColumn(_NARROW_BAR if narrow else 40)

    class Bars(Progress):
        def get_renderables(self) -> Iterator[RenderableType]:
            for task in self.tasks:
                if not task.fields["beside"]:
                    yield Text(task.description)
                yield self.make_tasks_table([task])

    columns = (words[0], bar, words[1], TimeElapsedColumn(), TimeRemainingColumn())
    with Bars(*columns, console=console, transient=True, disable=not (shown and console.is_terminal)) as bars:
        tasks: dict[str, TaskID] = {}

        def show(job: str, done: float, total: float | None, detail: str | None = None) -> None:
            if job not in tasks:
                beside = "" if len(job) > console.width // 4 else job
                tasks[job] = bars.add_task(job, total=None, beside=beside, detail="")
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
