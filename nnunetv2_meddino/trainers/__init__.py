"""nnU-Net trainers, found by name without importing nnU-Net or torch first."""

from importlib import import_module

TRAINERS = {
    "MedDINOv3Trainer": "meddinov3",
    "DINOv3Trainer": "meddinov3",
    "DINOv3PrimusTrainer": "meddinov3",
    "DINOv3PrimusScratchTrainer": "meddinov3",
    "SegFormerTrainer": "baselines",
    "SegFormerScratchTrainer": "baselines",
    "DINOUNetTrainer": "baselines",
    "MedDINOv3CosineTrainer": "variants",
    "MedDINOv3Trainer_5epochs": "variants",
    "MedDINOv3Trainer_100epochs": "variants",
    "MedDINOv3Trainer_demo": "variants",
    "MedDINOv3LastBlockTrainer_demo": "variants",
    "SegFormerTrainer_demo": "variants",
    "DINOUNetTrainer_demo": "variants",
    "nnUNetTrainer_demo": "variants",
}
"""Trainer name, as given to ``-tr``, and the module of this package that defines it."""


def find_trainer(name: str) -> type:
    """Return the trainer class called ``name``.

    Raises:
        KeyError: There is no such trainer.
    """
    return getattr(import_module(f"{__name__}.{TRAINERS[name]}"), name)
