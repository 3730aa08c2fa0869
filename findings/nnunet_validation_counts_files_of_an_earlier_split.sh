#!/usr/bin/env bash
# Believed: the mean Dice at the end of a fold, and validation/summary.json, are over the fold's validation cases.
# True:     they are over every prediction that lies in fold_X/validation. After a change of splits_final.json the predictions of
#           the earlier split are still there and count, though these cases may be in the training part now; nothing is said.
# Versions: nnunetv2 2.8.1, torch 2.14.1, numpy 2.4.6, Python 3.11.
# Why it matters: splits are changed (a leak is found, a patient has two scans, cases are added) and `--val` is run again. The number
#           that is reported then mixes unseen cases with training cases.
# Seen:     fold 0 validates ['case1'] now, summary.json has ['case0', 'case1']
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet nnunetv2==2.8.1 torch==2.14.1 numpy==2.4.6
cd "$work"
mkdir raw preprocessed results
export nnUNet_raw=$work/raw nnUNet_preprocessed=$work/preprocessed nnUNet_results=$work/results
export OMP_WAIT_POLICY=passive nnUNet_n_proc_DA=1 nnUNet_def_n_proc=1
venv/bin/python - <<'PYTHON'
import json
from pathlib import Path

import numpy as np
import SimpleITK as sitk

dataset = Path("raw/Dataset999_Discs")
for name in ("imagesTr", "labelsTr"):
    (dataset / name).mkdir(parents=True)
random = np.random.default_rng(0)
_, y, x = np.mgrid[:6, :64, :64]
disc = ((y - 32) ** 2 + (x - 32) ** 2 < 150).astype(np.uint8)
for case in range(5):
    image = (100 * disc + random.normal(0, 20, disc.shape)).astype(np.float32)
    sitk.WriteImage(sitk.GetImageFromArray(image), str(dataset / f"imagesTr/case{case}_0000.nii.gz"))
    sitk.WriteImage(sitk.GetImageFromArray(disc), str(dataset / f"labelsTr/case{case}.nii.gz"))
content = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "disc": 1}, "numTraining": 5}
(dataset / "dataset.json").write_text(json.dumps(content | {"file_ending": ".nii.gz"}))
PYTHON
venv/bin/nnUNetv2_plan_and_preprocess -d 999 -c 2d -np 1 -npfp 1 > log 2>&1
split() { # makes one case the validation case of fold 0
    venv/bin/python - "$1" <<'PYTHON'
import json
import sys
from pathlib import Path

cases = [f"case{number}" for number in range(5)]
fold = {"train": [case for case in cases if case != sys.argv[1]], "val": [sys.argv[1]]}
Path("preprocessed/Dataset999_Discs/splits_final.json").write_text(json.dumps([fold]))
plans = Path("preprocessed/Dataset999_Discs/nnUNetPlans.json")  # a small network, for the sake of time
content = json.loads(plans.read_text())
content["configurations"]["2d"]["batch_size"] = 2
network = content["configurations"]["2d"]["architecture"]["arch_kwargs"]
network["features_per_stage"] = [4] * network["n_stages"]
plans.write_text(json.dumps(content))
PYTHON
}
train=(venv/bin/nnUNetv2_train 999 2d 0 -tr nnUNetTrainer_1epoch -device cpu)
split case0
"${train[@]}" >> log 2>&1
split case1
"${train[@]}" --val >> log 2>&1
venv/bin/python - <<'PYTHON'
import json
import sys
from pathlib import Path

(summary,) = Path("results").glob("*/*/fold_0/validation/summary.json")
scored = sorted(Path(case["prediction_file"]).name.split(".")[0] for case in json.loads(summary.read_text())["metric_per_case"])
validated = json.loads(Path("preprocessed/Dataset999_Discs/splits_final.json").read_text())[0]["val"]
print(f"fold 0 validates {validated} now, summary.json has {scored}")
sys.exit(0 if validated == ["case1"] and scored == ["case0", "case1"] else 1)
PYTHON
