"""Work in steps: each with a bar on a terminal, in their order, and those that need a failed one are left out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from nnunetv2_meddino.commands import Report
from nnunetv2_meddino.console import progress
from nnunetv2_meddino.errors import BusyError, CommandError


class Step(Protocol):
    """What is known of a step before it runs."""

    @property
    def name(self) -> str:
        """Unique among the steps."""

    @property
    def title(self) -> str:
        """What it does, for the terminal."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the steps that must have succeeded before."""


S = TypeVar("S", bound=Step)


@dataclass(frozen=True)
class Outcome(Generic[S]):
    """How a step ended."""

    step: S
    label: str
    """Number and title, for the terminal."""
    message: str
    """How it ended, in words."""
    succeeded: bool = True
    seconds: float = 0.0
    """Wall time; 0 for a step that was not run."""


def run_steps(steps: Sequence[S], run: Callable[[S, Report], None], *, done: int = 0) -> Iterator[Outcome[S]]:
    """Run steps in their order and yield how each ended; after one has failed, go on with those that do not need it.

    Args:
        steps: What to run.
        run: Does the work of one. A ``CommandError`` makes the step fail, a ``BusyError`` leaves it out, for another
            command does it; any other error ends all.
        done: As many steps were finished by an earlier call.
    """
    failed: dict[str, S] = {}
    for number, step in enumerate(steps, start=1):
        label = f"[{number}/{len(steps)}] {step.title}"
        if number <= done:
            yield Outcome(step, label, "already done")
            continue
        if broken := [name for name in step.needs if name in failed]:
            failed[step.name] = step
            yield Outcome(step, label, f"not started: {failed[broken[0]].title} failed", succeeded=False)
            continue
        start = time.monotonic()
        try:
            _run_with_bar(step, label, run)
        except (CommandError, BusyError) as error:
            failed[step.name] = step
            ended = "left out" if isinstance(error, BusyError) else "FAILED"
            yield Outcome(step, label, f"{ended}\n  {error}", succeeded=False)
        else:
            seconds = time.monotonic() - start
            yield Outcome(step, label, f"done in {seconds:.0f} s", seconds=seconds)


def _run_with_bar(step: S, label: str, run: Callable[[S, Report], None]) -> None:
    with progress() as show:

        def report(fraction: float | None, detail: str) -> None:
            show(label, fraction or 0, None if fraction is None else 1, detail)

        report(None, "")
        run(step, report)
