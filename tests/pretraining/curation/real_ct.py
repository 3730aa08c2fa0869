"""Real CT volumes, and ways in which one scan may be exported again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray

from pretraining.curation.fingerprint import Fingerprint, fingerprint
from pretraining.curation.likeness import NEAR_DUPLICATE, likeness
from pretraining.curation.readers.read import find_candidates, read_volume
from pretraining.curation.volume import Volume
from pretraining.modality import Modality
from tests.conftest import shared_path


@cache
def volumes() -> dict[str, Volume]:
    """Real CT by name of file or folder."""
    found = {}
    for folder in ("unlabelled", "Dataset902_CTSarcoma/imagesTs", "Dataset900_CTMini/imagesTr"):
        for candidate in find_candidates(shared_path(f"data/{folder}")):
            if not candidate.path.name.startswith("mr_"):
                name = candidate.path.name.split(".")[0]
                found[name] = read_volume(candidate, Modality.CT)
    return found


def changed(volume: Volume, voxels: NDArray[np.int16], spacing_mm: tuple[float, float, float] | None = None) -> Volume:
    return dataclasses.replace(volume, voxels=np.ascontiguousarray(voxels), spacing_mm=spacing_mm or volume.spacing_mm)


def halved(volume: Volume) -> Volume:
    z, y, x = volume.spacing_mm
    return changed(volume, volume.voxels[:, ::2, ::2], (z, 2 * y, 2 * x))


def sparser(volume: Volume) -> Volume:
    z, y, x = volume.spacing_mm
    return changed(volume, volume.voxels[1::2], (2 * z, y, x))


def noisy(volume: Volume) -> Volume:
    noise = np.random.default_rng(0).normal(3, 20, volume.voxels.shape)
    return changed(volume, (volume.voxels + noise).round().clip(-1024, 3000).astype(np.int16))


def larger_field(volume: Volume) -> Volume:
    return changed(volume, np.pad(volume.voxels, ((0, 0), (40, 20), (10, 60)), constant_values=-1000))


EXPORTS: dict[str, Callable[[Volume], Volume]] = {
    "first 16 slices": lambda volume: changed(volume, volume.voxels[:16]),
    "16 inner slices": lambda volume: changed(volume, volume.voxels[7:23]),
    "clipped": lambda volume: changed(volume, volume.voxels.clip(-1000, 1000)),
    "noise and offset": noisy,
    "half the pixels": halved,
    "every second slice": sparser,
    "larger field of view": larger_field,
}


@cache
def fingerprints() -> dict[str, Fingerprint]:
    """The fingerprint of every volume."""
    return {name: fingerprint(volume) for name, volume in volumes().items()}


@cache
def exported(export: str, name: str) -> Fingerprint:
    """The fingerprint of another export of a volume."""
    return fingerprint(EXPORTS[export](volumes()[name]))


def near_duplicate(a: Fingerprint, b: Fingerprint) -> bool:
    return likeness(a, b).similarity >= NEAR_DUPLICATE


def repeated(volume: Volume, rows: slice, times: int, seed: int = 0) -> Volume:
    """Some slices of a volume, each a number of times with noise of its own."""
    voxels = np.repeat(volume.voxels[rows], times, axis=0)
    noise = np.random.default_rng(seed).normal(0, 15, voxels.shape)
    return changed(volume, (voxels + noise).round().clip(-1024, 3000).astype(np.int16))
