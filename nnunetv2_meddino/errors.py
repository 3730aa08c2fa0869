"""The exceptions users can meet; each message says what happened, where, and what to do next."""

from __future__ import annotations

import sys
from types import TracebackType


class MedDINOError(Exception):
    """Base of every error this package raises on purpose. The command line prints its message without a traceback."""


class WeightsError(MedDINOError):
    """Pretrained weights are unknown, missing, gated, damaged, or do not fit the network."""


class ConfigurationError(MedDINOError):
    """An environment variable, trainer setting or network setting is unknown or contradicts another."""


class PlanError(MedDINOError):
    """A plans file or configuration cannot be used as it stands."""


class DataError(MedDINOError):
    """A dataset or label map does not follow the layout or the label range it declares."""


class CheckpointError(MedDINOError):
    """A training checkpoint cannot be written, is damaged, or does not fit what it is loaded into."""


class TrainingError(MedDINOError):
    """A training cannot go on; the message says what was seen and what is saved."""


class CommandError(MedDINOError):
    """Another program could not be started or failed; the message says why, and where its log is if it has one."""


class BusyError(MedDINOError):
    """Another command works in the folder; the message says which, and what to do if it is dead."""


class OutputError(MedDINOError):
    """A result cannot be written where it was wanted; the message says where it is instead."""


class DemoError(MedDINOError):
    """The demo cannot run, or a step of it failed; the message names the step and its log."""


def print_errors_without_traceback() -> None:
    """Make an uncaught ``MedDINOError`` end the process with its message alone; other errors keep their traceback.

    The message says what to do, and stock nnU-Net commands would bury it under a page of their own frames.
    """
    previous = sys.excepthook
    if getattr(previous, "prints_meddino_errors", False):
        return

    def hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        if isinstance(error, MedDINOError):
            sys.stderr.write(f"\n{kind.__name__}: {error}\n")
        else:
            previous(kind, error, traceback)

    hook.prints_meddino_errors = True  # type: ignore[attr-defined]
    sys.excepthook = hook
