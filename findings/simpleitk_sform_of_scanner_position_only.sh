#!/usr/bin/env bash
# Believed: where a NIfTI header has both affines, the scanner's position in the qform and an alignment in the sform, readers take the sform
#           if its code is above 0: nibabel does, and ITK is said to since 5.2.
# True:     SimpleITK takes the sform if its code is 1 (scanner) and the qform if it is 2 (aligned), 3 (Talairach) or 4 (MNI), what NIfTI
#           has the sform for. Read and written once, both affines are the qform's with code 1: the alignment is gone, without a
#           message, and nibabel now finds the image where it did not before.
# Versions: SimpleITK 2.5.7, nibabel 5.4.2, Python 3.11.
# Why it matters: a prediction of nnU-Net, which reads and writes by SimpleITK, lies 75 mm beside the aligned image that it was made of, in
#           everything that reads the sform (nibabel, FSLeyes), and upon it in what reads by ITK. Labels
#           drawn by nibabel's affine and images resampled by SimpleITK's do not meet. The same file with another code is fine.
# Seen:     sform code 1: nibabel sform, SimpleITK sform; written again and read by nibabel: 0 mm away
#           sform code 2: nibabel sform, SimpleITK qform; written again and read by nibabel: 75 mm away
#           sform code 3: nibabel sform, SimpleITK qform; written again and read by nibabel: 75 mm away
#           sform code 4: nibabel sform, SimpleITK qform; written again and read by nibabel: 75 mm away
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet nibabel==5.4.2 SimpleITK==2.5.7
"$work/env/bin/python" - "$work" <<'PYTHON'
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk

image, again = Path(sys.argv[1], "aligned.nii.gz"), Path(sys.argv[1], "again.nii.gz")
scanner = np.diag([2.0, 2.0, 2.0, 1.0])
scanner[:3, 3] = -30, -40, -50
turn = 0.2
aligned = scanner.copy()
aligned[:2, :2] = 2 * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
aligned[:3, 3] += 25, 50, 50
NAMES = {"sform": aligned, "qform": scanner}


def name_of(affine: np.ndarray) -> str:
    return next((name for name, of in NAMES.items() if np.allclose(affine, of, atol=1e-3)), "neither")


def by_simpleitk(path: Path) -> np.ndarray:
    """Return the affine that SimpleITK reads, in nibabel's coordinates."""
    read = sitk.ReadImage(path)
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(read.GetDirection(), (3, 3)) * read.GetSpacing()
    affine[:3, 3] = read.GetOrigin()
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


seen = {}
for code in (1, 2, 3, 4):
    volume = nib.Nifti1Image(np.zeros((8, 9, 10), np.int16), None)
    volume.header.set_qform(scanner, code=1)
    volume.header.set_sform(aligned, code=code)
    nib.save(volume, image)
    sitk.WriteImage(sitk.ReadImage(image), again)
    moved = float(np.linalg.norm((nib.load(again).affine - nib.load(image).affine)[:3, 3]))
    seen[code] = name_of(nib.load(image).affine), name_of(by_simpleitk(image)), moved
    print(
        f"sform code {code}: nibabel {seen[code][0]}, SimpleITK {seen[code][1]}; "
        f"written again and read by nibabel: {moved:.0f} mm away"
    )
expected = all(found[:2] == ("sform", "sform" if code == 1 else "qform") for code, found in seen.items())
sys.exit(0 if expected and seen[1][2] < 1e-3 < 1 < min(seen[code][2] for code in (2, 3, 4)) else 1)
PYTHON
