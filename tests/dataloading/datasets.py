"""Small preprocessed datasets in nnU-Net's own files, whose pixels say where they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2, nnUNetDatasetNumpy

SHAPE = (5, 40, 48)
CHANNELS = 2


def volume(number: int, shape: tuple[int, int, int] = SHAPE) -> tuple[np.ndarray, np.ndarray]:
    """Image ``(2, z, y, x)``: where a pixel is, and the same negated; labels: a disc of 1 with a core of 2."""
    z, y, x = np.indices(shape)
    place = (number * 1e6 + z * 1e4 + y * 1e2 + x + 1).astype(np.float32)
    radius = np.hypot(y - shape[1] * 0.6, x - shape[2] * 0.4)
    labels = ((radius < 12).astype(np.int16) + (radius < 6)) * (z > 0)
    labels[:, :3] = -1
    return np.stack([place, -place]), labels[None].astype(np.int16)


def write_dataset(
    folder: Path,
    kind: type = nnUNetDatasetBlosc2,
    *,
    cases: int = 3,
    shape: tuple[int, int, int] = SHAPE,
    classes: tuple = (1, 2, 3),
):
    """Write cases as nnU-Net's preprocessing does, foreground positions among them, and open the dataset."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(cases):
        image, labels = volume(number, shape)
        locations = DefaultPreprocessor._sample_foreground_locations(labels, list(classes))
        blocks = {"chunks": (1, 1, 16, 48), "blocks": (1, 1, 8, 16)} if kind is nnUNetDatasetBlosc2 else {}
        kind.save_case(image, labels, {"class_locations": locations}, str(folder / f"case_{number}"), **blocks)
    return kind(str(folder))


def write_numpy_dataset(folder: Path, *, unpacked: bool, **options):
    """Write a dataset of ``.npz`` files, unpacked to ``.npy`` as trainings do or not."""
    dataset = write_dataset(folder, nnUNetDatasetNumpy, **options)
    if unpacked:
        for file in folder.glob("*.npz"):
            content = np.load(file)
            np.save(file.with_suffix(".npy"), content["data"])
            np.save(file.with_name(f"{file.stem}_seg.npy"), content["seg"])
    return dataset
