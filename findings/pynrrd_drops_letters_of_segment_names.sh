#!/usr/bin/env bash
# Believed: slicerio, by the makers of 3D Slicer, and pynrrd below it read the names of segments as they stand in a .seg.nrrd, or refuse.
# True:     pynrrd decodes the header as ASCII and leaves out every other byte without a word: "größe" is "gre", and all names in Chinese,
#           Japanese, Greek or Cyrillic are empty, so that segments cannot be told apart or found by name. 3D Slicer and ITK write UTF-8.
#           Writing the same names through slicerio is an error. Escapes (\\ and \n of NRRD) are not undone either.
# Versions: pynrrd 1.1.3, slicerio 1.4.0, SimpleITK 2.5.7, numpy 2.4.6, Python 3.11.
# Why it matters: label values of Slicer's segmentations differ from file to file, so scripts choose segments by name. A dictionary by name
#           keeps one of several segments; a training set made of it mixes organs.
# Seen:     stored by SimpleITK: ['肝臓', '腎臓', 'größe', 'a\\b']
#           through SimpleITK:   ['肝臓', '腎臓', 'größe', 'a\\b']
#           through slicerio:    ['', '', 'gre', 'a\\\\b']
#           slicerio finds 肝臓: no; it writes the name: UnicodeEncodeError
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet pynrrd==1.1.3 slicerio==1.4.0 SimpleITK==2.5.7 numpy==2.4.6
cd "$work"
PYTHONUTF8=1 env/bin/python - <<'PYTHON'
import sys

import numpy as np
import SimpleITK as sitk
import slicerio

names = ["肝臓", "腎臓", "größe", "a\\b"]
labels = np.zeros((3, 4, 5), np.uint8)
labels[1, 1:3, :4] = range(1, 5)
image = sitk.GetImageFromArray(labels)
for number, name in enumerate(names):
    fields = {"ID": f"Segment_{number + 1}", "Name": name, "LabelValue": number + 1, "Layer": 0}
    for field, value in fields.items():
        image.SetMetaData(f"Segment{number}_{field}", str(value))
sitk.WriteImage(image, "labels.seg.nrrd")

stored = open("labels.seg.nrrd", "rb").read()
assert all(name.encode() in stored for name in names[:3])
read = sitk.ReadImage("labels.seg.nrrd")
by_simpleitk = [read.GetMetaData(f"Segment{number}_Name") for number in range(len(names))]
segmentation = slicerio.read_segmentation("labels.seg.nrrd")
by_slicerio = slicerio.segment_names(segmentation)
print("stored by SimpleITK:", names)
print("through SimpleITK:  ", by_simpleitk)
print("through slicerio:   ", by_slicerio)
try:
    slicerio.segment_from_name(segmentation, names[0])
    found = "yes"
except KeyError:
    found = "no"
segmentation["segments"][0]["name"] = names[0]
try:
    slicerio.write_segmentation("again.seg.nrrd", segmentation)
    outcome = "written"
except UnicodeEncodeError as error:
    outcome = type(error).__name__
print(f"slicerio finds {names[0]}: {found}; it writes the name: {outcome}")
same = by_simpleitk == names and by_slicerio == ["", "", "gre", "a\\\\b"] and found == "no" and outcome != "written"
sys.exit(0 if same else 1)
PYTHON
