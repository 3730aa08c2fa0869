#!/usr/bin/env bash
# Believed: VTK's images have a direction since version 9, so its readers put NIfTI, NRRD and MetaImage files where their headers say, the same place
#           for each.
# True:     its NIfTI reader gives neither origin nor direction (they are in a matrix beside the image), its NRRD reader no direction,
#           and its MetaImage reader the direction transposed: right for images along the axes, mirrored or not, and wrong for tilted ones and for
#           those stored sagittally. No warning. pyvista.read uses these readers.
# Versions: vtk 9.7.2, SimpleITK 2.5.7, numpy 2.2.6, Python 3.11
# Why it matters: surfaces and overlays of a scan and its segmentation, in files of two formats, lie centimetres apart, and what is
#           measured or planned in them is of another place. With axial scans in one format all looks right.
# Seen:     one bright voxel, distance of its place in VTK from the one in the header
#             along the axes: nii.gz 37 mm off, nrrd 0 mm off, mha 0 mm off
#             mirrored: nii.gz 37 mm off, nrrd 45 mm off, mha 0 mm off
#             tilted by 17 degrees: nii.gz 39 mm off, nrrd 15 mm off, mha 29 mm off
#             stored sagittally: nii.gz 56 mm off, nrrd 35 mm off, mha 35 mm off
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet vtk==9.7.2 SimpleITK==2.5.7 numpy==2.2.6
"$work/env/bin/python" -W ignore - "$work" <<'PYTHON'
import sys
from math import cos, sin
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import vtk
from vtk.util.numpy_support import vtk_to_numpy

FOLDER = Path(sys.argv[1])
VOXEL, SIZE, ORIGIN = (10, 15, 5), (40, 30, 20), (10.0, 20.0, 30.0)
TILT = 0.3
DIRECTIONS = {
    "along the axes": np.diag([1.0, 1, 1]),
    "mirrored": np.diag([-1.0, -1, 1]),
    "tilted by 17 degrees": np.array([[cos(TILT), -sin(TILT), 0], [sin(TILT), cos(TILT), 0], [0, 0, 1]]),
    "stored sagittally": np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]]),
}
READERS = {"nii.gz": vtk.vtkNIFTIImageReader, "nrrd": vtk.vtkNrrdReader, "mha": vtk.vtkMetaImageReader}


def place(path: Path, ending: str) -> np.ndarray:
    """Return where VTK puts the one voxel that is not 0, in mm."""
    reader = READERS[ending]()
    reader.SetFileName(str(path))
    reader.Update()
    image = reader.GetOutput()
    return np.array(image.GetPoint(int(vtk_to_numpy(image.GetPointData().GetScalars()).argmax())))


right = {}
for name, direction in DIRECTIONS.items():
    voxels = np.zeros(SIZE[::-1], np.int16)
    voxels[VOXEL[::-1]] = 1
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing((2.0, 3.0, 4.0))
    image.SetOrigin(ORIGIN)
    image.SetDirection(direction.ravel().tolist())
    truth = np.array(image.TransformIndexToPhysicalPoint(VOXEL))
    turned = truth * (-1, -1, 1)  # NIfTI's axes point the other way
    found = []
    for ending in READERS:
        path = FOLDER / f"image.{ending}"
        sitk.WriteImage(image, str(path))
        off = min(np.linalg.norm(place(path, ending) - where) for where in (truth, turned))
        right[name, ending] = off < 0.01
        found.append(f"{ending} {off:.0f} mm off")
    print(f"{name}: " + ", ".join(found))
expected = {(name, "mha") for name in ("along the axes", "mirrored")} | {("along the axes", "nrrd")}
sys.exit(0 if {key for key, good in right.items() if good} == expected else 1)
PYTHON
