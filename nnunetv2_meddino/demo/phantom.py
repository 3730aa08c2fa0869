"""A synthetic abdominal CT in nnU-Net raw format: something to segment on a machine that has no data.

The organs are ellipsoids with the attenuation of a late arterial CT, in a body with a fat rim, ribs, lung bases, a
stomach and bowel, none of which is labelled. Position, size and enhancement differ from case to case. It looks enough
like CT to exercise every step of the pipeline, and is far too easy to compare methods on.

Coordinates are in mm from the centre of the volume: x to the patient's left (right of the picture), y to the back,
z to the head.
"""

from __future__ import annotations

import errno
import gzip
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813 (the name everyone gives it)
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from nnunetv2_meddino.files import write_json

DATASET_NAME = "Dataset990_MedDINODemo"
LABELS = {"background": 0, "liver": 1, "spleen": 2, "kidneys": 3, "spine": 4}
SHAPE = (16, 160, 160)
SPACING_MM = (6.0, 1.8, 1.8)
NOISE_SD_HU = 12.0

HU_RANGES: dict[str, tuple[float, float]] = {
    "air": (-1000.0, -1000.0),
    "lung": (-850.0, -800.0),
    "fat": (-110.0, -95.0),
    "muscle": (45.0, 60.0),
    "bowel": (25.0, 45.0),
    "stomach": (10.0, 25.0),
    "liver": (95.0, 110.0),
    "spleen": (150.0, 165.0),
    "kidneys": (205.0, 230.0),
    "aorta": (270.0, 300.0),
    "spongiosa": (250.0, 310.0),
    "cortical_bone": (400.0, 550.0),
}
"""Attenuation that each tissue is drawn from, one value per case (late arterial phase)."""

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class _Grid:
    """Voxel coordinates in mm, shaped so that they broadcast to the volume."""

    z: NDArray[np.floating]
    y: NDArray[np.floating]
    x: NDArray[np.floating]

    @classmethod
    def centred(cls) -> _Grid:
        axes = [(np.arange(n) - (n - 1) / 2) * step for n, step in zip(SHAPE, SPACING_MM, strict=True)]
        return cls(z=axes[0][:, None, None], y=axes[1][None, :, None], x=axes[2][None, None, :])

    def ellipsoid(self, centre: tuple[float, float, float], semi_axes: tuple[float, float, float]) -> Mask:
        """Return the mask of an ellipsoid given as (x, y, z) in mm; an infinite semi-axis makes a cylinder."""
        (cx, cy, cz), (rx, ry, rz) = centre, semi_axes
        return ((self.x - cx) / rx) ** 2 + ((self.y - cy) / ry) ** 2 + ((self.z - cz) / rz) ** 2 <= 1


class _Case:
    """One patient: an attenuation volume and its labels, drawn from the outside in; later tissue covers earlier."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng
        self.grid = _Grid.centred()
        self.hu = {tissue: rng.uniform(*limits) for tissue, limits in HU_RANGES.items()}
        self.image = np.full(SHAPE, self.hu["air"])
        self.labels = np.zeros(SHAPE, np.uint8)
        self.half_width, self.half_depth = rng.uniform(122, 138), rng.uniform(88, 100)
        self.size = rng.uniform(0.92, 1.08)

    def jitter(self, *centre: float, sd_mm: float = 4.0) -> tuple[float, float, float]:
        x, y, z = self.rng.normal(centre, sd_mm)
        return x, y, z

    def scaled(self, *semi_axes: float) -> tuple[float, float, float]:
        x, y, z = self.size * self.rng.uniform(0.93, 1.07, 3) * semi_axes
        return x, y, z

    def fill(self, mask: Mask, tissue: str, label: str = "background") -> None:
        self.image[mask] = self.hu[tissue]
        self.labels[mask] = LABELS[label]

    def body(self, inset_mm: float) -> Mask:
        """Return the trunk, ``inset_mm`` inside the skin, over all slices."""
        semi_axes = (self.half_width - inset_mm, self.half_depth - inset_mm, np.inf)
        return np.broadcast_to(self.grid.ellipsoid((0, 0, 0), semi_axes), SHAPE)

    def draw_trunk(self) -> Mask:
        """Draw skin fat, muscle wall, ribs, bowel in visceral fat and lung bases; return the abdominal cavity."""
        rim = self.rng.uniform(9, 16)
        cavity = self.body(rim + 11)
        self.fill(self.body(0), "fat")
        self.fill(self.body(rim), "muscle")
        self.fill(cavity, "fat")
        loops = gaussian_filter(self.rng.normal(size=SHAPE), [8 / step for step in SPACING_MM])
        self.fill(cavity & (loops > np.quantile(loops, 0.45)), "bowel")
        slant = np.arctan2(self.grid.y / self.half_depth, np.abs(self.grid.x) / self.half_width) + self.grid.z / 90
        ribs = self.body(rim + 3) & ~self.body(rim + 9) & (np.cos(9 * slant) > 0.75) & (self.grid.y > -60)
        self.fill(ribs, "cortical_bone")
        off_centre = (self.grid.x / self.half_width) ** 2 + ((self.grid.y + 25) / self.half_depth) ** 2
        diaphragm_z = self.rng.uniform(62, 70) - 50 * off_centre
        lung = cavity & (self.grid.z > diaphragm_z)
        self.fill(lung, "lung")
        return cavity & ~lung

    def draw_organs(self, cavity: Mask) -> None:
        """Draw the stomach, liver, spleen, kidneys in their fat, the great vessels and the spine."""
        grid = self.grid
        stomach_centre = self.jitter(42, -38, 20)
        stomach = cavity & grid.ellipsoid(stomach_centre, self.scaled(34, 26, 40))
        self.fill(stomach, "stomach")
        self.fill(stomach & (grid.y < stomach_centre[1] - 10), "air")
        liver = grid.ellipsoid(self.jitter(-58, -8, 12), self.scaled(58, 66, 72))
        liver |= grid.ellipsoid(self.jitter(-8, -48, 14), self.scaled(52, 26, 44))
        self.fill(liver & cavity, "liver", "liver")
        self.fill(grid.ellipsoid(self.jitter(84, 20, 10), self.scaled(32, 46, 56)) & cavity, "spleen", "spleen")
        for side in (-1, 1):
            centre = self.jitter(side * 56, 42, -14)
            x, y, z = self.scaled(25, 27, 48)
            self.fill(grid.ellipsoid(centre, (x + 5, y + 5, z + 5)) & cavity, "fat")
            self.fill(grid.ellipsoid(centre, (x, y, z)) & cavity, "kidneys", "kidneys")
        spine_y = self.half_depth - 42
        self.fill(grid.ellipsoid((12, spine_y - 36, 0), (11, 11, np.inf)), "aorta")
        self.fill(grid.ellipsoid((-18, spine_y - 32, 0), (13, 10, np.inf)), "muscle")  # the vena cava: not enhanced yet
        self.draw_spine(spine_y)

    def draw_spine(self, y: float) -> None:
        """Draw a vertebral body with its cortex, the canal behind it, the transverse and the spinous processes."""
        grid, (width, depth, _) = self.grid, self.scaled(26, 22, 1)
        self.fill(grid.ellipsoid((0, y + 18, 0), (44, 7, np.inf)), "cortical_bone", "spine")
        self.fill(grid.ellipsoid((0, y + 26, 0), (6, 18, np.inf)), "cortical_bone", "spine")
        self.fill(grid.ellipsoid((0, y, 0), (width, depth, np.inf)), "cortical_bone", "spine")
        self.fill(grid.ellipsoid((0, y, 0), (width - 4, depth - 4, np.inf)), "spongiosa", "spine")
        self.fill(grid.ellipsoid((0, y + depth - 1, 0), (9, 7, np.inf)), "bowel")

    def acquire(self) -> NDArray[np.int16]:
        """Return the image as a scanner shows it: blurred in plane, with band-limited noise, as int16 HU."""
        blurred = gaussian_filter(self.image, (0, 0.6, 0.6))
        noise = gaussian_filter(self.rng.normal(size=SHAPE), (0, 0.7, 0.7))
        return np.clip(np.rint(blurred + noise * (NOISE_SD_HU / noise.std())), -1024, 3071).astype(np.int16)


def make_phantom_case(
    rng: np.random.Generator,
) -> tuple[NDArray[np.int16], NDArray[np.uint8], tuple[float, float, float]]:
    """Draw one patient.

    Args:
        rng: Source of every random choice; the same state gives the same patient.

    Returns:
        The image in HU ``(z, y, x)``, the labels ``(z, y, x)`` numbered as in ``LABELS``, and the spacing in mm in the
        same axis order.
    """
    case = _Case(rng)
    case.draw_organs(case.draw_trunk())
    return case.acquire(), case.labels, SPACING_MM


def make_phantom_dataset(folder: Path, *, num_training: int, num_test: int, seed: int) -> Path:
    """Write a dataset of phantom patients in nnU-Net raw format.

    Args:
        folder: Where the dataset folder is made, usually ``nnUNet_raw``. Files of the same name are replaced.
        num_training: Cases in ``imagesTr`` and ``labelsTr``.
        num_test: Cases in ``imagesTs`` and ``labelsTs``.
        seed: The same seed gives the same dataset.

    Returns:
        The dataset folder, ``folder / DATASET_NAME``.
    """
    dataset = folder / DATASET_NAME
    rng = np.random.default_rng(seed)
    for split, count in (("Tr", num_training), ("Ts", num_test)):
        images, labels = dataset / f"images{split}", dataset / f"labels{split}"
        images.mkdir(parents=True, exist_ok=True)
        labels.mkdir(exist_ok=True)
        for index in range(count):
            name = f"phantom{split}_{index:03d}"
            image, segmentation, spacing_mm = make_phantom_case(rng)
            _write(image, spacing_mm, images / f"{name}_0000.nii.gz")
            _write(segmentation, spacing_mm, labels / f"{name}.nii.gz")
    description = {
        "channel_names": {"0": "CT"},
        "labels": LABELS,
        "numTraining": num_training,
        "file_ending": ".nii.gz",
        "description": "Synthetic abdominal CT phantom; no patient data.",
    }
    write_json(description, dataset / "dataset.json")
    return dataset


def _write(volume: NDArray[np.generic], spacing_mm: tuple[float, float, float], path: Path) -> None:
    image = sitk.GetImageFromArray(volume)
    image.SetSpacing(spacing_mm[::-1])
    sitk.WriteImage(image, path)
    try:  # on a full disk ITK's writer leaves a part of the file and says nothing
        with gzip.open(path) as written:
            while written.read(1 << 20):
                pass
    except (EOFError, gzip.BadGzipFile) as error:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
