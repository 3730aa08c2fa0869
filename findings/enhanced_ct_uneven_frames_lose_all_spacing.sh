#!/usr/bin/env bash
# Believed: where the frames of an Enhanced CT object are not evenly spaced, or not stored in the order of their positions, SimpleITK
#           warns, as it does for a series of files, and at least the pixel spacing is that of the header.
# True:     it gives 1 x 1 x 1 mm: the pixel spacing, which the header states for all frames, is dropped too. Frames stay in stored
#           order. No error, no warning. An even pile, also one from head to feet, is read right.
# Versions: SimpleITK 2.5.7, pydicom 3.0.2, numpy 2.4.6, Python 3.11.
# Why it matters: volumes, distances and nnU-Net's target spacing come out wrong, in plane too, for a scan that lacks one slice or
#           whose frames are stored by another index.
# Seen:     z = 0, 2.5, 5, 7.5:  spacing (0.8, 0.8, 2.5), frames 0 1 2 3, direction of z 1
#           z = 7.5, 5, 2.5, 0:  spacing (0.8, 0.8, 2.5), frames 0 1 2 3, direction of z -1
#           z = 0, 2.5, 5, 12.5: spacing (1.0, 1.0, 1.0), frames 0 1 2 3, direction of z 1
#           z = 0, 5, 2.5, 7.5:  spacing (1.0, 1.0, 1.0), frames 0 1 2 3, direction of z 1
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet SimpleITK==2.5.7 pydicom==3.0.2 numpy==2.4.6
cd "$work"
venv/bin/python - 2>&1 <<'PYTHON'
import sys

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid


def write(path, heights_mm):
    """Write an Enhanced CT whose frame k holds the value k at the k-th height."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = EnhancedCTImageStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    item = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
    item.SOPClassUID, item.SOPInstanceUID = EnhancedCTImageStorage, meta.MediaStorageSOPInstanceUID
    item.PatientID, item.Modality, item.InstanceNumber = "phantom", "CT", 1
    item.StudyInstanceUID, item.SeriesInstanceUID, item.FrameOfReferenceUID = "1.2.3", "1.2.3.4", "1.2.3.5"
    item.NumberOfFrames, item.Rows, item.Columns = len(heights_mm), 8, 8
    item.SamplesPerPixel, item.PhotometricInterpretation = 1, "MONOCHROME2"
    item.BitsAllocated = item.BitsStored = 16
    item.HighBit, item.PixelRepresentation = 15, 0
    measures, plane, values, shared = Dataset(), Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.8, 0.8], 2.5
    plane.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    values.RescaleIntercept, values.RescaleSlope, values.RescaleType = 0, 1, "HU"
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
    shared.PixelValueTransformationSequence = [values]
    item.SharedFunctionalGroupsSequence = [shared]
    item.PerFrameFunctionalGroupsSequence = []
    for height_mm in heights_mm:
        place, frame = Dataset(), Dataset()
        place.ImagePositionPatient = [0, 0, height_mm]
        frame.PlanePositionSequence = [place]
        item.PerFrameFunctionalGroupsSequence.append(frame)
    item.PixelData = np.stack([np.full((8, 8), k, np.uint16) for k in range(len(heights_mm))]).tobytes()
    pydicom.dcmwrite(path, item, enforce_file_format=True)


spacings = []
for heights_mm in ((0, 2.5, 5, 7.5), (7.5, 5, 2.5, 0), (0, 2.5, 5, 12.5), (0, 5, 2.5, 7.5)):
    write("enhanced.dcm", heights_mm)
    image = sitk.ReadImage("enhanced.dcm")
    spacings.append(tuple(round(size, 3) for size in image.GetSpacing()))
    order = " ".join(str(value) for value in sitk.GetArrayFromImage(image)[:, 0, 0])
    heights = f"z = {', '.join(map(str, heights_mm))}:"
    print(f"{heights:20} spacing {spacings[-1]}, frames {order}, direction of z {image.GetDirection()[8]:.0f}")
sys.exit(0 if spacings == [(0.8, 0.8, 2.5)] * 2 + [(1.0, 1.0, 1.0)] * 2 else 1)
PYTHON
