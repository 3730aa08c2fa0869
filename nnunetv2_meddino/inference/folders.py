"""Many cases: nnU-Net's folders of images in, its folders of predictions out."""

from __future__ import annotations

import errno
import os
import pickle
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from numpy.typing import NDArray

from nnunetv2_meddino.errors import ConfigurationError, DataError
from nnunetv2_meddino.files import PARTIAL_SUFFIX, naming, write_json
from nnunetv2_meddino.imaging.dicom_files import is_dicom
from nnunetv2_meddino.imaging.io import read_image
from nnunetv2_meddino.inference.model import Model
from nnunetv2_meddino.inference.predictor import Predictor
from nnunetv2_meddino.inference.preprocessing import NetworkSlices
from nnunetv2_meddino.inference.probabilities import ProbabilityFile
from nnunetv2_meddino.inference.timing import StepTimes
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


@dataclass(frozen=True)
class FailedCase:
    """A case that was not predicted, and why."""

    name: str
    message: str


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
    writer = CaseWriter(model, out, predictor.times, dicom_seg)
    with locked(out, f".part_{part_id}_of_{num_parts}.lock"), writer:
        write_json(model.dataset_json, out / "dataset.json")
        write_json(model.plans.plans, out / "plans.json")
        write_json(arguments, out / "predict_from_raw_data_args.json")
        for case in cases:
            writer.delete_partial(case.name)
        if not overwrite:
            others = [".npz", ".pkl"] * save_probabilities + [".dcm"] * (is_of_dicom and dicom_seg is not None)
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


def predict_into(
    writer: CaseWriter,
    predictor: Predictor,
    name: str,
    slices: NetworkSlices,
    save_probabilities: bool,
    on_slices: Callable[[int, int], None] | None = None,
) -> None:
    """Predict one case and hand it to the writer."""
    probabilities = None
    if save_probabilities:
        z, y, x = slices.properties["shape_after_cropping_and_before_resampling"]
        heads = predictor.model.labels.num_segmentation_heads
        probabilities = ProbabilityFile(writer.partial_folder(name), heads, (z, y, x))
    labels = predictor.predict_slices(slices, probabilities, on_slices)
    writer.write(name, labels, slices, probabilities)


class CaseWriter:
    """Writes predictions in the background, one at a time, in nnU-Net's formats.

    The files of a case are made in a hidden folder and get their names when all are whole. That folder is deleted after
    an error; one that a killed command has left is deleted by the next that predicts the case.
    """

    def __init__(self, model: Model, out: Path, times: StepTimes, dicom_seg: Kind | None = None) -> None:
        """Make the folder.

        Args:
            model: Whose predictions they are.
            out: The folder.
            times: Where writing is timed.
            dicom_seg: Kind of DICOM segmentation to write of cases that were read from DICOM.

        Raises:
            ConfigurationError: The model's classes cannot be written as such a segmentation.
        """
        if dicom_seg is not None:
            from nnunetv2_meddino.inference.dicom_seg import segments_of

            segments_of(model.dataset_json["labels"], dicom_seg)
        self.model, self.out, self.times, self._dicom_seg = model, out, times, dicom_seg
        self.failed: list[FailedCase] = []
        self._ending = model.dataset_json["file_ending"]
        self._thread = ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None
        self._begun: set[str] = set()
        with naming(out):
            out.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> CaseWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._wait()
        finally:
            self._thread.shutdown(cancel_futures=True)
            for name in self._begun:
                self.delete_partial(name)

    def is_written(self, name: str, endings: Sequence[str]) -> bool:
        """Whether a case has been predicted, with files of other endings."""
        return all((self.out / f"{name}{ending}").is_file() for ending in (self._ending, *endings))

    def partial_folder(self, name: str) -> Path:
        """Return a new, hidden folder for what a case's files are made of."""
        self._begun.add(name)
        self.delete_partial(name)
        folder = self._partial_path(name)
        with naming(folder):
            folder.mkdir()
        return folder

    def delete_partial(self, name: str) -> None:
        """Delete that folder, if there is one."""
        if (folder := self._partial_path(name)).exists():
            shutil.rmtree(folder)

    def _partial_path(self, name: str) -> Path:
        return self.out / f".{name}{PARTIAL_SUFFIX}"

    def write(
        self,
        name: str,
        labels: NDArray[Any],
        slices: NetworkSlices,
        probabilities: ProbabilityFile | None = None,
    ) -> None:
        """Write a case once the one before is written.

        Raises:
            OSError: The one before could not be written.
        """
        self._wait()
        self._pending = self._thread.submit(
            self.times("write")(self._write), name, labels, slices.properties, slices.dicom, probabilities
        )

    def _wait(self) -> None:
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def _write(
        self,
        name: str,
        labels: NDArray[Any],
        properties: Mapping[str, Any],
        dicom: Sequence[Path],
        probabilities: ProbabilityFile | None,
    ) -> None:
        plans = self.model.plans
        folder = self._partial_path(name) if probabilities is not None else self.partial_folder(name)
        label_map = self.out / f"{name}{self._ending}"
        with naming(label_map):
            _write_label_map(plans.image_reader_writer_class(), labels, folder / label_map.name, properties)
        if probabilities is not None:
            with naming(self.out / f"{name}.npz"):
                has_regions = self.model.regions is not None
                probabilities.finish(folder / f"{name}.npz", properties, plans.transpose_backward, regions=has_regions)
                (folder / f"{name}.pkl").write_bytes(pickle.dumps(dict(properties)))
        if self._dicom_seg is not None and dicom:
            from nnunetv2_meddino.inference.dicom_seg import write_dicom_seg

            try:
                classes = self.model.dataset_json["labels"]
                write_dicom_seg(labels, classes, dicom, folder / f"{name}.dcm", kind=self._dicom_seg)
            except DataError as error:
                self.failed.append(FailedCase(name, str(error)))
        self._give_names(folder, label_map)
        self._begun.remove(name)

    def _give_names(self, folder: Path, label_map: Path) -> None:
        """Move the files of a case out of their folder, the label map last: where it is, everything is."""
        with naming(label_map):
            others = [file for file in folder.iterdir() if file.name != label_map.name]
            if others:
                label_map.unlink(missing_ok=True)  # an earlier one, which would not belong to them
            for file in (*others, folder / label_map.name):
                file.replace(self.out / file.name)
            folder.rmdir()


def _write_label_map(writer: BaseReaderWriter, labels: NDArray[Any], path: Path, properties: Mapping[str, Any]) -> None:
    """Write labels and read them again: SimpleITK writes a NIfTI file to a full disk without an error.

    Raises:
        OSError: The file is not whole.
    """
    try:
        writer.write_seg(labels, str(path), properties)
        read_image(path)
    except (DataError, RuntimeError) as error:  # of SimpleITK, without the system's reason
        path.write_bytes(bytes(labels.nbytes))  # raises with it
        raise OSError(errno.EIO, os.strerror(errno.EIO)) from error


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
