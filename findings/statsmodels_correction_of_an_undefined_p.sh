#!/usr/bin/env bash
# Believed: an undefined p value (NaN) among others stays undefined in a correction for many tests, and the others are corrected for how many they are.
# True:     in statsmodels' multipletests it depends on the method. Benjamini-Hochberg, Benjamini-Yekutieli, Hommel and Simes-Hochberg make every
#           corrected p NaN, while `reject` of the first still says True for three tests; Holm and Bonferroni keep the others but count the undefined test, so
#           0.02 becomes 0.08 instead of 0.06. Nothing is said. scipy's false_discovery_control raises an error.
# Versions: statsmodels 0.15.0, scipy 1.17.1, numpy 2.2.6, Python 3.11.
# Why it matters: a class that no case has, or on which two methods do not differ in any case, has no p value, and tables of classes by methods are
#           corrected in one call. Columns of NaN are noticed; a list of what is significant, made from `reject`, is not.
# Seen:     holm: 0.005 0.08 nan 0.09 1, rejected 1; the four alone: 0.004 0.06 0.06 0.5
#           bonferroni: 0.005 0.1 nan 0.15 1, rejected 1; the four alone: 0.004 0.08 0.12 1
#           fdr_bh: nan nan nan nan nan, rejected 3; the four alone: 0.004 0.04 0.04 0.5
#           fdr_by: nan nan nan nan nan, rejected 1; the four alone: 0.00833 0.0833 0.0833 1
#           hommel: nan nan nan nan nan, rejected 0; the four alone: 0.004 0.045 0.06 0.5
#           simes-hochberg: nan nan nan nan nan, rejected 1; the four alone: 0.004 0.06 0.06 0.5
#           scipy: `ps` must include only numbers between 0 and 1.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet statsmodels==0.15.0 scipy==1.17.1 numpy==2.2.6
"$work/env/bin/python" -W ignore - <<'PYTHON'
import sys

import numpy as np
from scipy import stats
from statsmodels.stats.multitest import multipletests

values = np.array([0.001, 0.02, np.nan, 0.03, 0.5])
defined = ~np.isnan(values)


def text(of: np.ndarray) -> str:
    return " ".join(f"{value:.3g}" for value in of)


expected = []
for method in ("holm", "bonferroni", "fdr_bh", "fdr_by", "hommel", "simes-hochberg"):
    reject, corrected, *_ = multipletests(values, method=method)
    alone = multipletests(values[defined], method=method)[1]
    print(f"{method}: {text(corrected)}, rejected {reject.sum()}; the four alone: {text(alone)}")
    counted = method in ("holm", "bonferroni")
    kept = np.isnan(corrected[~defined]).all() and (corrected[defined][:3] > alone[:3]).all()
    expected.append(kept if counted else np.isnan(corrected).all())
expected.append(multipletests(values, method="fdr_bh")[0].sum() == 3)
try:
    stats.false_discovery_control(values)
    expected.append(False)
except ValueError as error:
    print("scipy:", error)
sys.exit(0 if all(expected) else 1)
PYTHON
