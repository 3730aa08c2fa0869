#!/usr/bin/env bash
# Believed: checkpoint_best.pth holds the network of the epoch with the best moving average of the pseudo Dice; an epoch in whose
#           validation batches no class occurs has no Dice and is passed over (the mean over classes is a nanmean).
# True:     such an epoch makes the moving average NaN, and NaN * 0.9 + 0.1 * Dice stays NaN to the end of the training, whatever the
#           later epochs reach. No comparison with NaN holds, so checkpoint_best is never written again. The average travels in the
#           checkpoint: a resumed training inherits it. If it is the first epoch, checkpoint_best is that of epoch 0 for good.
# Versions: nnunetv2 2.8.1, torch 2.14.1, numpy 2.4.6, Python 3.11.
# Why it matters: rare classes, small validation folds and batches of 2 make such epochs likely in 1000. Who predicts with
#           `-chk checkpoint_best.pth` uses an early network and cannot see it.
# Seen:     epoch 0: Dice 0.30, moving average 0.300, checkpoint_best written
#           epoch 1: Dice 0.50, moving average 0.320, checkpoint_best written
#           epoch 2: Dice nan, moving average nan, -
#           epoch 3: Dice 0.80, moving average nan, -
#           epoch 4: Dice 0.95, moving average nan, -
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet nnunetv2==2.8.1 torch==2.14.1 numpy==2.4.6
cd "$work"
mkdir raw preprocessed results
export nnUNet_raw=$work/raw nnUNet_preprocessed=$work/preprocessed nnUNet_results=$work/results
venv/bin/python -W ignore - <<'PYTHON'
import math
import sys

import numpy as np
from nnunetv2.training.logging.nnunet_logger import MetaLogger
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

written = []
trainer = object.__new__(nnUNetTrainer)  # what the two methods below use, without a data set
trainer.logger, trainer.output_folder = MetaLogger("results", False), "results"
trainer.is_ddp, trainer.local_rank, trainer._best_ema = False, 0, None
trainer.current_epoch, trainer.num_epochs, trainer.save_every = 0, 1000, 50
trainer.print_to_log_file = lambda *words, **options: None
trainer.save_checkpoint = lambda name: written.append(trainer.current_epoch)

averages = []
for true, false in ((30, 140), (50, 100), (0, 0), (80, 40), (95, 10)):  # voxels of the one class, found and not found
    epoch = trainer.current_epoch
    trainer.on_epoch_start()
    for key, value in (("train_losses", 0.0), ("lrs", 0.01)):
        trainer.logger.log(key, value, epoch)
    counts = {"tp_hard": np.array([true]), "fp_hard": np.array([0]), "fn_hard": np.array([false]), "loss": 0.0}
    trainer.on_validation_epoch_end([counts])
    trainer.on_epoch_end()
    dice, average = (trainer.logger.get_value(key, step=epoch) for key in ("mean_fg_dice", "ema_fg_dice"))
    averages.append(average)
    print(f"epoch {epoch}: Dice {dice:.2f}, moving average {average:.3f},", "checkpoint_best written" if epoch in written else "-")
sys.exit(0 if all(map(math.isnan, averages[2:])) and written == [0, 1] else 1)
PYTHON
