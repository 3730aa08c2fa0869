"""How the four benchmark releases lay out their files, and which files make a case.

Label names and values and the number of cases come from ``plans/<name>.json``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nnunetv2_meddino.errors import DataError

NAMED_PROBLEMS = 10
"""How many problems a message lists; the others are only counted."""

_REORIENTING_READER = "NibabelIOWithReorient"


@dataclass(frozen=True)
class Layout:
    """One release. Patterns match the end of a file's path; their group ``number`` identifies a case."""

    dataset_name: str
    """What follows ``DatasetXXX_``."""
    image: re.Pattern[str]
    labels: re.Pattern[str]
    test_image: re.Pattern[str] | None
    """Images that are released without labels."""
    case_name: Callable[[int], str]
    file_ending: str
    example: str
    """Files that a release must hold, for the message if none is found."""
    test_name: Callable[[int], str] | None = None
    """Names of test images if the release numbers them like its cases; None to use ``case_name``."""
    last_number: int | None = None
    """Cases with a higher number are left out."""
    reader: str | None = None
    """``overwrite_image_reader_writer`` of dataset.json; None leaves the choice to nnU-Net."""
    labels_lie_on_image: bool = False
    """Label maps have the image's voxels whatever their header says, which is replaced; for uncompressed ``.nii``."""


LAYOUTS = {
    "amos22": Layout(
        dataset_name="AMOS22CT",
        image=re.compile(r"/images(Tr|Va)/amos_(?P<number>\d{4})\.nii\.gz$"),
        labels=re.compile(r"/labels(Tr|Va)/amos_(?P<number>\d{4})\.nii\.gz$"),
        test_image=re.compile(r"/imagesTs/amos_(?P<number>\d{4})\.nii\.gz$"),
        case_name="amos_{:04d}".format,
        file_ending=".nii.gz",
        example="imagesTr/amos_0001.nii.gz with labelsTr/amos_0001.nii.gz (CT cases are numbered up to 500)",
        last_number=500,  # from 507 on the images are MR (nnU-Net's Dataset218_Amos2022_task1 draws the same line)
        reader=_REORIENTING_READER,  # as nnU-Net's own converter sets it
    ),
    "btcv": Layout(
        dataset_name="BTCV",
        image=re.compile(r"/Training/img/img(?P<number>\d{4})\.nii\.gz$"),
        labels=re.compile(r"/Training/label/label(?P<number>\d{4})\.nii\.gz$"),
        test_image=re.compile(r"/Testing/img/img(?P<number>\d{4})\.nii\.gz$"),
        case_name="btcv_{:04d}".format,
        file_ending=".nii.gz",
        example="RawData/Training/img/img0001.nii.gz with RawData/Training/label/label0001.nii.gz",
    ),
    "kits23": Layout(
        dataset_name="KiTS23",
        image=re.compile(r"/case_(?P<number>\d{5})/imaging\.nii\.gz$"),
        labels=re.compile(r"/case_(?P<number>\d{5})/segmentation\.nii\.gz$"),
        test_image=None,
        case_name="case_{:05d}".format,
        file_ending=".nii.gz",
        example="dataset/case_00000/imaging.nii.gz with dataset/case_00000/segmentation.nii.gz",
        reader=_REORIENTING_READER,  # the files are not stored in axial slices
    ),
    "lits": Layout(
        dataset_name="LiTS",
        image=re.compile(r"/volume-(?P<number>\d+)\.nii$"),
        labels=re.compile(r"/segmentation-(?P<number>\d+)\.nii$"),
        test_image=re.compile(r"/test-volume-(?P<number>\d+)\.nii$"),
        case_name="lits_{:03d}".format,
        test_name="lits_test_{:03d}".format,  # test-volume-0 is another patient than volume-0
        file_ending=".nii",
        example="Training Batch 1/volume-0.nii with Training Batch 1/segmentation-0.nii",
        labels_lie_on_image=True,  # headers of some label maps are wrong: MIC-DKFZ/nnUNet issues 850 and 2751
    ),
}
"""Key of the plan overlay -> layout of the release."""


@dataclass(frozen=True)
class LabelledCase:
    """An image and its label map."""

    name: str
    image: Path
    labels: Path


@dataclass(frozen=True)
class Release:
    """The files of a release that were found in a folder."""

    cases: list[LabelledCase]
    """Sorted by name."""
    test_images: dict[str, Path]
    """Name -> image without labels, sorted by name."""


def find_release(layout: Layout, source: Path) -> Release:
    """Find the files of a release at any depth below ``source``; hidden folders are skipped.

    Raises:
        DataError: The folder does not exist or holds no case, a case has two files of one kind, or an image or a label
            map is without the other.
    """
    if not source.is_dir():
        raise DataError(f"{source} is not a folder. Give the folder into which the release was unpacked.")
    images: dict[int, list[Path]] = {}
    labels: dict[int, list[Path]] = {}
    test_images: dict[int, list[Path]] = {}
    kinds = ((layout.image, images), (layout.labels, labels), (layout.test_image, test_images))
    for path in _files(source):
        for pattern, found in kinds:
            match = pattern and pattern.search("/" + path.relative_to(source).as_posix())
            if match and (layout.last_number is None or int(match["number"]) <= layout.last_number):
                found.setdefault(int(match["number"]), []).append(path)
    if not images:
        msg = (
            f"{source} holds no case of {layout.dataset_name}; there should be files such as {layout.example}. Give "
            "the folder into which the release was unpacked."
        )
        raise DataError(msg)
    problems = [
        f"several files for one case: {', '.join(map(str, sorted(paths)))}"
        for _, found in kinds
        for paths in found.values()
        if len(paths) > 1
    ]
    problems += [f"{images[number][0]} has no label map" for number in images.keys() - labels.keys()]
    problems += [f"{labels[number][0]} has no image" for number in labels.keys() - images.keys()]
    if layout.test_name is None:
        problems += [
            f"{images[number][0]} and the test image {test_images[number][0]} have the same number"
            for number in images.keys() & test_images.keys()
        ]
    if problems:
        advice = "Complete the download, or remove duplicates."
        raise DataError(f"The release in {source} cannot be used:\n{problem_list(problems)}\n{advice}")
    name, test_name = layout.case_name, layout.test_name or layout.case_name
    cases = [LabelledCase(name(number), images[number][0], labels[number][0]) for number in sorted(images)]
    return Release(cases, {test_name(number): test_images[number][0] for number in sorted(test_images)})


def problem_list(problems: list[str]) -> str:
    """Return problems as lines: the first ``NAMED_PROBLEMS`` in alphabetical order, and the number of the others."""
    lines = [f"  {problem}" for problem in sorted(problems)[:NAMED_PROBLEMS]]
    if len(problems) > NAMED_PROBLEMS:
        lines.append(f"  and {len(problems) - NAMED_PROBLEMS} more")
    return "\n".join(lines)


def _files(folder: Path) -> Iterator[Path]:
    """Yield all files below a folder, without hidden folders and the one that macOS puts into archives."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        yield from (Path(parent, name) for name in sorted(names))
