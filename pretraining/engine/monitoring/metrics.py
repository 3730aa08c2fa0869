"""The record of a run: one JSON line for each set of metrics and each event, whole after every interruption."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from nnunetv2_meddino.errors import DataError
from nnunetv2_meddino.files import naming, replacing
from pretraining.engine.monitoring.loggers import MetricLogger, TensorBoard, WandB

logger = logging.getLogger(__name__)

FILE = "metrics.jsonl"
_RESERVED = {"step", "event", "message", "values", "not_finite"}


class MetricsLog:
    """Writes ``metrics.jsonl``, the source of truth, and shows the same in TensorBoard and Weights & Biases.

    Every line is strict JSON on its own:

    - metrics: ``{"step": 120, "loss": 11.2, ...}``. JSON knows no NaN: a value that is not finite is ``null``, and
      ``"not_finite": {"loss": "nan"}`` says what it was.
    - events: ``{"step": 120, "event": "alarm", "message": "..."}``. The event ``baseline`` holds what was measured
      before the first step, ``"values": {"probe/dice": 0.31, ...}``: apart from the metrics of step 0, which are those
      of the first update.

    Lines hold no times of day: apart from measured speeds a resumed run writes what an undisturbed one does. Each line
    is on the disk before the call returns, so that a power cut takes no more than the line being written.

    Args:
        folder: Folder of the run, made where it is missing.
        start_step: First step that will be logged. Lines from this step on, left by a process that went further than
            its last checkpoint, are dropped; 0 begins anew.
        tensorboard: Show the metrics in TensorBoard too, in ``folder/tensorboard``.
        wandb: Project of Weights & Biases to send them to, or None.
        enabled: False on all ranks but one: nothing is read, written or sent.

    Raises:
        ConfigurationError: The package of a mirror is missing.
        DataError: A line of an existing file is no record of this class.
    """

    def __init__(
        self,
        folder: Path,
        *,
        start_step: int = 0,
        tensorboard: bool = True,
        wandb: str | None = None,
        enabled: bool = True,
    ) -> None:
        self._enabled = enabled
        self._loggers: list[MetricLogger] = []
        if not enabled:
            return
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / FILE
        _drop_from(path, start_step)
        if tensorboard:
            self._loggers.append(TensorBoard(folder / "tensorboard", start_step))
        if wandb is not None:
            self._loggers.append(WandB(wandb, folder, start_step))
        self._file = path.open("ab")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log numbers of a step; tensors of one element count as numbers.

        Raises:
            ValueError: A metric has the name of a field of the file.
        """
        if not self._enabled:
            return
        if taken := _RESERVED & values.keys():
            raise ValueError(f"metrics cannot be named {sorted(taken)}: these are fields of {FILE}")
        numbers = {name: float(value) for name, value in values.items()}
        finite, odd = _finite(numbers)
        self._append({"step": step, **finite, **odd})
        for mirror in self._loggers:
            mirror.scalars(step, numbers)

    def baseline(self, message: str, values: Mapping[str, float]) -> None:
        """Log what was measured before step 0. TensorBoard and Weights & Biases show it at step 0."""
        if not self._enabled:
            return
        finite, odd = _finite(values)
        self._append({"step": 0, "event": "baseline", "message": message, "values": finite, **odd})
        for mirror in self._loggers:
            mirror.scalars(0, values)

    def event(self, step: int, kind: str, message: str) -> None:
        """Log that something happened: an alarm, a skipped step, a hand-over."""
        if not self._enabled:
            return
        self._append({"step": step, "event": kind, "message": message})
        for mirror in self._loggers:
            mirror.event(step, kind, message)

    def close(self) -> None:
        """Close the file and the mirrors."""
        if not self._enabled:
            return
        self._file.close()
        for mirror in self._loggers:
            mirror.close()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _append(self, record: Mapping[str, Any]) -> None:
        with naming(Path(self._file.name)):
            self._file.write(json.dumps(record, allow_nan=False).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())


def _finite(values: Mapping[str, float]) -> tuple[dict[str, float | None], dict[str, Any]]:
    """Return values as JSON knows them, and a field that says what the others were, where there are any."""
    odd = {name: str(value) for name, value in values.items() if not math.isfinite(value)}
    return {**values, **dict.fromkeys(odd, None)}, {"not_finite": odd} if odd else {}


def _drop_from(path: Path, start_step: int) -> None:
    """Keep the lines before a step, byte for byte."""
    if not path.exists():
        return
    *lines, rest = path.read_bytes().split(b"\n")
    if rest and _step_of(rest) is not None:
        lines.append(rest)
    elif rest:
        logger.warning("%s ended in the middle of a line, as after a power cut; that line is dropped.", path)
    kept = []
    for number, line in enumerate(lines):
        step = _step_of(line)
        if step is None:
            raise DataError(f"{path}, line {number + 1}, is no record of a step. Restore the file, or move it away.")
        if step < start_step:
            kept.append(line + b"\n")
    if dropped := len(lines) - len(kept):
        logger.info("%s: %d lines from step %d on are dropped; training goes on from there.", path, dropped, start_step)
    with replacing(path, fsync=True) as temporary:
        temporary.write_bytes(b"".join(kept))


def _step_of(line: bytes) -> int | None:
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return None
    return step if isinstance(step, int) else None
