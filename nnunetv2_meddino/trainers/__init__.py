"""nnU-Net trainers, found by name without importing nnU-Net or torch first."""

from __future__ import annotations

import re
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


_LENGTH = re.compile(r"(\w+)_([1-9]\d*)epochs?")


class UnknownTrainerError(KeyError):
    """There is no trainer of a name."""


def split_length(name: str) -> tuple[str, int | None]:
    """Return a trainer's name without the epochs that it ends with, as in ``MedDINOv3Trainer_20epochs``, and these."""
    match = _LENGTH.fullmatch(name)
    return (match[1], int(match[2])) if match else (name, None)


def find_trainer(name: str) -> type:
    """Return the trainer class called ``name``: one of ``TRAINERS``, or any of nnU-Net's lookup with its epochs.

    Raises:
        UnknownTrainerError: There is no such trainer.
    """
    if name in TRAINERS:
        return getattr(import_module(f"{__name__}.{TRAINERS[name]}"), name)
    if split_length(name)[1] is None:
        raise UnknownTrainerError(name)
    return import_module(f"{__name__}.length").trainer_of_length(name)
