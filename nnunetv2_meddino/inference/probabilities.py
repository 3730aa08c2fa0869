"""Probabilities of a whole case in a file, in memory that does not grow with it."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunetv2_meddino.files import naming

KEY = "probabilities"
"""Under which nnU-Net's ensembling finds them."""


class ProbabilityFile:
    """Takes the probabilities of slices as they come, and turns them into nnU-Net's ``.npz`` file at the end.

    The array of that file begins with all of the first class, but slices come with all classes: until the end they
    wait, uncompressed, in a file beside it.
    """

    def __init__(self, folder: Path, classes: int, cropped: tuple[int, int, int]) -> None:
        """Open the file in which slices wait.

        Args:
            folder: Where; it is the caller's to delete.
            classes: Channels of the network's output.
            cropped: ``(z, y, x)`` of the transposed and cropped image, whose slices are written.
        """
        self._shape = (classes, *cropped)
        self._path = folder / f"{KEY}.raw"
        self._file = self._path.open("wb")

    def write(self, start: int, values: NDArray[np.float32]) -> None:
        """Keep the probabilities of slices from ``start`` on, ``(B, K, rows, columns)``."""
        _, depth, rows, columns = self._shape
        with naming(self._path):
            for i, classes in enumerate(values):
                for k, plane in enumerate(classes):
                    self._file.seek((k * depth + start + i) * rows * columns * plane.itemsize)
                    self._file.write(np.ascontiguousarray(plane, np.float32).data)

    def finish(self, path: Path, properties: Mapping[str, Any], backward: list[int], *, regions: bool) -> None:
        """Write all of them on the image's own grid, ``(K, z, y, x)`` float32.

        Args:
            path: The ``.npz`` file.
            properties: Of the case, as ``NetworkSlices`` has them.
            backward: ``transpose_backward`` of the plans.
            regions: What was cropped belongs to no region; without regions it is background.
        """
        self._file.close()
        kept = np.memmap(self._path, np.float32, "r", shape=self._shape)
        box = tuple(slice(start, stop) for start, stop in properties["bbox_used_for_cropping"])
        before = properties["shape_before_cropping"]
        whole = tuple(before[axis] for axis in backward)
        with (
            zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
            archive.open(f"{KEY}.npy", "w", force_zip64=True) as entry,
        ):
            header = {"descr": np.dtype(np.float32).str, "fortran_order": False, "shape": (len(kept), *whole)}
            np.lib.format.write_array_header_1_0(entry, header)
            box_backward = tuple(box[axis] for axis in backward)
            for k, values in enumerate(kept):
                outside = float(k == 0 and not regions)
                planes = values.transpose(backward)
                for z in range(whole[0]):
                    plane = np.full(whole[1:], outside, np.float32)
                    if box_backward[0].start <= z < box_backward[0].stop:
                        plane[box_backward[1:]] = planes[z - box_backward[0].start]
                    entry.write(plane.data)
        self._path.unlink()
