#!/usr/bin/env bash
# Believed: the contours that rt-utils writes into an RTSTRUCT enclose the pixels of the mask, and the mask that it reads from a contour
#           has the contour's area; a mask that goes there and back unchanged shows it.
# True:     it draws the polygon through the centres of the outermost pixels, half a pixel inside their edge: a mask of 10 x 10 pixels of
#           1 mm, 100 mm2, is a contour of 81 mm2. Reading rounds to pixels and fills all that a polygon touches: a contour of 100 mm2, as of a
#           planning system, becomes 121 pixels. The two errors cancel on the way there and back.
# Versions: rt-utils 1.2.7, opencv-python-headless 5.0.0.93, pydicom 3.0.2, numpy 2.4.6, Python 3.11.
# Why it matters: labels made of clinical contours are half a pixel too wide on every side, and a network's predictions come back to the clinic
#           as much too narrow, by a fifth of the area of a target of 10 pixels and more of smaller ones. Scores against another
#           rasterizer fall, and the test that everyone does, there and back, finds nothing.
# Seen:     mask of 100 pixels of 1 mm: contour of 81.0 mm2, read again 100 pixels
#           contour of 100.0 mm2 along edges of pixels: read as 121 pixels
#           contour of 100.0 mm2, 0.25 mm beside them: read as 121 pixels
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --no-deps rt-utils==1.2.7 opencv-python-headless==5.0.0.93 pydicom==3.0.2 numpy==2.4.6
"$work/env/bin/python" -W ignore - "$work" <<'PYTHON'
import contextlib
import io
import sys
from pathlib import Path

import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from rt_utils import RTStructBuilder

SIDE, FIRST, LAST = 32, 10, 19
images, file = Path(sys.argv[1], "ct"), Path(sys.argv[1], "rt.dcm")
images.mkdir()
study, series, frame = (generate_uid() for _ in range(3))
for number in range(3):
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    image.SOPClassUID, image.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID = study, series, frame
    image.Modality, image.PatientName, image.PatientID, image.StudyID = "CT", "phantom", "1", "1"
    for name in ("StudyDate", "StudyTime", "AccessionNumber", "PatientBirthDate", "PatientSex", "PatientAge"):
        setattr(image, name, "")
    for name in ("ReferringPhysicianName", "StudyDescription", "SeriesDescription", "PatientSize", "PatientWeight"):
        setattr(image, name, "")
    image.SeriesNumber, image.InstanceNumber = 1, number + 1
    image.Rows = image.Columns = SIDE
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 1
    image.ImagePositionPatient, image.ImageOrientationPatient = [0, 0, number], [1, 0, 0, 0, 1, 0]
    image.PixelSpacing, image.SliceThickness = [1, 1], 1
    image.PixelData = bytes(2 * SIDE * SIDE)
    image.save_as(images / f"{number}.dcm")


def area_mm2(contour: list[float]) -> float:
    x, y, _ = np.array(contour, float).reshape(-1, 3).T
    return abs(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1))) / 2


def read() -> int:
    """Return the pixels of the mask in the one slice that has a contour."""
    return int(RTStructBuilder.create_from(str(images), str(file)).get_roi_mask_by_name("square").sum())


def square(start: float) -> list[float]:
    corners = ((start, start), (start + 10, start), (start + 10, start + 10), (start, start + 10))
    return [float(number) for x, y in corners for number in (x, y, 1)]


mask = np.zeros((SIDE, SIDE, 3), bool)
mask[FIRST : LAST + 1, FIRST : LAST + 1, 1] = True
with contextlib.redirect_stdout(io.StringIO()):  # it prints where it writes
    structures = RTStructBuilder.create_new(str(images))
    structures.add_roi(mask=mask, name="square")
    structures.save(str(file))
    (contour,) = structures.ds.ROIContourSequence[0].ContourSequence
    written, there_and_back, found = area_mm2(contour.ContourData), read(), {}
    for start in (FIRST - 0.5, FIRST - 0.25):
        contour.ContourData, contour.NumberOfContourPoints = square(start), 4
        structures.save(str(file))
        found[start] = area_mm2(contour.ContourData), read()
print(f"mask of {mask.sum()} pixels of 1 mm: contour of {written:.1f} mm2, read again {there_and_back} pixels")
on_edge, beside = found.values()
print(f"contour of {on_edge[0]:.1f} mm2 along edges of pixels: read as {on_edge[1]} pixels")
print(f"contour of {beside[0]:.1f} mm2, 0.25 mm beside them: read as {beside[1]} pixels")
sys.exit(0 if (written, there_and_back, on_edge, beside) == (81.0, 100, (100.0, 121), (100.0, 121)) else 1)
PYTHON
