#!/usr/bin/env bash
# Believed: a NIfTI file written by dcm2niix lies in the same place for nibabel and for SimpleITK; SimpleITK refuses geometry it cannot
#           hold, as it does for sheared files ("only supports orthonormal direction cosines").
# True:     of a CT with tilted gantry dcm2niix writes, beside a resampled copy (_Tilt), the slices as they are: the shear stands in the
#           sform, and the qform, which cannot hold it, is straight. nibabel takes the one, SimpleITK the other, and says nothing.
#           At 15 degrees they are 49 mm apart after 40 slices of 5 mm. Neither is DICOM's place: the sform makes the way from slice
#           to slice shorter by the cosine of the tilt.
# Versions: dcm2niix 1.0.20260724, SimpleITK 2.5.7, nibabel 5.4.2, pydicom 3.0.2, numpy 2.4.6, Python 3.11.
# Why it matters: head CT is tilted to spare the eyes. nnU-Net reads one data set by either library; what is converted, registered, resampled
#           or measured with the other is out of place, most at one end of the head, while every single slice looks right.
# Seen:     ERROR: pip's dependency resolver does not currently take into account all the packages that are installed. This behaviour is the
#             source of the following dependency conflicts.
#           onnx-ir 1.1.0 requires sympy>=1.13, which is not installed.
#           torchmetrics 1.9.0 requires torch>=2.0.0, which is not installed.
#           rt-utils 1.2.7 requires dataclasses, which is not installed.
#           rt-utils 1.2.7 requires opencv-python, which is not installed.
#           seg-metrics 1.2.8 requires coverage, which is not installed.
#           seg-metrics 1.2.8 requires matplotlib, which is not installed.
#           seg-metrics 1.2.8 requires pandas, which is not installed.
#           seg-metrics 1.2.8 requires parameterized, which is not installed.
#           seg-metrics 1.2.8 requires PySimpleGUI, which is not installed.
#           seg-metrics 1.2.8 requires tqdm, which is not installed.
#           onnx 1.23.2 requires protobuf>=6.31.1, which is not installed.
#           torchio 1.2.1 requires einops>=0.3, which is not installed.
#           torchio 1.2.1 requires rich>=10, which is not installed.
#           torchio 1.2.1 requires scipy>=1.7, which is not installed.
#           torchio 1.2.1 requires torch>=1.9, which is not installed.
#           torchio 1.2.1 requires tqdm>=4.40, which is not installed.
#           torchio 1.2.1 requires typer>=0.1, which is not installed.
#           monai 1.6.1 requires torch>=2.8.0, which is not installed.
#           slicerio 1.4.0 requires requests, which is not installed.
#           dcmrtstruct2nii 5 requires cleo>=2.0.0, which is not installed.
#           dcmrtstruct2nii 5 requires scikit-image>=0.17.1, which is not installed.
#           dcmrtstruct2nii 5 requires scipy>=1.2.0, which is not installed.
#           dcmrtstruct2nii 5 requires termcolor>=2.2.0, which is not installed.
#           surface-distance 0.1 requires absl-py, which is not installed.
#           surface-distance 0.1 requires scipy, which is not installed.
#           onnxruntime 1.32.0 requires protobuf>=4.25.8, which is not installed.
#           medpy 0.5.2 requires scipy>=1.10, which is not installed.
#           ct.nii: voxel (0, 0, 39) at [  0.  -15.  184.3], [  0.  -63.7 177.9] (nibabel, SimpleITK)
#           ct_Tilt_1.nii: voxel (0, 0, 39) at [  0.  -63.7 177.9], [  0.  -63.7 177.9] (nibabel, SimpleITK)
#           ct.nii: by DICOM it is at [  0. -15. 191.]; the readers are 49.2 mm apart, nibabel 6.6 mm from DICOM
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet dcm2niix==1.0.20260724 SimpleITK==2.5.7 nibabel==5.4.2 pydicom==3.0.2 numpy==2.4.6
cd "$work"
mkdir series nifti
env/bin/python - <<'PYTHON'
import math
import subprocess
import sys
from pathlib import Path

import dcm2niix
import nibabel
import numpy as np
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

SLICES, TILT = 40, math.radians(15)
series, study, frame = (generate_uid() for _ in range(3))
for place in range(SLICES):
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = CTImageStorage
    image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID = study, series, frame
    image.Modality, image.ImageType, image.InstanceNumber, image.SeriesNumber = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"], place + 1, 1
    image.StudyDate, image.StudyTime, image.PatientPosition, image.GantryDetectorTilt = "20200101", "100000", "HFS", "15"
    image.ImagePositionPatient = [0, 0, 5 * place]
    image.ImageOrientationPatient = [1, 0, 0, 0, round(math.cos(TILT), 6), round(-math.sin(TILT), 6)]
    image.PixelSpacing, image.SliceThickness = [0.5, 0.5], 5
    image.Rows = image.Columns = 32
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 1
    image.RescaleSlope, image.RescaleIntercept = 1, -1024
    image.PixelData = np.full((32, 32), 1000 + place, np.int16).tobytes()
    image.save_as(f"series/{place}.dcm", enforce_file_format=True)
subprocess.run([dcm2niix.bin, "-f", "ct", "-o", "nifti", "series"], check=True, stdout=subprocess.DEVNULL)
# NIfTI's first row is DICOM's last, 31 rows of 0.5 mm from the first; x and y of NIfTI point the other way
true = np.array([0, -15.5 * math.cos(TILT), 5 * (SLICES - 1) - 15.5 * math.sin(TILT)])
last = (0, 0, SLICES - 1)
places = {}
for file in sorted(Path("nifti").glob("*.nii*")):
    by_simpleitk = np.multiply(sitk.ReadImage(file).TransformIndexToPhysicalPoint(last), (-1, -1, 1))
    places[file.name] = (nibabel.load(file).affine @ [*last, 1])[:3], by_simpleitk
    print(f"{file.name}: voxel {last} at", ", ".join(f"{np.round(place, 1) + 0}" for place in places[file.name]), "(nibabel, SimpleITK)")
apart, short = (np.linalg.norm(places["ct.nii"][0] - other) for other in (places["ct.nii"][1], true))
print(f"ct.nii: by DICOM it is at {np.round(true, 1) + 0}; the readers are {apart:.1f} mm apart, nibabel {short:.1f} mm from DICOM")
alike = np.allclose(*places["ct_Tilt_1.nii"], atol=0.1)
sys.exit(0 if apart > 40 and short > 3 and alike else 1)
PYTHON
