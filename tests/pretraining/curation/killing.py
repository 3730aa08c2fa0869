"""Curations that are to be killed: what runs in other processes, without pytest, so that they start quickly."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.pretraining.curation.folders import curated
from tests.pretraining.killing import die_before


def curate(data: Path, corpus: Path, processes: int = 1) -> None:
    curated(corpus, ("one", data / "one"), ("two", data / "two"), processes=processes)


def curate_until(data: Path, corpus: Path, last: int) -> None:
    """Curate, and die right before the ``last``-th operation on a file of the corpus; write the number at the end."""
    operations = die_before(last, corpus)
    curate(data, corpus)
    corpus.with_name("operations").write_text(str(operations()))


if __name__ == "__main__":
    curate(Path(sys.argv[1]), Path(sys.argv[2]), processes=2)
