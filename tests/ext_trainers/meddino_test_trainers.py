"""Trainers for the tests of stock commands: a few steps, and a crash on demand. Found through nnUNet_extTrainer."""

import os

from nnunetv2_meddino.trainers.meddinov3 import MedDINOv3Trainer
from nnunetv2_meddino.trainers.variants import MedDINOv3Trainer_demo


class MedDINOv3TestTrainer(MedDINOv3Trainer):
    """Three epochs of three steps; dies without a word after the epoch that CRASH_AFTER_EPOCH names."""

    encoder_lr = 1e-3
    decoder_lr = 1e-3
    epochs = 3
    iterations_per_epoch = 3
    validation_iterations_per_epoch = 1

    def __init__(self, plans, configuration, fold, dataset_json, device):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.save_every = 1

    def on_epoch_end(self):
        super().on_epoch_end()
        if os.environ.get("CRASH_AFTER_EPOCH") == str(self.current_epoch - 1):
            os._exit(9)


class MedDINOv3OneStepTrainer(MedDINOv3TestTrainer):
    """One step of one epoch."""

    epochs = 1
    iterations_per_epoch = 1


class MedDINOv3LearningTrainer(MedDINOv3Trainer_demo):
    """The demo's training, twice as long."""

    epochs = 24


class MedDINOv3UntrainedTrainer(MedDINOv3OneStepTrainer):
    """One step that changes nothing."""

    encoder_lr = 0.0
    decoder_lr = 0.0
