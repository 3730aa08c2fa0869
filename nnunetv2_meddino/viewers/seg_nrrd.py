"""Label maps as ``.seg.nrrd``, 3D Slicer's segmentations: an NRRD whose header names and colours the segments.

Sources: https://slicer.readthedocs.io/en/latest/developer_guide/modules/segmentations.html (fields of the header),
https://teem.sourceforge.net/nrrd/format.html (NRRD).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from isal import igzip
from numpy.typing import NDArray

from nnunetv2_meddino.errors import ConfigurationError, DataError
from nnunetv2_meddino.files import replacing
from nnunetv2_meddino.imaging.grid import Grid
from nnunetv2_meddino.imaging.segmentation import Segmentation, present_labels
from nnunetv2_meddino.viewers.structures import Structure, ignored_structure, structures_of

ENDING = ".seg.nrrd"


@dataclass(frozen=True)
class _Segment:
    structure: Structure
    layer: int
    """Volume of the file that holds it; segments that overlap are in different ones."""

    @property
    def value(self) -> int:
        """Return its value in its layer: the first of its labels that is not background."""
        return min(label for label in self.structure.labels if label)


def check_ending(file_ending: str) -> None:
    """Refuse ``.seg.nrrd`` files beside label maps that nnU-Net finds by the same ending.

    Raises:
        ConfigurationError: The label maps end in ``.nrrd``.
    """
    if ENDING.endswith(file_ending.lower()):
        msg = (
            f"The label maps end in {file_ending}, so nnU-Net would take NAME{ENDING} beside them for another case. "
            "Write it to a folder of its own: meddino viewers FOLDER -o OTHER."
        )
        raise ConfigurationError(msg)


def write_seg_nrrd(segmentation: Segmentation, labels: Mapping[str, Any], path: Path) -> None:
    """Write a label map as a segmentation for 3D Slicer, whole or not at all.

    Every class is a segment, also one without voxels; ``ignore`` only where there are such voxels. The voxels of a
    segment have its label as value. Regions that share labels lie in as many volumes (layers) as needed, along a fourth
    axis, which is the first in the file.

    Written slice by slice: no second label map is held, unless the type of the first is larger than its labels need.

    Args:
        segmentation: The label map.
        labels: The entry ``labels`` of ``dataset.json``.
        path: The file to be written.

    Raises:
        ConfigurationError: The labels contradict themselves.
        DataError: The label map holds labels that ``labels`` does not name.
        OSError: It cannot be written.
    """
    structures, ignored = structures_of(labels), ignored_structure(labels)
    known = {0}.union(*(structure.labels for structure in structures), ignored.labels if ignored else ())
    voxels, present = _checked(segmentation, known)
    if ignored is not None and ignored.labels[0] in present:
        structures.append(ignored)
    segments = _in_layers(structures)
    with replacing(path) as temporary, temporary.open("wb") as file:
        header = [*_geometry(voxels, segmentation.grid, _layers(segments)), *_description(voxels, segments), "", ""]
        file.write("\n".join(header).encode())
        with igzip.IGzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed:
            for part in _slices(voxels, segments):
                packed.write(np.ascontiguousarray(part).data)


def _checked(segmentation: Segmentation, known: set[int]) -> tuple[NDArray[Any], list[int]]:
    """Return the labels ``(z, y, x)`` in the smallest type that holds those that are known, and which are there."""
    ends = {int(segmentation.labels.min()), int(segmentation.labels.max())}
    unknown = {label for label in ends if not 0 <= label <= max(known)}
    if not unknown:
        dtype = next((t for t in (np.uint8, np.uint16) if max(known) <= np.iinfo(t).max), np.int32)
        voxels: NDArray[Any] = segmentation.labels.astype(dtype, copy=False)
        present = present_labels(voxels)
        unknown = set(present) - known
    if unknown:
        values = ", ".join(map(str, sorted(unknown)))
        msg = (
            f"{segmentation.source} holds labels that dataset.json does not name: {values}. Name them there, or give "
            "the dataset.json that belongs to this label map."
        )
        raise DataError(msg)
    return voxels, present


def _in_layers(structures: Sequence[Structure]) -> list[_Segment]:
    """Put each structure in the first layer whose structures share no label with it."""
    taken: list[set[int]] = []
    segments = []
    for structure in structures:
        layer = next((i for i, own in enumerate(taken) if own.isdisjoint(structure.labels)), len(taken))
        if layer == len(taken):
            taken.append(set())
        taken[layer].update(structure.labels)
        segments.append(_Segment(structure, layer))
    return segments


def _layers(segments: Sequence[_Segment]) -> int:
    return 1 + max(segment.layer for segment in segments)


def _slices(voxels: NDArray[Any], segments: Sequence[_Segment]) -> Iterator[NDArray[Any]]:
    """Yield slices ``(y, x)`` of segments' values, of several layers ``(y, x, layer)``."""
    labels = [label for segment in segments for label in segment.structure.labels]
    values = np.zeros((max(labels) + 1, _layers(segments)), voxels.dtype.newbyteorder("<"))
    for segment in segments:
        values[list(segment.structure.labels), segment.layer] = segment.value
    if values.shape[1] == 1:
        values = values[:, 0]
    for part in voxels:
        yield values[part]


def _geometry(voxels: NDArray[Any], grid: Grid, layers: int) -> list[str]:
    """Return the fields of NRRD itself; axes are ``(x, y, z)``, points left, posterior, superior."""
    names = {"u1": "unsigned char", "u2": "unsigned short", "i4": "int"}
    several = layers > 1
    axes = [_vector(direction * spacing) for direction, spacing in zip(grid.directions, grid.spacing_mm, strict=True)]
    sizes = [*([layers] if several else []), *voxels.shape[::-1]]
    return [
        "NRRD0004",
        f"type: {names[voxels.dtype.str[1:]]}",
        f"dimension: {len(sizes)}",
        "space: left-posterior-superior",
        f"sizes: {' '.join(map(str, sizes))}",
        f"space directions: {'none ' * several}{' '.join(axes[::-1])}",
        f"kinds: {'list ' * several}domain domain domain",
        "endian: little",
        "encoding: gzip",
        f"space origin: {_vector(grid.origin_mm)}",
    ]


def _vector(values: Sequence[float] | NDArray[np.float64]) -> str:
    return f"({','.join(repr(float(value)) for value in values)})"


def _description(voxels: NDArray[Any], segments: Sequence[_Segment]) -> list[str]:
    """Return the fields of 3D Slicer in its order."""
    lines = []
    extent = " ".join(f"0 {size - 1}" for size in voxels.shape[::-1])
    for number, segment in enumerate(segments):
        structure = segment.structure
        fields = {
            "Color": " ".join(f"{part:.6g}" for part in structure.colour),
            "ColorAutoGenerated": 0,
            "Extent": extent,  # of the whole volume: older Slicers cut all segments of a layer to that of its first
            "ID": f"Segment_{number + 1}",
            "LabelValue": segment.value,
            "Layer": segment.layer,
            "Name": structure.name.replace("\\", r"\\").replace("\n", r"\n"),  # as NRRD wants it
            "NameAutoGenerated": 0,
        }
        lines += [f"Segment{number}_{name}:={value}" for name, value in fields.items()]
    return [
        *lines,
        "Segmentation_ContainedRepresentationNames:=Binary labelmap|",
        "Segmentation_MasterRepresentation:=Binary labelmap",  # the older name of the next
        "Segmentation_ReferenceImageExtentOffset:=0 0 0",
        "Segmentation_SourceRepresentation:=Binary labelmap",
    ]
