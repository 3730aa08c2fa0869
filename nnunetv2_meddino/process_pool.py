"""Work on many items in spawned processes; if one of them is killed, only its item is lost."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import connection
from typing import TypeVar

from nnunetv2_meddino.environment import one_thread_each
from nnunetv2_meddino.errors import ConfigurationError

Item = TypeVar("Item")
Result = TypeVar("Result")


def run(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    processes: int,
    lost: Callable[[Item], Result],
    keep: Callable[[Result], None],
) -> None:
    """Call ``work`` for every item and ``keep`` with every result, in the order in which they are ready.

    Args:
        work: Pickled, like items and results. An exception from it ends everything once the running items are finished.
        items: What to work on.
        processes: Number of spawned processes, each with one thread; with 1 the work is done in this process. In a
            script, call this under ``if __name__ == "__main__":``.
        lost: Makes the result of an item whose process was killed twice, the second time with no other item running.
        keep: Called in this process.

    Raises:
        ConfigurationError: Worker processes cannot start.
    """
    if min(processes, len(items)) <= 1:
        for item in items:
            keep(work(item))
        return
    waiting = iter(items)
    while in_flight := _run_pool(work, waiting, min(processes, len(items)), keep):
        for item in in_flight:
            if _run_pool(work, iter([item]), 1, keep):
                keep(lost(item))


def _run_pool(
    work: Callable[[Item], Result], items: Iterator[Item], processes: int, keep: Callable[[Result], None]
) -> list[Item]:
    """Work until all items are finished or a process is killed; return the items that were lost with it."""
    with one_thread_each():
        pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _start_worker)
        try:
            try:
                pool.submit(os.getpid).result()
            except BrokenProcessPool as error:
                msg = "Worker processes cannot start. A script must call this under: if __name__ == '__main__':"
                raise ConfigurationError(msg) from error
            running: dict[Future[Result], Item] = {}
            lost: list[Item] = []
            while True:
                # twice as many as processes, so that none waits for the next item
                for item in islice(items, 0 if lost else 2 * processes - len(running)):
                    try:
                        running[pool.submit(work, item)] = item
                    except BrokenProcessPool:
                        lost.append(item)
                if not running:
                    break
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    item = running.pop(future)
                    try:
                        keep(future.result())
                    except BrokenProcessPool:
                        lost.append(item)
        finally:
            pool.shutdown(cancel_futures=True)
    return lost


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, and end with it: if it was killed, a worker would wait for items forever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)
