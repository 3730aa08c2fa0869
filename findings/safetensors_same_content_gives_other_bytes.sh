#!/usr/bin/env bash
# Believed: a safetensors file of the same tensors and metadata is the same file; its checksum tells whether two models are alike.
# True:     the entries of its metadata are written in an order that is drawn anew at every call, in one process as between processes,
#           so with two entries there are two files, with five up to 120. Tensors are in a fixed order, and with one entry, such as
#           the "format": "pt" of transformers, the file is always the same.
# Versions: safetensors 0.8.0, numpy 2.4.6, Python 3.11.
# Why it matters: whoever keeps a licence, a corpus or an architecture in the header, which is what it is for, gets another SHA-256 for
#           every export. A model hub stores and sends it again, a build is not reproducible, a cache by checksum never hits.
# Seen:     1 entry : 1 different files of 40
#           2 entries: 2 different files of 40
#           5 entries: 32 different files of 40 (drawn: another number each time)
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet safetensors==0.8.0 numpy==2.4.6
"$work/env/bin/python" - <<'PYTHON'
import sys
from hashlib import sha256

import numpy as np
from safetensors.numpy import save

TENSORS = {"weight": np.arange(6, dtype=np.float32), "bias": np.zeros(2, np.float32)}
METADATA = {"format": "pt", "author": "a", "licence": "b", "corpus": "c", "step": "3"}
different = {}
for count in (1, 2, 5):
    metadata = dict(list(METADATA.items())[:count])
    different[count] = len({sha256(save(TENSORS, metadata)).hexdigest() for _ in range(40)})
    print(f"{count} {'entry ' if count == 1 else 'entries'}: {different[count]} different files of 40")
sys.exit(0 if different[1] == 1 and different[2] == 2 and different[5] > 10 else 1)
PYTHON
