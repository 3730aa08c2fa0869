"""Case names that are used twice: for an image in imagesTr and for another patient's in imagesTs.

Earlier versions of ``meddino dataset`` made such LiTS datasets: imagesTs/lits_000 is test-volume-0, imagesTr/lits_000
is volume-0. Looking up or excluding a case by such a name would hit the other patient.
"""

from __future__ import annotations

import filecmp
from pathlib import Path

from nnunetv2_meddino.errors import DataError

TRAINING_IMAGES = "imagesTr"


def shared_names(images: Path) -> list[str]:
    """Return the sorted names of files in a folder that a different file in the dataset's imagesTr has too.

    Copies of training images are left out.
    """
    training = images.resolve().parent / TRAINING_IMAGES
    if not training.is_dir() or training.samefile(images):
        return []
    both = {path.name for path in images.iterdir()} & {path.name for path in training.iterdir()}
    return sorted(name for name in both if not _same(images / name, training / name))


def check_names(images: Path) -> None:
    """Refuse a folder of images whose names are ambiguous.

    Raises:
        DataError: Other images of the same names are in the dataset's imagesTr.
    """
    if shared := shared_names(images):
        msg = (
            f"{len(shared)} images in {images}, {shared[0]} among them, have the names of other images in "
            f"{TRAINING_IMAGES} beside it, so a name does not say which patient is meant. Earlier versions of meddino "
            "dataset named test images of LiTS so: convert it again, or rename them (lits_000 to lits_test_000)."
        )
        raise DataError(msg)


def _same(a: Path, b: Path) -> bool:
    return a.is_file() and b.is_file() and (a.samefile(b) or filecmp.cmp(a, b, shallow=False))
