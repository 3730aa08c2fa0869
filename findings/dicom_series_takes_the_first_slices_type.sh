#!/usr/bin/env bash
# Believed: SimpleITK's ImageSeriesReader applies each CT slice's own RescaleSlope and RescaleIntercept and gives a volume whose type
#           holds all results (it widens to int32 or float64 as it does for single files).
# True:     each slice is rescaled by its own header, but the type of the volume is that of the *first* slice's result. Where the
#           first slice is stored unsigned with intercept 0, the air of the others, -1000 HU, wraps to 64536; where the first slope
#           is 1 and later ones 0.5, results are cut to whole numbers. No error, no warning. Read one by one, every slice is right.
# Versions: SimpleITK 2.5.7, pydicom 3.0.2, numpy 2.4.6, Python 3.11.
# Why it matters: a series whose slices were written by two steps (part of it re-exported in HU plus 0, PET with a slope of its own
#           for every slice) is valid DICOM, and this reader is the usual way from DICOM to NIfTI.
# Seen:     intercepts 0, -1024, -1024: series uint16 [24, 64536, 64536], one by one [24, -1000, -1000]
#           slopes 1, 0.5, 0.25:        series int32 [3071, 1023, 0], one by one [3071, 1023.5, -0.25]
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet SimpleITK==2.5.7 pydicom==3.0.2 numpy==2.4.6
cd "$work"
venv/bin/python - <<'PYTHON'
import sys
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid


def write(path, stored, number, intercept, slope):
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    item = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
    item.SOPClassUID, item.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    item.PatientID, item.Modality, item.InstanceNumber = "phantom", "CT", number + 1
    item.StudyInstanceUID = item.FrameOfReferenceUID = "1.2.3.4"
    item.SeriesInstanceUID = "1.2.3.4.5"
    item.ImagePositionPatient, item.ImageOrientationPatient = [0, 0, 2.5 * number], [1, 0, 0, 0, 1, 0]
    item.PixelSpacing, item.SliceThickness = [0.8, 0.8], 2.5
    item.Rows, item.Columns = stored.shape
    item.SamplesPerPixel, item.PhotometricInterpretation = 1, "MONOCHROME2"
    item.BitsAllocated = item.BitsStored = 16
    item.HighBit, item.PixelRepresentation = 15, 0
    item.RescaleIntercept, item.RescaleSlope = intercept, slope
    item.PixelData = stored.tobytes()
    pydicom.dcmwrite(path, item, enforce_file_format=True)


def both_ways(name, value, intercepts, slopes):
    """Return a voxel of every slice, read as a series and slice by slice, and the type of the series."""
    folder = Path(name)
    folder.mkdir()
    for number, (intercept, slope) in enumerate(zip(intercepts, slopes)):
        write(folder / f"{number}.dcm", np.full((4, 4), value, np.uint16), number, intercept, slope)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(name))
    series = sitk.GetArrayFromImage(reader.Execute())
    single = [sitk.GetArrayFromImage(sitk.ReadImage(str(folder / f"{n}.dcm")))[0, 0, 0].item() for n in range(3)]
    return series.dtype, series[:, 0, 0].tolist(), single


dtype, wrapped, right = both_ways("intercepts", 24, [0, -1024, -1024], ["1", "1", "1"])
print(f"intercepts 0, -1024, -1024: series {dtype} {wrapped}, one by one {right}")
dtype, cut, exact = both_ways("slopes", 4095, [-1024] * 3, ["1", "0.5", "0.25"])
print(f"slopes 1, 0.5, 0.25:        series {dtype} {cut}, one by one {exact}")
as_seen = right == [24, -1000, -1000] and wrapped == [24, 64536, 64536]
as_seen &= exact == [3071, 1023.5, -0.25] and cut == [3071, 1023, 0]
sys.exit(0 if as_seen else 1)
PYTHON
