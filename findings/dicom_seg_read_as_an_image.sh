#!/usr/bin/env bash
# Believed: SimpleITK reads a DICOM SEG object as a label volume: 0 and 1 (or the segment numbers) on the grid of the scan.
# True:     a BINARY SEG comes as 0 and 255, its frames one after the other along z in the order in which they are stored: all slices
#           of segment 1, then all of segment 2, empty slices left out, with the spacing and the origin that follow from that pile.
#           Segment numbers are lost. A LABELMAP SEG (Supplement 243) is refused: no reader.
# Versions: SimpleITK 2.5.7, highdicom 0.28.2, pydicom 3.0.2, numpy 2.4.6, Python 3.11.
# Why it matters: archives and viewers exchange segmentations as SEG. Handed to a metric through SimpleITK it is a volume of another
#           shape with a class 255, and where one segment fills every slice even the shape is that of the scan.
# Seen:     scan: 5 slices of 2.5 mm; segment 1 on slices 1 and 2, segment 2 on slices 2 and 3
#           BINARY through SimpleITK: shape (4, 16, 16), values [0, 255], spacing z 1.0, voxels a frame [16, 16, 9, 9]
#           BINARY through highdicom: shape (3, 16, 16), values [0, 1, 2]
#           LABELMAP through SimpleITK: refused
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet SimpleITK==2.5.7 highdicom==0.28.2 pydicom==3.0.2 numpy==2.4.6
cd "$work"
venv/bin/python -W ignore - <<'PYTHON'
import logging
import sys

import highdicom
import numpy as np
import SimpleITK as sitk
from pydicom.dataset import FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from pydicom import Dataset

logging.disable(logging.WARNING)
study, series = generate_uid(), generate_uid()


def scan_slice(number):
    item = Dataset()
    item.file_meta = FileMetaDataset()
    item.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    item.SOPClassUID, item.SOPInstanceUID = CTImageStorage, generate_uid()
    item.StudyInstanceUID, item.SeriesInstanceUID, item.FrameOfReferenceUID = study, series, study
    item.PatientID = item.PatientName = "phantom"
    for keyword in ("PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate", "StudyTime"):
        setattr(item, keyword, "")
    item.ReferringPhysicianName = item.Manufacturer = ""
    item.Modality, item.SeriesNumber, item.InstanceNumber = "CT", 1, number + 1
    item.ImagePositionPatient, item.ImageOrientationPatient = [0, 0, 2.5 * number], [1, 0, 0, 0, 1, 0]
    item.PixelSpacing, item.SliceThickness, item.Rows, item.Columns = [0.8, 0.8], 2.5, 16, 16
    item.SamplesPerPixel, item.PhotometricInterpretation = 1, "MONOCHROME2"
    item.BitsAllocated, item.BitsStored, item.HighBit, item.PixelRepresentation = 16, 16, 15, 1
    item.PixelData = np.zeros((16, 16), np.int16).tobytes()
    return item


def segment(number):
    return highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=f"segment {number}",
        segmented_property_category=codes.SCT.Organ,
        segmented_property_type=codes.SCT.Liver,
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.MANUAL,
    )


labels = np.zeros((5, 16, 16), np.uint8)
labels[1:3, 4:8, 4:8] = 1
labels[2:4, 9:12, 9:12] = 2
scan = [scan_slice(number) for number in range(5)]
for kind in ("BINARY", "LABELMAP"):
    highdicom.seg.Segmentation(
        source_images=scan,
        pixel_array=labels,
        segmentation_type=kind,
        segment_descriptions=[segment(1), segment(2)],
        series_instance_uid=generate_uid(),
        series_number=2,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="phantom",
        manufacturer_model_name="phantom",
        software_versions="1",
        device_serial_number="1",
    ).save_as(f"{kind}.dcm")
print("scan: 5 slices of 2.5 mm; segment 1 on slices 1 and 2, segment 2 on slices 2 and 3")
image = sitk.ReadImage("BINARY.dcm")
frames = sitk.GetArrayFromImage(image)
counts = np.count_nonzero(frames, axis=(1, 2)).tolist()
values = np.unique(frames).tolist()
print(
    f"BINARY through SimpleITK: shape {frames.shape}, values {values}, spacing z {image.GetSpacing()[2]}, "
    f"voxels a frame {counts}"
)
volume = highdicom.seg.segread("BINARY.dcm").get_volume(combine_segments=True, allow_missing_positions=True)
spanned = np.unique(volume.array).tolist()
print(f"BINARY through highdicom: shape {volume.array.shape}, values {spanned}")
try:
    sitk.ReadImage("LABELMAP.dcm")
    refused = False
except RuntimeError:
    refused = True
print("LABELMAP through SimpleITK:", "refused" if refused else "read")
sys.exit(0 if refused and frames.shape[0] == 4 and values == [0, 255] and spanned == [0, 1, 2] else 1)
PYTHON
