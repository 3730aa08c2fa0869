"""Pairing the files of references and predictions by name."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from nnunetv2_meddino.errors import DataError

ENDINGS = (
    *(".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".gipl.gz", ".gipl", ".hdr", ".mgz", ".mgh"),
    *(".png", ".bmp", ".tif", ".tiff"),
)
"""File name endings of segmentations in a folder; a file that is given itself may have any."""


@dataclass(frozen=True)
class Pair:
    """The two files of a case."""

    case: str
    reference: Path
    prediction: Path
    aligned: bool = False
    """The arrays are known to correspond voxel by voxel, whatever the reference's header says: only their shapes are
    compared, and the voxel size is the prediction's."""


@dataclass(frozen=True)
class Failure:
    """A case that could not be evaluated, and why."""

    case: str
    message: str


@dataclass(frozen=True)
class Pairing:
    """The cases of two folders."""

    pairs: list[Pair]
    failures: list[Failure] = field(default_factory=list)
    """References without exactly one prediction."""
    notes: list[str] = field(default_factory=list)
    """Remarks on predictions without a reference, and on references that were left out."""


def case_name(path: Path) -> str:
    """Return the file's name without its ending, which may consist of two parts (``.nii.gz``)."""
    for ending in ENDINGS:
        if path.name.lower().endswith(ending):
            return path.name[: -len(ending)]
    return path.stem


def pair_files(reference: Path | str, prediction: Path | str, *, only_predicted: bool = False) -> Pairing:
    """Pair the files of two folders by their names without endings, or make one case of two files.

    Args:
        reference: File or folder; subfolders are not searched.
        prediction: File or folder, as the reference.
        only_predicted: References of a folder that have no prediction are left out, with a note, and are no failures:
            a fold's validation folder holds some of the cases of ``labelsTr``.

    Raises:
        DataError: A path does not exist, one is a file and the other a folder, or a folder holds no segmentation.
    """
    reference, prediction = Path(reference), Path(prediction)
    for path in (reference, prediction):
        if not path.exists():
            raise DataError(f"{path} does not exist.")
    if reference.is_dir() != prediction.is_dir():
        folder, file = (reference, prediction) if reference.is_dir() else (prediction, reference)
        raise DataError(f"{folder} is a folder and {file} is a file; give two folders or two files.")
    if not reference.is_dir():
        return Pairing([Pair(case_name(reference), reference, prediction)])
    references, predictions = segmentation_files(reference), segmentation_files(prediction)
    pairing = Pairing([])
    if only_predicted and (absent := references.keys() - predictions.keys()):
        pairing.notes.append(f"{len(absent)} of {len(references)} references have no prediction and are left out.")
        references = {case: files for case, files in references.items() if case not in absent}
    for case in sorted(references):
        files = [*references[case], *predictions.get(case, [])]
        if case not in predictions:
            pairing.failures.append(Failure(case, f"{files[0]} has no prediction in {prediction}."))
        elif len(files) > 2:
            msg = f"Several files are named after one case: {', '.join(map(str, files))}. Keep one in each folder."
            pairing.failures.append(Failure(case, msg))
        else:
            pairing.pairs.append(Pair(case, files[0], files[1]))
    for case in sorted(predictions.keys() - references.keys()):
        pairing.notes.append(f"{predictions[case][0]} has no reference in {reference} and was not evaluated.")
    return pairing


def segmentation_files(folder: Path) -> dict[str, list[Path]]:
    """Return the segmentations of a folder by case; ``NAME.seg.nrrd`` beside another file of ``NAME`` is its copy.

    Raises:
        DataError: The folder holds none.
    """
    cases: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.name.lower().endswith(ENDINGS) and not path.name.startswith("."):
            cases.setdefault(case_name(path), []).append(path)
    if not cases:
        raise DataError(f"{folder} holds no segmentation (a file that ends in one of {', '.join(ENDINGS)}).")
    copies = {f"{case}.seg" for case in cases}
    return {case: files for case, files in cases.items() if case not in copies}
