"""Named variations of the trainers: length, for trying things out. Names follow nnU-Net's own variants."""

from nnunetv2_meddino.trainers.meddinov3 import MedDINOv3Trainer


class MedDINOv3Trainer_5epochs(MedDINOv3Trainer):  # noqa: N801
    """MedDINOv3 for 5 epochs: does it run on my data?"""

    epochs = 5


class MedDINOv3Trainer_100epochs(MedDINOv3Trainer):  # noqa: N801
    """MedDINOv3 for 100 epochs: a tenth of the full training, with the whole schedule in it."""

    epochs = 100


class MedDINOv3Trainer_demo(MedDINOv3Trainer):  # noqa: N801
    """A few short epochs at high rates, for a small ViT from random weights on a CPU; what ``meddino demo`` runs."""

    drop_path = 0.0
    encoder_lr = 2e-3
    decoder_lr = 2e-3
    epochs = 12
    iterations_per_epoch = 25
    validation_iterations_per_epoch = 2
