"""A linear probe judged on every patient: fitted on the others, the mean Dice over patients.

The probe of a training's monitor judges a quarter of the patients, so that it is cheap. Where that is two or three, the
same training with another seed came out up to 0.18 apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import mean

import torch

from nnunetv2_meddino.networks.vit import VisionTransformer
from nnunetv2_meddino.weights.load import load_into, read_weights
from pretraining.config import RunConfig
from pretraining.engine.monitoring.fixed_slices import patch_features
from pretraining.engine.monitoring.linear_probe import dice, fit_classifier, patch_fractions
from pretraining.engine.monitoring.linear_probe_data import LabelledSlice, read_probe_data
from pretraining.model.student_teacher import StudentTeacher


def labelled_slices(dataset: Path, config: RunConfig) -> tuple[tuple[str, ...], list[LabelledSlice]]:
    """Return the names of the classes, and slices of all patients as the training's monitor reads them."""
    monitor = config.monitor
    data = read_probe_data(
        dataset,
        slices=monitor.probe_slices,
        seed=monitor.seed,
        intensity=config.views.intensity,
        size=monitor.image_size,
    )
    return data.names, [*data.train, *data.validation]


def backbone_of(config: RunConfig, teacher: Path | None) -> VisionTransformer:
    """Return the backbone of a teacher, or the one that a training by this configuration begins with."""
    torch.manual_seed(config.data.seed)
    vit: VisionTransformer = StudentTeacher(config.model).teacher.backbone
    if teacher is not None:
        vit = VisionTransformer(vit.config, vit.in_channels).eval()
        load_into(vit, read_weights(str(teacher)))
    return vit


def dice_of_patients(
    vit: VisionTransformer, names: tuple[str, ...], slices: list[LabelledSlice]
) -> Mapping[str, Mapping[str, float]]:
    """Return the Dice of each class that a patient has, by patient, of a classifier that was fitted on the others."""
    features = patch_features(vit, [labelled.image for labelled in slices])
    targets = [
        patch_fractions(labelled.classes, (grid.shape[0], grid.shape[1]), len(names) + 1)
        for labelled, grid in zip(slices, features, strict=True)
    ]
    found = {}
    for patient in sorted({labelled.case for labelled in slices}):
        own = [n for n, labelled in enumerate(slices) if labelled.case == patient]
        others = [n for n in range(len(slices)) if n not in own]
        flat, shares = (torch.cat([of[n].flatten(0, 1) for n in others]) for of in (features, targets))
        classifier = fit_classifier(flat, shares)
        found[patient] = dice(classifier, [features[n] for n in own], [slices[n] for n in own], names).dice
    return found


def mean_dice(patients: Mapping[str, Mapping[str, float]]) -> float:
    """Return the mean over classes of the means over patients."""
    names = {name for found in patients.values() for name in found}
    return mean(mean(found[name] for found in patients.values() if name in found) for name in sorted(names))
