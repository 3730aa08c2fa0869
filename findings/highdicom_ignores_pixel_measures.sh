#!/usr/bin/env bash
# Believed: pixel_measures= of highdicom's Segmentation says how far apart the frames of the new object lie, whatever the images say.
# True:     while the pixel spacing is the images', it is passed over: the object gets the images' SpacingBetweenSlices, which for CT
#           and MR is a private habit of each scanner and often the gap or the thickness, not the distance. Viewers then stretch the
#           segmentation against the positions of its own frames.
# Versions: highdicom 0.28.2, pydicom 3.0.2, numpy 2.4.6, Python 3.11.
# Why it matters: whoever knows the distance from the positions and passes it gets a contradicting header without a warning.
# Seen:     distance of the positions: 2.5 mm, images' SpacingBetweenSlices: 9, passed: 2.5
#           written by highdicom: 9
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet highdicom==0.28.2 pydicom==3.0.2 numpy==2.4.6
cd "$work"
venv/bin/python -W ignore - <<'PYTHON'
import sys

import highdicom as hd
import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

study, series, frame_of_reference = (generate_uid() for _ in range(3))


def image(i):
    """Slice i of a CT, 2.5 mm after the one before."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = CTImageStorage, generate_uid(), "CT"
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = study, series, frame_of_reference
    ds.PatientID = ds.PatientName = ds.PatientBirthDate = ds.PatientSex = ds.AccessionNumber = ds.StudyID = ""
    ds.StudyDate = ds.StudyTime = ""
    ds.Rows = ds.Columns = 8
    ds.PixelSpacing, ds.SliceThickness, ds.SpacingBetweenSlices = [1, 1], 5, 9
    ds.ImageOrientationPatient, ds.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 2.5 * i]
    ds.BitsAllocated = ds.BitsStored = 16
    ds.HighBit, ds.PixelRepresentation, ds.SamplesPerPixel, ds.PhotometricInterpretation = 15, 0, 1, "MONOCHROME2"
    ds.PixelData = np.zeros((8, 8), np.uint16).tobytes()
    return ds


algorithm = hd.AlgorithmIdentificationSequence("example", codes.cid7162.ArtificialIntelligence, "1")
segment = hd.seg.SegmentDescription(
    1, "liver", codes.SCT.AnatomicalStructure, codes.SCT.Liver, hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC, algorithm
)
segmentation = hd.seg.Segmentation(
    [image(i) for i in range(4)],
    np.ones((4, 8, 8), np.uint8),
    hd.seg.SegmentationTypeValues.BINARY,
    [segment],
    generate_uid(),
    1,
    generate_uid(),
    1,
    "example",
    "example",
    "1",
    "1",
    pixel_measures=hd.PixelMeasuresSequence(pixel_spacing=(1, 1), slice_thickness=2.5, spacing_between_slices=2.5),
)
shared = segmentation.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
print("distance of the positions: 2.5 mm, images' SpacingBetweenSlices: 9, passed: 2.5")
print(f"written by highdicom: {float(shared.SpacingBetweenSlices):g}")
sys.exit(0 if shared.SpacingBetweenSlices == 9 else 1)
PYTHON
