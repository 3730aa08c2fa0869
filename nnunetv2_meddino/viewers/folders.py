"""Folders of label maps, made ready for viewers: a ``.seg.nrrd`` for each, and colour tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nnunetv2_meddino.errors import ConfigurationError, DataError
from nnunetv2_meddino.evaluation.pairs import Failure, segmentation_files
from nnunetv2_meddino.files import read_json
from nnunetv2_meddino.imaging.segmentation import read_segmentation
from nnunetv2_meddino.viewers.colour_tables import write_colour_tables
from nnunetv2_meddino.viewers.seg_nrrd import ENDING, check_ending, write_seg_nrrd

_ABOVE = 2
"""Folders above label maps that are searched: ``dataset.json`` is beside predictions, above ``labelsTr`` and two above
``fold_0/validation``."""


def find_dataset_json(folder: Path) -> Path:
    """Return the ``dataset.json`` of a folder of label maps.

    Raises:
        ConfigurationError: There is none there, nor in the two folders above.
    """
    folder = folder.resolve()
    for place in (folder, *folder.parents[:_ABOVE]):
        if (found := place / "dataset.json").is_file():
            return found
    msg = f"There is no dataset.json in {folder} or the two folders above, which names the labels. Give it with -l."
    raise ConfigurationError(msg)


def write_for_viewers(
    folder: Path,
    dataset_json: Path | None,
    out: Path,
    on_case: Callable[[int, int], None] = lambda done, total: None,
) -> list[Failure]:
    """Write the colour tables of a dataset, and each label map of a folder as ``NAME.seg.nrrd``.

    Args:
        folder: Label maps in any format that ``read_segmentation`` reads; subfolders are not searched.
        dataset_json: Names the labels; None: the one that ``find_dataset_json`` finds.
        out: Where; it may be ``folder``.
        on_case: Called with how many label maps are done, and the number of all.

    Returns:
        The label maps that could not be written so.

    Raises:
        ConfigurationError: There is no ``dataset.json``, its labels contradict themselves, or the files would be taken
            for further cases.
        DataError: There is no such folder, or it holds no label maps.
        OSError: A file cannot be written.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} does not exist or is not a folder.")
    labels = _labels(dataset_json or find_dataset_json(folder))
    cases = segmentation_files(folder)
    if out.resolve() == folder.resolve():
        for files in cases.values():
            check_ending(files[0].suffix)
    write_colour_tables(labels, out)
    failures = []
    for done, (case, files) in enumerate(cases.items()):
        on_case(done, len(cases))
        try:
            if len(files) > 1:
                raise DataError(f"Several files are named after one case: {', '.join(map(str, files))}. Keep one.")
            write_seg_nrrd(read_segmentation(files[0]), labels, out / f"{case}{ENDING}")
        except DataError as error:
            failures.append(Failure(case, str(error)))
    on_case(len(cases), len(cases))
    return failures


def _labels(dataset_json: Path) -> Mapping[str, Any]:
    content = read_json(dataset_json, ConfigurationError, "It must be nnU-Net's dataset.json, which names the labels.")
    labels = content.get("labels")
    if not isinstance(labels, Mapping):
        raise ConfigurationError(f"{dataset_json} has no entry 'labels'. Give nnU-Net's dataset.json with -l.")
    return labels
