"""Any trainer for any number of epochs, by its name: ``MedDINOv3Trainer_20epochs``, as nnU-Net names its own variants.

The name is in every checkpoint and in that of the results' folder, so trainings of two lengths never meet in one.
"""

from __future__ import annotations

import contextlib
import io
from functools import cache
from typing import Any

import torch
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunetv2_meddino.trainers import TRAINERS, UnknownTrainerError, find_trainer, split_length


@cache
def trainer_of_length(name: str) -> type:
    """Return the trainer that a name with epochs stands for, the same class every time.

    Raises:
        UnknownTrainerError: The name has none, or nnU-Net's lookup does not know the trainer before them.
    """
    base_name, epochs = split_length(name)
    if epochs is None:
        raise UnknownTrainerError(name)
    base: Any
    if base_name in TRAINERS:
        base = find_trainer(base_name)
    else:
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                base = recursive_find_trainer_class_by_name(base_name)
        except RuntimeError as error:
            raise UnknownTrainerError(name) from error

    class OfLength(base):
        def __init__(
            self,
            plans: dict,
            configuration: str,
            fold: int,
            dataset_json: dict,
            device: torch.device = torch.device("cuda"),  # noqa: B008 (nnU-Net compares this signature)
        ) -> None:
            super().__init__(plans, configuration, fold, dataset_json, device)
            self.num_epochs = epochs

    OfLength.__name__ = OfLength.__qualname__ = name
    OfLength.__doc__ = f"``{base_name}`` with the whole schedule in {epochs} epochs."
    return OfLength


def __getattr__(name: str) -> type:
    """Return a trainer as an attribute of this module, where pickle looks for it."""
    try:
        return trainer_of_length(name)
    except UnknownTrainerError:
        raise AttributeError(name) from None
