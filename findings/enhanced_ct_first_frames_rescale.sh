#!/usr/bin/env bash
# Believed: SimpleITK turns the frames of an Enhanced CT object into Hounsfield units by each frame's own rescale slope and intercept
#           (Pixel Value Transformation in the per-frame functional groups), as it does for single-frame files.
# True:     it applies the first frame's to all. Frames with another intercept are off by the difference, 1024 HU here, without an
#           error or a warning. pydicom shows what each frame states.
# Versions: SimpleITK 2.5.7, pydicom 3.0.2, numpy 2.4.6, Python 3.11.
# Why it matters: the per-frame place of the transformation exists because it may differ; converters and newer scanners write
#           Enhanced CT, and the values look plausible in every frame but one.
# Seen:     intercepts of the frames -1024, -1024, 0, -500
#           expected -24, -23, 1002, 503
#           SimpleITK -24, -23, -22, -21
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet SimpleITK==2.5.7 pydicom==3.0.2 numpy==2.4.6
cd "$work"
venv/bin/python - <<'PYTHON'
import sys

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid

intercepts = [-1024, -1024, 0, -500]
frames = np.stack([np.full((8, 8), 1000 + number, np.uint16) for number in range(4)])
meta = FileMetaDataset()
meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = EnhancedCTImageStorage, generate_uid()
meta.TransferSyntaxUID = ExplicitVRLittleEndian
item = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
item.SOPClassUID, item.SOPInstanceUID = EnhancedCTImageStorage, meta.MediaStorageSOPInstanceUID
item.PatientID, item.Modality, item.InstanceNumber = "phantom", "CT", 1
item.StudyInstanceUID, item.SeriesInstanceUID, item.FrameOfReferenceUID = "1.2.3", "1.2.3.4", "1.2.3.5"
item.NumberOfFrames, item.Rows, item.Columns = frames.shape
item.SamplesPerPixel, item.PhotometricInterpretation = 1, "MONOCHROME2"
item.BitsAllocated = item.BitsStored = 16
item.HighBit, item.PixelRepresentation = 15, 0
measures, plane, shared = Dataset(), Dataset(), Dataset()
measures.PixelSpacing, measures.SliceThickness = [0.8, 0.8], 2.5
plane.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
item.SharedFunctionalGroupsSequence = [shared]
item.PerFrameFunctionalGroupsSequence = []
for number, intercept in enumerate(intercepts):
    place, values, frame = Dataset(), Dataset(), Dataset()
    place.ImagePositionPatient = [0, 0, 2.5 * number]
    values.RescaleIntercept, values.RescaleSlope, values.RescaleType = intercept, 1, "HU"
    frame.PlanePositionSequence, frame.PixelValueTransformationSequence = [place], [values]
    item.PerFrameFunctionalGroupsSequence.append(frame)
item.PixelData = frames.tobytes()
pydicom.dcmwrite("enhanced.dcm", item, enforce_file_format=True)
expected = [int(plane[0, 0]) + intercept for plane, intercept in zip(frames, intercepts)]
read = sitk.GetArrayFromImage(sitk.ReadImage("enhanced.dcm"))[:, 0, 0].tolist()
print("intercepts of the frames", ", ".join(map(str, intercepts)))
print("expected", ", ".join(map(str, expected)))
print("SimpleITK", ", ".join(map(str, read)))
sys.exit(0 if read == [-24, -23, -22, -21] else 1)
PYTHON
