"""Many cases: nnU-Net's folders of images in, its folders of predictions out."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunetv2_meddino.errors import ConfigurationError, DataError
from nnunetv2_meddino.files import write_json
from nnunetv2_meddino.imaging.dicom_files import is_dicom
from nnunetv2_meddino.inference.case_writer import CaseWriter, FailedCase, predict_into
from nnunetv2_meddino.inference.predictor import Predictor
from nnunetv2_meddino.inference.preprocessing import NetworkSlices
from nnunetv2_meddino.locks import locked

if TYPE_CHECKING:
    from nnunetv2_meddino.inference.dicom_seg import Kind  # which takes 80 MiB, and is for DICOM only

OnProgress = Callable[[str, float, int, str], None]
"""Called with the name of a case, how many cases are done (with a fraction), the number of all, and slices a second."""


@dataclass(frozen=True)
class Case:
    """The images of one patient."""

    name: str
    files: tuple[Path, ...]
    """One for each channel."""


def find_cases(folder: Path, ending: str) -> list[Case]:
    """Return the cases of a folder by name; files are called ``NAME_0000.nii.gz``, ``NAME_0001.nii.gz`` and so on.

    Args:
        folder: The images; subfolders are not searched.
        ending: Of the files, as the training's dataset.json has it.

    Raises:
        DataError: There is no such folder.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} does not exist or is not a folder.")
    pattern = re.compile(rf"(.+)_(\d{{4}}){re.escape(ending)}")
    cases: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if (match := pattern.fullmatch(path.name)) and not path.name.startswith("."):
            cases.setdefault(match[1], []).append(path)
    return [Case(name, tuple(files)) for name, files in sorted(cases.items())]


def check_channels(case: Case, ending: str) -> None:
    """Check that the files of a case are numbered from 0000 on.

    Raises:
        DataError: One is left out, so that others would be taken for it.
    """
    for i, file in enumerate(case.files):
        if file.name != f"{case.name}_{i:04d}{ending}":
            raise DataError(
                f"{file} is there but {case.name}_{i:04d}{ending} is not. Add it, or number files from 0000."
            )


def find_dicom_cases(folder: Path) -> list[Case]:
    """Return a case for each folder with DICOM images below it: the subfolders, or the folder where it holds them."""
    if any(is_dicom(path) for path in folder.iterdir() if path.is_file()):
        return [Case(folder.resolve().name, (folder,))]
    found = [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    return [
        Case(path.name, (path,)) for path in found if any(is_dicom(file) for file in path.rglob("*") if file.is_file())
    ]


def predict_folder(
    predictor: Predictor,
    source: Path,
    out: Path,
    *,
    save_probabilities: bool = False,
    dicom_seg: Kind | None = None,
    viewers: bool = False,
    overwrite: bool = True,
    num_parts: int = 1,
    part_id: int = 0,
    on_progress: OnProgress | None = None,
) -> list[FailedCase]:
    """Predict the cases of a folder; each file gets its name when it is whole.

    One image is read ahead and one written behind. A case whose images cannot be used is reported at the end.

    Args:
        predictor: The model.
        source: Folder of images, as ``find_cases`` takes it, or of DICOM series, as ``find_dicom_cases`` does.
        out: Folder of predictions, with copies of ``dataset.json`` and ``plans.json``, as ``nnUNetv2_predict`` has it.
        save_probabilities: Write ``.npz`` and ``.pkl`` for nnU-Net's ensembling as well.
        dicom_seg: Write a DICOM segmentation ``.dcm`` of this kind beside the label map of a DICOM series.
        viewers: Write a ``.seg.nrrd`` beside every label map, and colour tables.
        overwrite: Predict cases again that have been.
        num_parts: Of how many commands that share the work.
        part_id: Which of them this is, from 0.
        on_progress: Called after every batch of slices.

    Returns:
        The cases that failed.

    Raises:
        BusyError: Another command predicts this part into the folder.
        ConfigurationError: There is no such part.
        DataError: There is nothing to predict.
        OSError: Predictions cannot be written.
    """
    if not 0 <= part_id < num_parts:
        msg = (
            f"There is no -part_id {part_id} of -num_parts {num_parts}: the first part is 0, the last {num_parts - 1}."
        )
        raise ConfigurationError(msg if num_parts > 0 else f"-num_parts must be 1 or more, not {num_parts}.")
    model = predictor.model
    ending = model.dataset_json["file_ending"]
    cases = find_cases(source, ending) or find_dicom_cases(source)
    if not cases:
        msg = (
            f"{source} holds neither images called NAME_0000{ending} (further channels _0001 and so on), as those that "
            "the model was trained on, nor DICOM series. Rename the images, or name another folder."
        )
        raise DataError(msg)
    is_of_dicom = cases[0].files[0].is_dir()
    if is_of_dicom and model.plans.image_reader_writer_class is not SimpleITKIO:
        msg = f"DICOM is for models of nnU-Net's SimpleITKIO; the images of this one are {ending} files."
        raise ConfigurationError(msg)
    cases = cases[part_id::num_parts]
    arguments = {
        "list_of_lists_or_source_folder": str(source),
        "output_folder_or_list_of_truncated_output_files": str(out),
        "save_probabilities": save_probabilities,
        "overwrite": overwrite,
        "num_parts": num_parts,
        "part_id": part_id,
    }
    writer = CaseWriter(model, out, predictor.times, dicom_seg, viewers=viewers)
    with locked(out, f".part_{part_id}_of_{num_parts}.lock"), writer:
        write_json(model.dataset_json, out / "dataset.json")
        write_json(model.plans.plans, out / "plans.json")
        write_json(arguments, out / "predict_from_raw_data_args.json")
        if viewers:
            from nnunetv2_meddino.viewers.colour_tables import write_colour_tables  # which takes matplotlib's colours

            write_colour_tables(model.dataset_json["labels"], out)
        for case in cases:
            writer.delete_partial(case.name)
        if not overwrite:
            others = [".npz", ".pkl"] * save_probabilities + [".dcm"] * (is_of_dicom and dicom_seg is not None)
            others += [".seg.nrrd"] * viewers
            cases = [case for case in cases if not writer.is_written(case.name, others)]
        failed = _predict_cases(writer, predictor, cases, save_probabilities, on_progress)
    return [*failed, *writer.failed]


def _predict_cases(
    writer: CaseWriter,
    predictor: Predictor,
    cases: Sequence[Case],
    save_probabilities: bool,
    on_progress: OnProgress | None,
) -> list[FailedCase]:
    """Predict cases and hand them to the writer; return those whose images cannot be used."""
    failed: list[FailedCase] = []
    begun, slices_done = time.monotonic(), 0
    for number, (case, slices) in enumerate(_read_ahead(predictor, cases)):
        before = slices_done

        def on_slices(done: int, depth: int) -> None:
            nonlocal slices_done
            slices_done = before + done  # noqa: B023 (called within this turn only)
            if on_progress is not None:
                speed = slices_done / (time.monotonic() - begun)
                on_progress(case.name, number + done / depth, len(cases), f"{speed:.1f} slices/s")  # noqa: B023

        if isinstance(slices, FailedCase):
            failed.append(slices)
        else:
            predict_into(writer, predictor, case.name, slices, save_probabilities, on_slices)
    return failed


def _read_ahead(predictor: Predictor, cases: Sequence[Case]) -> Iterator[tuple[Case, NetworkSlices | FailedCase]]:
    """Yield cases with their images, one of which is read while the one before is worked on."""

    def read(case: Case) -> NetworkSlices | FailedCase:
        try:
            if case.files[0].is_dir():
                return predictor.preprocessed(predictor.read(case.files[0]))
            check_channels(case, predictor.model.dataset_json["file_ending"])
            return predictor.preprocessed(predictor.read(case.files))
        except DataError as error:
            return FailedCase(case.name, str(error))

    with ThreadPoolExecutor(1) as thread:
        waiting: list[tuple[Case, Future[NetworkSlices | FailedCase]]] = []
        for case in cases:
            waiting.append((case, thread.submit(read, case)))
            if len(waiting) > 1:
                ready, future = waiting.pop(0)
                yield ready, future.result()
        for ready, future in waiting:
            yield ready, future.result()
