"""Curations that are to be killed: what runs in other processes, without pytest, so that they start quickly."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from tests.pretraining.corpus.folders import curated

_WATCHED = ("open", "os.rename", "os.remove", "os.mkdir", "os.link")


def curate(data: Path, corpus: Path, processes: int = 1) -> None:
    curated(corpus, ("one", data / "one"), ("two", data / "two"), processes=processes)


def curate_until(data: Path, corpus: Path, last: int) -> None:
    """Curate, and die right before the ``last``-th operation on a file of the corpus; write the number at the end."""
    operations = 0

    def watch(event: str, arguments: tuple) -> None:
        nonlocal operations
        if event in _WATCHED and arguments and str(arguments[0]).startswith(str(corpus)):
            operations += 1
            if operations == last:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    curate(data, corpus)
    corpus.with_name("operations").write_text(str(operations))


if __name__ == "__main__":
    curate(Path(sys.argv[1]), Path(sys.argv[2]), processes=2)
