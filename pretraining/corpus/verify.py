"""Every slice of a corpus against its checksum, to find files that a disk or a copy has damaged."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from nnunetv2_meddino.errors import DataError
from pretraining.corpus.dataset import SliceDataset
from pretraining.progress import Progress


def verify_corpus(corpus: Path, progress: Progress = lambda *_: None) -> list[str]:
    """Read every stored byte of a corpus and return what is wrong with each damaged volume; none if all are whole.

    The first damaged slice of a volume ends its check, since a volume is curated again as a whole.

    Raises:
        DataError: There is no corpus, or its manifest cannot be read.
    """
    dataset = SliceDataset(corpus)
    damaged = []
    for volume, rows in groupby(range(len(dataset)), dataset.volume.__getitem__):
        try:
            for row in rows:
                dataset.check(row)
        except DataError as error:
            damaged.append(str(error))
        progress("verifying", int(volume) + 1, len(dataset.paths))
    return damaged
