"""What the processes of a run decide together, without disturbing the collectives of training."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch.distributed as dist

from nnunetv2_meddino.errors import MedDINOError

T = TypeVar("T")


class Agreement:
    """A group of all processes of its own, over gloo: a background thread may use it while the step uses another.

    Collectives of one group must come in the same order everywhere, which two threads cannot promise. All processes
    create it, and call its methods, in the same order. Without ``torch.distributed`` this process agrees with itself.

    Args:
        timeout_s: How long processes wait for each other; None is what torch has for gloo.
    """

    def __init__(self, timeout_s: float | None = None) -> None:
        self.group: dist.ProcessGroup | None = None
        """None for a process alone."""
        if dist.is_available() and dist.is_initialized():
            timeout = None if timeout_s is None else timedelta(seconds=timeout_s)
            self.group = cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=timeout))
        self.rank = 0 if self.group is None else dist.get_rank()
        self.world_size = 1 if self.group is None else dist.get_world_size()

    def broadcast_from_rank0(self, decide: Callable[[], T]) -> T:
        """Return everywhere what rank 0 decides.

        Raises:
            Exception: Rank 0's own error; elsewhere the same where it is one of this package, else a ``MedDINOError``.
        """
        value, failure = _attempt(decide) if self.rank == 0 else (None, None)
        if self.group is not None:
            shared = [(value, failure if isinstance(failure, MedDINOError | None) else _foreign(failure))]
            dist.broadcast_object_list(shared, src=0, group=self.group)
            if self.rank:
                value, failure = shared[0]
        if failure is not None:
            raise failure
        return value  # type: ignore[return-value]

    def gather(self, value: T) -> list[T]:
        """Return everywhere the values of all processes, in the order of their ranks."""
        if self.group is None:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.group)
        return values


def _attempt(decide: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return decide(), None
    except Exception as error:  # the others wait for an answer, whatever happened
        return None, error


def _foreign(failure: Exception) -> MedDINOError:
    """Return an error that can be pickled, whatever the other one is made of."""
    return MedDINOError(f"Process 0 failed: {failure!r}")
