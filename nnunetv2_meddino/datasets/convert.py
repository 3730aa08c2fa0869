"""Makes a raw nnU-Net dataset with an 80/20 fold of a benchmark release."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nnunetv2.utilities.dataset_name_id_conversion import find_candidate_datasets

from nnunetv2_meddino import __version__
from nnunetv2_meddino.datasets.layouts import LAYOUTS, LabelledCase, Layout, Release, find_release, problem_list
from nnunetv2_meddino.datasets.names import check_names
from nnunetv2_meddino.environment import NNUNET_PREPROCESSED, NNUNET_RAW, nnunet_folders
from nnunetv2_meddino.errors import ConfigurationError, DataError, PlanError
from nnunetv2_meddino.files import replacing, write_json
from nnunetv2_meddino.imaging.io import read_grid
from nnunetv2_meddino.imaging.segmentation import Segmentation, check_same_grid, read_segmentation
from nnunetv2_meddino.planning.presets import BenchmarkDataset, load_overlay

logger = logging.getLogger(__name__)

VALIDATION_FRACTION = 0.2
"""The paper trains on 80 % of the cases and validates on 20 % (arXiv:2509.02379)."""

SPLIT_SEED = 12345
"""Seed of the shuffle that replaces the paper's unpublished list of cases; nnU-Net's own."""


@dataclass(frozen=True)
class ConversionResult:
    """What ``convert_dataset`` made."""

    folder: Path
    """The dataset in ``nnUNet_raw``."""
    splits_file: Path
    training_cases: int
    """Training cases of fold 0."""
    validation_cases: int
    test_images: int
    corrected_headers: list[str]
    """Cases whose label map got the header of its image."""


def convert_dataset(
    name: str, source: Path, dataset_id: int, *, on_case: Callable[[int, int], None] = lambda done, total: None
) -> ConversionResult:
    """Convert a release to ``nnUNet_raw/DatasetXXX_Name`` and write the fold to ``nnUNet_preprocessed``.

    Files are hard-linked where the file system allows it, else copied. Every label map is checked first. The dataset
    appears under its name when it is complete; until then it is built in a hidden folder, where a second run continues
    from where the first one stopped.

    Args:
        name: Key of ``LAYOUTS``.
        source: Folder that holds the release, at any depth.
        dataset_id: 1 to 999, not used by another dataset.
        on_case: Called with the number of finished cases and of all cases.

    Raises:
        ConfigurationError: The name or the id cannot be used, or nnU-Net's folders are not set.
        DataError: The dataset exists, or the release is incomplete or has faulty label maps; every file is named.
    """
    if name not in LAYOUTS:
        raise ConfigurationError(f"There is no dataset {name!r} to convert; choose one of {', '.join(LAYOUTS)}.")
    layout = LAYOUTS[name]
    facts = load_overlay(name).dataset
    if facts is None:
        raise PlanError(f"plans/{name}.json does not describe its dataset. Restore the file.")
    folder, preprocessed = _target_folders(layout, dataset_id)
    release = find_release(layout, source)
    if len(release.cases) != facts.labelled_cases:
        counts = (facts.name, facts.labelled_cases, source, len(release.cases))
        logger.warning("%s has %d labelled cases, %s holds %d: results may not be comparable.", *counts)

    split = split_cases([case.name for case in release.cases])
    splits_file = preprocessed / "splits_final.json"
    _refuse_other_split(splits_file, split)
    partial = folder.with_name(f".{folder.name}.partial")
    corrected = _place_files(layout, release, facts, partial, on_case)
    write_json(_dataset_json(layout, facts, len(release.cases)), partial / "dataset.json")
    write_json([split], splits_file)
    partial.rename(folder)
    return ConversionResult(
        folder, splits_file, len(split["train"]), len(split["val"]), len(release.test_images), corrected
    )


def split_cases(names: Sequence[str]) -> dict[str, list[str]]:
    """Return one fold, ``{"train": [...], "val": [...]}``: the sorted names, shuffled with a fixed seed, 80 % and 20 %.

    Args:
        names: Cases, in any order.
    """
    shuffled = np.random.RandomState(SPLIT_SEED).permutation(sorted(names))
    count = round(VALIDATION_FRACTION * len(names))
    return {"train": sorted(map(str, shuffled[count:])), "val": sorted(map(str, shuffled[:count]))}


def _target_folders(layout: Layout, dataset_id: int) -> tuple[Path, Path]:
    """Return the dataset's folders in ``nnUNet_raw`` and ``nnUNet_preprocessed``, without making them."""
    raw, preprocessed = nnunet_folders(NNUNET_RAW, NNUNET_PREPROCESSED)
    if not 1 <= dataset_id <= 999:
        raise ConfigurationError(f"The dataset id must be 1 to 999, not {dataset_id}.")
    name = f"Dataset{dataset_id:03d}_{layout.dataset_name}"
    if (raw / name).exists():
        if (raw / name / "imagesTs").is_dir():
            check_names(raw / name / "imagesTs")
        raise DataError(f"{raw / name} exists and is left as it is. Use it, remove it, or choose another id.")
    if others := [other for other in find_candidate_datasets(dataset_id) if other != name]:
        raise DataError(f"The id {dataset_id} belongs to {others[0]} in nnU-Net's folders. Choose another id.")
    return raw / name, preprocessed / name


def _place_files(
    layout: Layout,
    release: Release,
    facts: BenchmarkDataset,
    partial: Path,
    on_case: Callable[[int, int], None],
) -> list[str]:
    """Fill the folder of the unfinished dataset; return the cases whose label map was given the image's header.

    Raises:
        DataError: Lists all problems; intact cases stay in place for the next run.
    """
    images, labels, tests = (partial / sub for sub in ("imagesTr", "labelsTr", "imagesTs"))
    cases = {case.name for case in release.cases}
    for made in (images, labels, *([tests] if release.test_images else [])):
        made.mkdir(parents=True, exist_ok=True)
    for placed, names in ((images, cases), (labels, cases), (tests, release.test_images.keys())):
        _remove_other_cases(placed, names)
    corrected, problems = [], []
    total = len(release.cases)
    for done, case in enumerate(release.cases, start=1):
        label_target = labels / f"{case.name}{layout.file_ending}"
        image_target = images / f"{case.name}_0000{layout.file_ending}"
        try:
            if not (_is_placed(case.labels, label_target) and _is_placed(case.image, image_target)):
                _place_labels(layout, case, facts, label_target)
                _place(case.image, image_target)
            if not _same_header(case.labels, label_target):
                corrected.append(case.name)
        except DataError as error:
            problems.append(str(error))
        on_case(done, total)
    if problems:
        msg = (
            f"{len(problems)} of {total} cases cannot be converted:\n{problem_list(problems)}\nCorrect these files and "
        )
        raise DataError(msg + f"convert again; the other cases are kept in {partial}.")
    for name, image in release.test_images.items():
        _place(image, tests / f"{name}_0000{layout.file_ending}")
    return corrected


def _remove_other_cases(folder: Path, names: Set[str]) -> None:
    """Remove files that an earlier run placed for cases that the release no longer holds."""
    for file in folder.glob("*"):
        if file.name.split(".")[0].removesuffix("_0000") not in names:
            file.unlink()


def _place_labels(layout: Layout, case: LabelledCase, facts: BenchmarkDataset, target: Path) -> None:
    """Check a label map and place it, with the header of its image if the layout asks for that."""
    labels = read_segmentation(case.labels)
    allowed = max(facts.labels.values())
    if labels.labels.min() < 0 or labels.labels.max() > allowed:
        found = [int(value) for value in np.unique(labels.labels) if not 0 <= value <= allowed]
        raise DataError(f"{case.labels} holds the labels {found[:5]}; {facts.name} declares 0 to {allowed}.")
    image = _header(case.image)
    try:
        check_same_grid(image, labels)
    except DataError:
        if not layout.labels_lie_on_image or image.labels.shape != labels.labels.shape:
            raise
        _write_on_grid_of(case, labels, target)
    else:
        _place(case.labels, target)


def _header(path: Path) -> Segmentation:
    """Return an image with the shape and grid in its header; its voxels are 0 and take no memory.

    Raises:
        DataError: The header cannot be read, or is not of a volume.
    """
    shape, grid = read_grid(path)
    if len(shape) != 3 or 0 in shape:
        raise DataError(f"{path} holds an array of shape {shape} where a volume is expected. Download it again.")
    return Segmentation(path, np.broadcast_to(np.uint8(0), shape), grid)


def _write_on_grid_of(case: LabelledCase, labels: Segmentation, target: Path) -> None:
    """Write a label map with the header of its image, as a new file: the old one may be a link to the release's."""
    header: Any = nibabel.load(case.image).header.copy()
    header.set_data_dtype(np.uint8)
    image = nibabel.Nifti1Image(labels.labels.T.astype(np.uint8), None, header)
    with replacing(target) as temporary:
        temporary.write_bytes(image.to_bytes())
        _copy_times(case.labels, temporary)


def _place(source: Path, target: Path) -> None:
    """Hard-link a file, or copy it where that is impossible (across file systems, for example)."""
    if _is_placed(source, target):
        return
    with replacing(target) as temporary:
        try:
            os.link(source.resolve(), temporary)
        except OSError:
            shutil.copy2(source, temporary)


def _is_placed(source: Path, target: Path) -> bool:
    """Whether a target was made from this source and not from an older version: their times agree."""
    return target.is_file() and target.stat().st_mtime_ns == source.stat().st_mtime_ns


def _copy_times(source: Path, target: Path) -> None:
    times = source.stat()
    os.utime(target, ns=(times.st_atime_ns, times.st_mtime_ns))


def _same_header(a: Path, b: Path) -> bool:
    if a.stat().st_ino == b.stat().st_ino:
        return True
    images: list[Any] = [nibabel.load(a), nibabel.load(b)]
    return bool(np.array_equal(images[0].affine, images[1].affine))


def _dataset_json(layout: Layout, facts: BenchmarkDataset, cases: int) -> dict[str, Any]:
    reader = {"overwrite_image_reader_writer": layout.reader} if layout.reader else {}
    return {
        "channel_names": {"0": "CT"},
        "labels": dict(facts.labels),
        "numTraining": cases,
        "file_ending": layout.file_ending,
        **reader,
        "name": layout.dataset_name,
        "description": facts.note,
        "reference": facts.source,
        "licence": facts.licence,
        "converted_by": f"nnunetv2_meddino {__version__}",
    }


def _refuse_other_split(path: Path, split: dict[str, list[str]]) -> None:
    """Raise an error if there is another split already: models may have been trained with it."""
    if not path.exists():
        return
    try:
        same = json.loads(path.read_text()) == [split]
    except (OSError, ValueError):
        same = False
    if not same:
        raise DataError(f"{path} holds another split and is left as it is. Remove it, or choose another id.")
