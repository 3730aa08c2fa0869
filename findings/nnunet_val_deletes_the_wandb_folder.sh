#!/usr/bin/env bash
# Believed: `nnUNetv2_train ... --val` reads a finished fold and writes its validation; what the training logged stays.
# True:     with Weights & Biases switched on (nnUNet_wandb_enabled), the logger deletes fold_X/wandb and begins a new run whenever a
#           trainer is made that does not continue a training. `--val` makes such a trainer (`--c --val` is refused). In offline mode
#           that folder is the only copy of the training's curves until it is synchronised.
# Versions: nnunetv2 2.8.1, wandb 0.31.0, torch 2.14.1, numpy 2.4.6, Python 3.11.
# Why it matters: compute nodes without internet log offline and synchronise later; validating again (another fold list, --npz) is
#           routine.
# Seen:     after training: 1 file with the curves of a run
#           after the logger of a validation was made: the training's run is gone
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet nnunetv2==2.8.1 wandb==0.31.0 torch==2.14.1 numpy==2.4.6
cd "$work"
mkdir raw preprocessed results fold_0
export nnUNet_raw=$work/raw nnUNet_preprocessed=$work/preprocessed nnUNet_results=$work/results
export nnUNet_wandb_enabled=1 nnUNet_wandb_mode=offline WANDB_SILENT=true
venv/bin/python -W ignore - <<'PYTHON'
from nnunetv2.training.logging.nnunet_logger import MetaLogger

logger = MetaLogger("fold_0", False)  # what a trainer of a new training makes
for epoch in range(3):
    logger.log("train_losses", 1.0 / (epoch + 1), epoch)
PYTHON
training=$(basename "$(find fold_0/wandb -maxdepth 1 -name 'offline-run-*')")
echo "after training: $(find "fold_0/wandb/$training" -name '*.wandb' -size +0 | wc -l) file with the curves of a run"
venv/bin/python -W ignore -c 'from nnunetv2.training.logging.nnunet_logger import MetaLogger; MetaLogger("fold_0", False)'
if [ -e "fold_0/wandb/$training" ]; then
    echo "after the logger of a validation was made: the training's run is still there"
    exit 1
fi
echo "after the logger of a validation was made: the training's run is gone"
