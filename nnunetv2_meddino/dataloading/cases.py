"""nnU-Net's preprocessed cases, slice by slice: only what is asked for is decompressed and kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
from batchgenerators.utilities.file_and_folder_operations import load_pickle
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset, nnUNetDatasetBlosc2
from numpy.typing import NDArray

from nnunetv2_meddino.dataloading.draws import Label
from nnunetv2_meddino.errors import DataError

OPEN_CASES = 32
"""Cases whose files are kept open, memory-mapped."""

FOREGROUND_BYTES = 64 * 2**20
"""Memory for positions of foreground, in each worker: those of about a hundred cases with 15 classes."""


class PreprocessedCases:
    """The cases of one of nnU-Net's datasets, in its blosc2 or numpy files; satisfies ``draws.Cases``."""

    def __init__(self, dataset: nnUNetBaseDataset) -> None:
        self.dataset = dataset
        self.names: list[str] = list(dataset.identifiers)
        self._open: OrderedDict[str, tuple[Any, Any]] = OrderedDict()
        self._foreground: OrderedDict[str, dict[Label, NDArray[np.unsignedinteger]]] = OrderedDict()
        self._foreground_bytes = 0

    def __reduce__(self) -> tuple[type[PreprocessedCases], tuple[nnUNetBaseDataset]]:
        """Open files stay behind where a worker is spawned instead of forked."""
        return PreprocessedCases, (self.dataset,)

    def shape(self, case: str) -> tuple[int, int, int]:
        """Return ``(slices, rows, columns)``.

        Raises:
            DataError: The files of the case cannot be read.
        """
        slices, rows, columns = self._arrays(case)[1].shape[-3:]
        return int(slices), int(rows), int(columns)

    def properties(self, case: str) -> dict[str, Any]:
        """Return what nnU-Net's preprocessing noted of a case.

        Raises:
            DataError: The file cannot be read.
        """
        try:
            return load_pickle(self._file(case, ".pkl"))
        except Exception as error:  # damaged pickles raise anything
            raise self._unreadable(case, error) from error

    def channels(self, case: str) -> int:
        """Return the number of channels; raises as ``shape``."""
        return int(self._arrays(case)[0].shape[0])

    def read(
        self, case: str, slice_index: int, rows: tuple[int, int], columns: tuple[int, int]
    ) -> tuple[NDArray[np.float32], NDArray[np.int16]]:
        """Read a box of one slice.

        Args:
            case: Name of the case.
            slice_index: Which slice, from 0.
            rows: First row and the one after the last, inside the slice.
            columns: The same of columns.

        Returns:
            Image ``(C, rows, columns)`` and labels ``(rows, columns)``, -1 where the image had no data.

        Raises:
            DataError: The files of the case cannot be read.
        """
        image, labels = self._arrays(case)
        box = (slice_index, slice(*rows), slice(*columns))
        try:
            return np.asarray(image[(slice(None), *box)], np.float32), np.asarray(labels[(0, *box)], np.int16)
        except (OSError, RuntimeError, ValueError) as error:
            raise self._unreadable(case, error) from error

    def foreground(self, case: str) -> Mapping[Label, NDArray[np.unsignedinteger]]:
        """Return voxels of each class or region, each as an index into the flattened volume.

        They are those that nnU-Net's preprocessing has drawn, 4 bytes each instead of the 32 in its file, and kept for
        as many cases as ``FOREGROUND_BYTES`` holds.

        Raises:
            DataError: The file of the case cannot be read, or names voxels outside the volume.
        """
        if case in self._foreground:
            self._foreground.move_to_end(case)
            return self._foreground[case]
        found = self._read_foreground(case)
        self._foreground[case] = found
        self._foreground_bytes += _bytes(found)
        while self._foreground_bytes > FOREGROUND_BYTES and len(self._foreground) > 1:
            self._foreground_bytes -= _bytes(self._foreground.popitem(last=False)[1])
        return found

    def _read_foreground(self, case: str) -> dict[Label, NDArray[np.unsignedinteger]]:
        shape = self.shape(case)
        index_type = np.uint32 if np.prod(shape) < 2**32 else np.uint64
        properties = self.properties(case)
        try:
            return {
                label: np.ravel_multi_index(self._places(case, voxels), shape).astype(index_type)
                for label, voxels in properties["class_locations"].items()
            }
        except (IndexError, KeyError, TypeError, ValueError) as error:
            raise self._unreadable(case, error) from error

    def _places(self, case: str, voxels: Any) -> tuple[NDArray[np.intp], ...]:
        """Return slice, row and column of rows of channel, slice, row and column; no rows are an empty list."""
        return tuple(np.asarray(voxels, np.intp).reshape(-1, 4).T[1:])

    def _arrays(self, case: str) -> tuple[Any, Any]:
        """Return image ``(C, z, y, x)`` and labels ``(1, z, y, x)``, of which nothing is read yet."""
        if case in self._open:
            self._open.move_to_end(case)
            return self._open[case]
        try:
            arrays = self._read_arrays(case)
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            raise self._unreadable(case, error) from error
        self._open[case] = arrays
        in_memory = type(arrays[0]) is np.ndarray  # an .npz that nnU-Net has not unpacked
        while len(self._open) > (1 if in_memory else OPEN_CASES):
            self._open.popitem(last=False)
        return arrays

    def _read_arrays(self, case: str) -> tuple[Any, Any]:
        if not isinstance(self.dataset, nnUNetDatasetBlosc2):
            image, labels, *_ = self.dataset.load_case(case)
            return image, labels
        # not load_case, which reads megabytes of foreground positions as well
        options = {"mode": "r", "dparams": {"nthreads": 1}, **self.dataset.mmap_kwargs}
        image, labels = (blosc2.open(self._file(case, ending), **options) for ending in (".b2nd", "_seg.b2nd"))
        return image, labels

    def _file(self, case: str, ending: str) -> str:
        return str(Path(self.dataset.source_folder) / (case + ending))

    def _unreadable(self, case: str, error: Exception) -> DataError:
        msg = (
            f"The preprocessed case {case} in {self.dataset.source_folder} cannot be read "
            f"({type(error).__name__}: {error}). Run nnUNetv2_preprocess for this dataset again."
        )
        return DataError(msg)


def _bytes(foreground: Mapping[Label, NDArray[np.unsignedinteger]]) -> int:
    return sum(voxels.nbytes for voxels in foreground.values())
