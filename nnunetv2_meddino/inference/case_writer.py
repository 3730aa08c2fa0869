"""Predictions to files in the background: each with its final name only when it is whole."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from numpy.typing import NDArray

from nnunetv2_meddino.errors import DataError
from nnunetv2_meddino.files import PARTIAL_SUFFIX, naming
from nnunetv2_meddino.imaging.segmentation import Segmentation, read_segmentation
from nnunetv2_meddino.inference.model import Model
from nnunetv2_meddino.inference.predictor import Predictor
from nnunetv2_meddino.inference.preprocessing import NetworkSlices
from nnunetv2_meddino.inference.probabilities import ProbabilityFile
from nnunetv2_meddino.inference.timing import StepTimes

if TYPE_CHECKING:
    from nnunetv2_meddino.inference.dicom_seg import Kind  # which takes 80 MiB, and is for DICOM only


@dataclass(frozen=True)
class FailedCase:
    """A case that was not predicted, and why."""

    name: str
    message: str


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

    def __init__(
        self, model: Model, out: Path, times: StepTimes, dicom_seg: Kind | None = None, *, viewers: bool = False
    ) -> None:
        """Make the folder.

        Args:
            model: Whose predictions they are.
            out: The folder.
            times: Where writing is timed.
            dicom_seg: Kind of DICOM segmentation to write of cases that were read from DICOM.
            viewers: Write a ``.seg.nrrd`` of every case as well.

        Raises:
            ConfigurationError: The model's classes cannot be written as such a segmentation, or a ``.seg.nrrd`` would
                be taken for a further case.
        """
        if dicom_seg is not None:
            from nnunetv2_meddino.inference.dicom_seg import segments_of

            segments_of(model.dataset_json["labels"], dicom_seg)
        if viewers:
            from nnunetv2_meddino.viewers.seg_nrrd import check_ending

            check_ending(model.dataset_json["file_ending"])
        self.model, self.out, self.times, self._dicom_seg, self._viewers = model, out, times, dicom_seg, viewers
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
            written = _write_label_map(plans.image_reader_writer_class(), labels, folder / label_map.name, properties)
        if probabilities is not None:
            with naming(self.out / f"{name}.npz"):
                has_regions = self.model.regions is not None
                probabilities.finish(folder / f"{name}.npz", properties, plans.transpose_backward, regions=has_regions)
                (folder / f"{name}.pkl").write_bytes(pickle.dumps(dict(properties)))
        if self._viewers:
            from nnunetv2_meddino.viewers.seg_nrrd import ENDING, write_seg_nrrd

            with naming(self.out / f"{name}{ENDING}"):
                write_seg_nrrd(written, self.model.dataset_json["labels"], folder / f"{name}{ENDING}")
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


def _write_label_map(
    writer: BaseReaderWriter, labels: NDArray[Any], path: Path, properties: Mapping[str, Any]
) -> Segmentation:
    """Write labels and return them read again: SimpleITK writes a NIfTI file to a full disk without an error.

    Raises:
        OSError: The file is not whole.
    """
    try:
        writer.write_seg(labels, str(path), properties)
        return read_segmentation(path)
    except (DataError, RuntimeError) as error:  # of SimpleITK, without the system's reason
        path.write_bytes(bytes(labels.nbytes))  # raises with it
        raise OSError(errno.EIO, os.strerror(errno.EIO)) from error
