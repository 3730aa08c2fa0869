#!/usr/bin/env bash
# Believed: highdicom, which stands on pydicom, reads the pixels of a CT image as pydicom and SimpleITK do: of 12 bits stored in 16, the other
#           four do not count, and a signed value is extended to 16 bits.
# True:     highdicom takes all 16 bits. A signed value without sign extension, 0x0C18 for -1000 HU, is 3096 HU, and an overlay in the highest
#           bit, as it was part of the standard until 2004, makes 32767 HU of bone and air alike. pydicom and SimpleITK read both as
#           meant.
# Versions: highdicom 0.28.2, pydicom 3.0.2, SimpleITK 2.5.7, numpy 2.4.6, Python 3.11.
# Why it matters: whoever works on DICOM SEG with highdicom reads the images beside it by the same library (imread, get_frame), and gets air
#           denser than bone from old images, without a message.
# Seen:     meant: [-1000, -1, 0, 40]
#           signed, 12 of 16 bits: pydicom [-1000, -1, 0, 40], SimpleITK [-1000, -1, 0, 40], highdicom [3096, 4095, 0, 40]
#           overlay in bit 15 of the second: pydicom [-1000, -1, 0, 40], SimpleITK [-1000, -1, 0, 40], highdicom [-1000, 32767, 0, 40]
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet highdicom==0.28.2 pydicom==3.0.2 SimpleITK==2.5.7 numpy==2.4.6
"$work/env/bin/python" -W ignore - "$work" <<'PYTHON'
import sys
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.pixels import apply_rescale
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

MEANT = np.array([[-1000, -1, 0, 40]])


def ct(name: str, stored: np.ndarray, signed: bool, intercept: int) -> Path:
    """Write a CT image of 12 bits a pixel in cells of 16."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image = FileDataset(name, {}, file_meta=meta, preamble=bytes(128))
    image.SOPClassUID, image.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID = (generate_uid() for _ in range(3))
    image.Modality, image.PatientName, image.PatientID = "CT", "phantom", "1"
    image.Rows, image.Columns = stored.shape
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 12, 11, int(signed)
    image.ImagePositionPatient, image.ImageOrientationPatient = [0, 0, 0], [1, 0, 0, 0, 1, 0]
    image.PixelSpacing, image.SliceThickness = [1, 1], 1
    image.RescaleSlope, image.RescaleIntercept = 1, intercept
    image.PixelData = stored.astype("<u2").tobytes()
    path = Path(sys.argv[1], name)
    image.save_as(path)
    return path


with_overlay = MEANT + 1024
with_overlay[0, 1] |= 0x8000
cases = {
    "signed, 12 of 16 bits": ct("signed.dcm", MEANT & 0x0FFF, signed=True, intercept=0),
    "overlay in bit 15 of the second": ct("overlay.dcm", with_overlay, signed=False, intercept=-1024),
}
print(f"meant: {MEANT[0].tolist()}")
seen = {}
for name, path in cases.items():
    image = pydicom.dcmread(path)
    by = {
        "pydicom": apply_rescale(image.pixel_array, image)[0],
        "SimpleITK": sitk.GetArrayFromImage(sitk.ReadImage(path))[0, 0],
        "highdicom": highdicom.imread(path).get_frame(1)[0],
    }
    seen[name] = {reader: [int(value) for value in values] for reader, values in by.items()}
    print(f"{name}: " + ", ".join(f"{reader} {values}" for reader, values in seen[name].items()))
meant = MEANT[0].tolist()
others = all(found[reader] == meant for found in seen.values() for reader in ("pydicom", "SimpleITK"))
sys.exit(0 if others and all(found["highdicom"] != meant for found in seen.values()) else 1)
PYTHON
