#!/usr/bin/env bash
# Believed: GetMedian(label) is the median of the values under the label, as exact as GetMean, GetMinimum and GetMaximum beside it.
# True:     it is read off a histogram of 256 bins (LabelStatisticsImageFilter) or 128 (LabelIntensityStatisticsImageFilter) that are
#           spread over the range of the whole image. A screw or a padding value far outside of the label moves the median inside.
# Versions: SimpleITK 2.5.7, numpy 2.4.6, Python 3.11.
# Why it matters: the median is taken to be robust: HU of liver or muscle, uptake of a lesion, features of regions. It differs between two
#           scans of one patient because one has metal, by as much as what is looked for.
# Seen:     no metal: median 40.0, LabelStatistics 41.0, LabelIntensityStatistics 43.2; means 39.98 39.98
#           a screw of 3071 HU: median 40.0, LabelStatistics 41.6, LabelIntensityStatistics 33.7; means 39.98 39.98
#           a screw of 30000 HU: median 40.0, LabelStatistics 29.3, LabelIntensityStatistics 89.8; means 39.98 39.98
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet SimpleITK==2.5.7 numpy==2.4.6
"$work/env/bin/python" - <<'PYTHON'
import sys

import numpy as np
import SimpleITK as sitk

scan = np.full((12, 64, 64), -1000, np.int16)
scan[2:10, 10:50, 10:50] = np.random.default_rng(0).normal(40, 15, (8, 40, 40)).round()
labels = np.zeros(scan.shape, np.uint8)
labels[3:9, 12:48, 12:48] = 1
errors = []
for what, value in (("no metal", -1000), ("a screw of 3071 HU", 3071), ("a screw of 30000 HU", 30000)):
    scan[0, 0, 0] = value  # outside of the label
    image, regions = sitk.GetImageFromArray(scan), sitk.GetImageFromArray(labels)
    statistics, intensity = sitk.LabelStatisticsImageFilter(), sitk.LabelIntensityStatisticsImageFilter()
    statistics.Execute(image, regions)
    intensity.Execute(regions, image)
    true, means = np.median(scan[labels == 1]), (statistics.GetMean(1), scan[labels == 1].mean())
    found = statistics.GetMedian(1), intensity.GetMedian(1)
    errors.append([abs(median - true) for median in found])
    print(f"{what}: median {true:.1f}, LabelStatistics {found[0]:.1f}, LabelIntensityStatistics {found[1]:.1f}; means {means[0]:.2f} {means[1]:.2f}")
sys.exit(0 if max(errors[1]) > 3 and max(errors[2]) > 20 else 1)
PYTHON
