#!/usr/bin/env bash
# Believed: a DICOM reader puts slices in the order of their positions, as SimpleITK, dcm2niix and highdicom do, or refuses those whose
#           numbers and positions disagree.
# True:     MONAI's PydicomReader sorts by InstanceNumber alone. Of a series that is numbered in order of acquisition (every second slice,
#           then those between) or renumbered on export, the slices come out shuffled, with an affine of even spacing over them.
#           LoadImage picks this reader for a folder of DICOM files where the itk package is not installed.
# Versions: MONAI 1.6.1, torch 2.14.1, pydicom 3.0.2, SimpleITK 2.5.7, numpy 2.4.6, Python 3.11.
# Why it matters: InstanceNumber identifies an image and promises nothing about space. A label map drawn on the same series by other software
#           does not fit, a network sees anatomy in jumps, and prediction written back through the affine lies elsewhere.
# Seen:     numbered in space: MONAI [0, 10, 20, 30, 40, 50], affine along z 3 mm, SimpleITK [0, 10, 20, 30, 40, 50]
#           numbered every second slice first: MONAI [0, 20, 40, 10, 30, 50], affine along z 3 mm, SimpleITK [0, 10, 20, 30, 40, 50]
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet monai==1.6.1 torch==2.14.1 pydicom==3.0.2 SimpleITK==2.5.7 numpy==2.4.6
cd "$work"
env/bin/python -W ignore - <<'PYTHON'
import sys
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from monai.transforms import LoadImage
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid


def write_series(folder: Path, numbers: list[int]) -> None:
    """Write an MR series of constant slices, 3 mm apart; the value of each says its place."""
    folder.mkdir()
    series, study, frame = (generate_uid() for _ in range(3))
    for place, number in enumerate(numbers):
        image = Dataset()
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = MRImageStorage
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID = study, series, frame
        image.Modality, image.InstanceNumber = "MR", number
        image.ImagePositionPatient, image.ImageOrientationPatient = [0, 0, 3 * place], [1, 0, 0, 0, 1, 0]
        image.PixelSpacing, image.SliceThickness = [1, 1], 3
        image.Rows = image.Columns = 8
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 0
        image.PixelData = np.full((8, 8), 10 * place, np.uint16).tobytes()
        image.save_as(folder / f"{number}.dcm", enforce_file_format=True)


orders = {}
for name, numbers in (("in space", [1, 2, 3, 4, 5, 6]), ("every second slice first", [1, 4, 2, 5, 3, 6])):
    folder = Path(name)
    write_series(folder, numbers)
    by_monai = LoadImage(image_only=True)(folder)
    files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
    by_simpleitk = sitk.GetArrayFromImage(sitk.ReadImage(files))
    orders[name] = by_monai[4, 4].int().tolist(), by_simpleitk[:, 4, 4].tolist()
    print(f"numbered {name}: MONAI {orders[name][0]}, affine along z {by_monai.affine[2, 2]:g} mm, SimpleITK {orders[name][1]}")
ordered = [0, 10, 20, 30, 40, 50]
held = orders["in space"] == (ordered, ordered) and orders["every second slice first"] == ([0, 20, 40, 10, 30, 50], ordered)
sys.exit(0 if held else 1)
PYTHON
