"""Checkpoints of a training: written in the background, whole or not at all, for any number of processes."""

from __future__ import annotations

import errno
import json
import logging
import re
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata

from nnunetv2_meddino.errors import CheckpointError
from pretraining.engine.agreement import Agreement
from pretraining.engine.checkpointing.dcp import read_index, read_tensors, saved_tensors, write_tensors
from pretraining.engine.checkpointing.manifest import (
    DamageError,
    Record,
    check_files,
    read_record,
    sync_folder,
    write_record,
)
from pretraining.engine.checkpointing.state import FlatState

logger = logging.getLogger(__name__)

_NAME = re.compile(r"step_(\d{8,})")
_LEFTOVERS = (".step_*.partial", ".step_*.deleted")


class Checkpoints:
    """The checkpoints in a folder, one folder ``step_00012000`` each.

    A checkpoint is written under a hidden name, seen to the disk and renamed: whatever bears a final name is complete.
    All processes create this and call all its methods, in the same order; rank 0 decides for all. One run writes to a
    folder at a time.

    Args:
        folder: Of the checkpoints; made by the first save.
        keep_last: How many of the newest are kept.
        keep_every: Those whose step is a multiple of it are kept for ever.
        asynchronous: Whether ``save`` returns while the checkpoint is being written.
        timeout_s: How long processes wait for each other; None is what torch has for gloo.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep_last: int = 3,
        keep_every: int | None = None,
        asynchronous: bool = True,
        timeout_s: float | None = None,
    ) -> None:
        if keep_last < 1 or (keep_every is not None and keep_every < 1):
            raise CheckpointError(f"keep_last {keep_last} and keep_every {keep_every} must be at least 1")
        self.folder, self.keep_last, self.keep_every, self.asynchronous = folder, keep_last, keep_every, asynchronous
        self._agreement = Agreement(timeout_s)
        self._background = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._current: int | None = None
        self._checked: dict[int, Record] = {}

    def save(self, step: int, state: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
        """Save a state; it may be changed as soon as this returns.

        A save that is still being written is waited for. The step saved or loaded last is not saved again.

        Args:
            step: Number of finished steps.
            state: Mappings and lists of tensors, ``DTensor`` and plain values; tensors that are not sharded, and plain
                values, are the same in all processes.
            metadata: JSON values that ``load`` returns.

        Raises:
            CheckpointError: The state or metadata cannot be saved, the disk lacks the room, there is a later
                checkpoint, or the save before this one failed.
        """
        self.wait()
        if step == self._current:
            logger.info("step %d is already saved in %s", step, self.folder)
            return
        flat = FlatState(state)
        record = Record(step, self._agreement.world_size, torch.__version__, _json(metadata), _json(flat.values), {})
        needed = flat.bytes_on_disk(self._agreement.world_size) + 2 * len(json.dumps([record.metadata, record.values]))
        self._agreement.broadcast_from_rank0(lambda: self._prepare(step, needed))
        self._pending = self._background.submit(self._write, flat.staged(), record, needed)
        self._current = step
        if not self.asynchronous:
            self.wait()

    def wait(self) -> None:
        """Return once no save is being written.

        Raises:
            CheckpointError: The last save failed.
        """
        pending = self._pending
        if pending is None:
            return
        try:
            pending.result()
        except CheckpointError:
            self._current = None
            raise
        finally:
            if pending.done():  # it goes on after a KeyboardInterrupt
                self._pending = None

    def steps(self) -> list[int]:
        """Return the steps of all checkpoints in rising order, the one being written included; files are not read."""
        self.wait()
        return self._agreement.broadcast_from_rank0(self._steps)

    def latest(self) -> int | None:
        """Return the step of the newest checkpoint that is intact; None where none was ever saved.

        Damaged ones are renamed to ``step_00012000.damaged`` and reported in the log.

        Raises:
            CheckpointError: All are damaged, or one is of another release.
        """
        self.wait()
        return self._agreement.broadcast_from_rank0(self._latest)

    def load(self, step: int, state: Mapping[str, Any]) -> dict[str, Any]:
        """Load a checkpoint in place, whatever number of processes saved it.

        Names, shapes and types must be those saved. Parts of the top level that ``state`` lacks are left out: a state
        of only a teacher gets the teacher.

        Args:
            step: Of the checkpoint.
            state: Nested like the one saved; its tensors and plain values are overwritten.

        Returns:
            The metadata saved with it.

        Raises:
            CheckpointError: There is no such checkpoint, it is damaged, or the state does not fit it.
        """
        self.wait()
        record, index = self._agreement.broadcast_from_rank0(lambda: self._open(step))
        flat, folder = FlatState(state), self._final(step)
        if misfits := flat.misfits(saved_tensors(index), record.values):
            more = f"; and {len(misfits) - 5} more" if len(misfits) > 5 else ""
            raise CheckpointError(
                f"{folder} does not fit this run: {'; '.join(misfits[:5])}{more}. Resume with the settings it was "
                "saved with."
            )
        try:
            read_tensors(folder, flat.tensors, index, self._agreement)
        except Exception as error:
            raise CheckpointError(f"{folder} cannot be loaded: {error}. Load an older one of {self.folder}.") from error
        flat.set_values(record.values)
        self._current = step
        return record.metadata

    def _prepare(self, step: int, needed: int) -> None:
        """Make an empty folder for a checkpoint where there is room for it."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._remove_leftovers()
            if later := [other for other in self._steps() if other >= step]:
                raise CheckpointError(
                    f"{self.folder} already holds step {later[-1]}, step {step} is not saved there: resume from the "
                    "newest checkpoint, or move the later ones away"
                )
            free = shutil.disk_usage(self.folder).free
            if free < needed:
                raise self._disk_full(step, needed)
            self._partial(step).mkdir()
        except OSError as error:
            raise self._failure(step, needed, error) from error

    def _write(self, tensors: dict[str, Tensor], record: Record, needed: int) -> None:
        """Write a checkpoint from the copies of its tensors; runs in the background."""
        partial = self._partial(record.step)
        try:
            files = write_tensors(partial, tensors, self._agreement)
            self._agreement.broadcast_from_rank0(lambda: self._publish(replace(record, files=files), needed))
        except BaseException as error:
            if self._agreement.rank == 0:
                shutil.rmtree(partial, ignore_errors=True)
            raise self._failure(record.step, needed, error) from error

    def _publish(self, record: Record, needed: int) -> None:
        """Give a written checkpoint its final name, and delete older ones."""
        partial, final = self._partial(record.step), self._final(record.step)
        try:
            write_record(partial, record)
            partial.rename(final)
            sync_folder(self.folder)
        except OSError as error:
            raise self._failure(record.step, needed, error) from error
        logger.info("saved %s", final)
        self._delete_old()

    def _delete_old(self) -> None:
        for step in self._steps()[: -self.keep_last]:
            if self.keep_every is None or step % self.keep_every:
                self._checked.pop(step, None)
                # renamed first: a kill in between must leave no half checkpoint under a valid name
                _delete(self._final(step).rename(self.folder / f".{self._final(step).name}.deleted"))

    def _remove_leftovers(self) -> None:
        """Delete what killed runs were writing or deleting."""
        for pattern in _LEFTOVERS:
            for path in self.folder.glob(pattern):
                _delete(path)

    def _latest(self) -> int | None:
        for step in reversed(self._steps()):
            try:
                self._check(step)
            except DamageError as damage:
                self._set_aside(step, damage)
            except OSError as error:
                raise CheckpointError(
                    f"{self._final(step)} cannot be read: {error}. Nothing was changed; check the file system and its "
                    "permissions."
                ) from error
            else:
                return step
        if any(self.folder.glob("step_*.damaged*")):  # now or by an earlier call: not a folder without checkpoints
            raise CheckpointError(
                f"all checkpoints in {self.folder} are damaged, they are renamed to *.damaged: restore one from a "
                "backup, delete the folder to begin the stage anew, or start the run in another folder"
            )
        return None

    def _open(self, step: int) -> tuple[Record, Metadata]:
        """Return the record and the index of a checkpoint whose files are intact."""
        folder = self._final(step)
        if not folder.is_dir():
            raise CheckpointError(f"{folder} does not exist; there are the steps {self._steps()}")
        try:
            record = self._check(step)
            return record, read_index(folder, record.files)
        except (DamageError, OSError) as error:
            raise CheckpointError(f"{error}. Load the newest that is intact instead.") from error

    def _check(self, step: int) -> Record:
        """Return the record of a checkpoint; reads all its files the first time."""
        if step not in self._checked:
            record = read_record(self._final(step))
            check_files(self._final(step), record.files)
            self._checked[step] = record
        return self._checked[step]

    def _set_aside(self, step: int, damage: DamageError) -> None:
        folder = self._final(step)
        aside, number = folder.with_name(f"{folder.name}.damaged"), 1
        while aside.exists():
            number += 1
            aside = folder.with_name(f"{folder.name}.damaged.{number}")
        folder.rename(aside)
        logger.warning("checkpoint of step %d is damaged and renamed to %s: %s", step, aside, damage)

    def _steps(self) -> list[int]:
        if not self.folder.is_dir():
            return []
        matches = (_NAME.fullmatch(path.name) for path in self.folder.iterdir())
        return sorted(int(match[1]) for match in matches if match)

    def _final(self, step: int) -> Path:
        return self.folder / f"step_{step:08d}"

    def _partial(self, step: int) -> Path:
        return self.folder / f".step_{step:08d}.partial"

    def _failure(self, step: int, needed: int, error: BaseException) -> CheckpointError:
        if isinstance(error, CheckpointError):
            return error
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return self._disk_full(step, needed)
        return CheckpointError(
            f"step {step} could not be saved in {self.folder}: {error!r}. Earlier checkpoints there are untouched; "
            "mend the cause and resume."
        )

    def _disk_full(self, step: int, needed: int) -> CheckpointError:
        free = shutil.disk_usage(self.folder).free
        return CheckpointError(
            f"no room to save step {step} in {self.folder}: a checkpoint needs {needed / 2**20:.1f} MiB, "
            f"{free / 2**20:.1f} MiB are free (or a quota is reached). Earlier checkpoints there are untouched; make "
            "room, or keep fewer checkpoints, and resume."
        )


def _json(content: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return json.loads(json.dumps(content))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"a checkpoint's plain values and metadata must be JSON: {error}") from error


def _delete(path: Path) -> None:
    try:
        shutil.rmtree(path)
    except OSError as error:
        logger.warning("%s could not be deleted (%s): delete it by hand", path, error)
