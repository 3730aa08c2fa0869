#!/usr/bin/env bash
# Believed: in a WebDataset tar, files that differ in their extension alone are one sample: 1.2.840.1.png is a sample of its own, for its stem is.
# True:     a name ends at its first dot. DICOM UIDs, by which slices are commonly named, begin with "1.2.": all slices of a
#           folder are one sample "1" with a field for each file; no error, for no field is there twice.
# Versions: webdataset 1.0.2, Python 3.11
# Why it matters: a shard of 1,000 CT slices is one sample without a field "png". Shuffling, batches and the length of an epoch
#           are then of shards, not of slices. Slices have to be named without dots.
# Seen:     named 1.2.840.99.1.1 and so on: 1 sample from 6 files: 1 with 6 fields
#           named slice_1 and so on: 3 samples from 6 files: slice_1 with 2 fields, slice_2 with 2 fields, slice_3 with 2 fields
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet webdataset==1.0.2 numpy==2.2.6
"$work/env/bin/python" -W ignore - "$work/slices.tar" <<'PYTHON'
import io
import sys
import tarfile

import webdataset

SHARD = sys.argv[1]


def fields(stems: list[str]) -> dict[str, int]:
    """Return the number of fields of each sample of a shard with an image and a label of each name."""
    with tarfile.open(SHARD, "w") as shard:
        for stem in stems:
            for name in (f"{stem}.png", f"{stem}.json"):
                entry = tarfile.TarInfo(name)
                entry.size = len(stem)
                shard.addfile(entry, io.BytesIO(stem.encode()))
    samples = webdataset.WebDataset(SHARD, shardshuffle=False)
    return {sample["__key__"]: sum(not name.startswith("__") for name in sample) for sample in samples}


found = []
for stem in ("1.2.840.99.1.", "slice_"):
    samples = fields([f"{stem}{number}" for number in (1, 2, 3)])
    found.append(samples)
    described = ", ".join(f"{key} with {count} fields" for key, count in samples.items())
    print(f"named {stem}1 and so on: {len(samples)} sample{'s' * (len(samples) > 1)} from 6 files: {described}")
sys.exit(0 if found == [{"1": 6}, {f"slice_{number}": 2 for number in (1, 2, 3)}] else 1)
PYTHON
