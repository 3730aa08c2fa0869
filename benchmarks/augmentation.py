"""Augmentation of 2D training samples against nnU-Net's own: whole samples, and each transform where it is active.

Both are given the crop that nnU-Net takes from a slice (602 pixels for patches of 512, 1054 for 896), as arrays. Steps
are also done with OpenCV where it is installed, which it need not be.

    python benchmarks/augmentation.py [--out FOLDER] [--repeats N] [--samples N]
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from measure import RESULTS, interleaved, speedup, write_results
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from numpy.typing import NDArray
from scipy import ndimage

from nnunetv2_meddino.dataloading.augmentation import (
    Augmentation,
    AugmentationSettings,
    augment,
    change_intensities,
    draw_augmentation,
)
from nnunetv2_meddino.dataloading.warp import warp

CROP = {512: 602, 896: 1054}
HALF_TURN = (-np.pi, np.pi)
SETTINGS = AugmentationSettings(channels=1, rotation_rad=HALF_TURN)
NOTHING = Augmentation(
    0.0, 1.0, (False, False), 0.0, 0, ((0.0, 0.0),), (1.0,), (1.0,), (1.0,), gamma_of_inverted=(1.0,), gamma=(1.0,)
)
TURNED = replace(NOTHING, rotation_rad=0.5, scaling=0.9)
STEPS = {
    "noise": replace(NOTHING, noise_std=0.05),
    "blur": replace(NOTHING, blur_sigma_px=((0.8, 0.9),)),
    "brightness": replace(NOTHING, brightness=(1.2,)),
    "contrast": replace(NOTHING, contrast=(1.2,)),
    "low resolution": replace(NOTHING, low_resolution=(0.7,)),
    "gamma": replace(NOTHING, gamma=(0.8,)),
}
STEP_RUNS = 10
NOTES = (
    "One channel; labels: how many the crop has, besides the background. x: nnU-Net over ours, medians of interleaved "
    "runs in one process, one thread, user CPU time (no page faults). A whole sample is drawn and augmented, with "
    "nnU-Net's probabilities; the other rows are steps that are active. OpenCV: warpAffine (labels of the nearest "
    "pixel, which are not nnU-Net's at some 3 % of the pixels beside borders), GaussianBlur, resize, pow, randn. It is "
    "not used: with nnU-Net's labels it would save half a millisecond of a whole sample of 896 pixels."
)

Picture = tuple[NDArray[np.float32], NDArray[np.int16]]


def crop(side: int, labels: int) -> Picture:
    """Return ``(1, side, side)`` of a noisy image and ``(side, side)`` labels that fill about half of it."""
    rng = np.random.default_rng(0)
    coarse = ndimage.gaussian_filter(rng.standard_normal((labels + 1, 100, 100)), (0, 5, 5))
    scores = ndimage.zoom(coarse, (1, side / 100, side / 100), order=1)
    scores[0] += np.quantile(scores[1:].max(0) - scores[0], 0.5)
    image = ndimage.gaussian_filter(rng.standard_normal((1, side, side)), (0, 2, 2)) * 5
    return image.astype(np.float32), scores.argmax(0).astype(np.int16)


def nnunets(side: int) -> BasicTransform:
    size = np.array([side, side])
    return nnUNetTrainer.get_training_transforms(size, HALF_TURN, None, (0, 1), do_dummy_2d_data_aug=False)


def whole_sample(side: int, labels: int, samples: int, repeats: int) -> dict[str, Any]:
    image, label_map = crop(CROP[side], labels)
    size, corner = (side, side), ((CROP[side] - side) / 2,) * 2
    transforms = nnunets(side)

    def theirs() -> None:
        np.random.seed(0)
        torch.manual_seed(0)
        for _ in range(samples):
            transforms(image=torch.from_numpy(image.copy()), segmentation=torch.from_numpy(label_map.copy())[None])

    def ours() -> None:
        rng = np.random.default_rng(0)
        for _ in range(samples):
            drawn = draw_augmentation(rng, SETTINGS)
            augment(image, label_map, drawn, drawn.matrix(corner, size), size)

    return _row("whole sample", side, labels, {"nnU-Net": theirs, "ours": ours}, samples, repeats)


def spatial(side: int, labels: int, repeats: int) -> dict[str, Any]:
    image, label_map = crop(CROP[side], labels)
    size = (side, side)
    matrix = TURNED.matrix(((CROP[side] - side) / 2,) * 2, size)
    transform = nnunets(side).transforms[0]
    transform.p_rotation = transform.p_scaling = 1
    transform.rotation, transform.scaling = TURNED.rotation_rad, TURNED.scaling
    given = {"image": torch.from_numpy(image), "segmentation": torch.from_numpy(label_map)[None]}
    functions: dict[str, Callable[[], object]] = {
        "nnU-Net": lambda: transform(**given),
        "ours": lambda: warp(image, label_map, matrix, size),
    }
    if importlib.util.find_spec("cv2"):
        functions["OpenCV"] = lambda: opencv_warp(image, label_map, matrix, size)
    return _row("turned and scaled", side, labels, {n: _often(f) for n, f in functions.items()}, STEP_RUNS, repeats)


def step(name: str, side: int, repeats: int) -> dict[str, Any]:
    image = crop(side, 1)[0]
    transform = nnunets(side).transforms[1 + list(STEPS).index(name) + (name == "gamma")].transform
    transform.p_per_channel = 1
    functions: dict[str, Callable[[], object]] = {
        "nnU-Net": lambda: transform(image=torch.from_numpy(image.copy())),
        "ours": lambda: change_intensities(image.copy(), STEPS[name]),
    }
    if importlib.util.find_spec("cv2") and name in ("noise", "blur", "low resolution", "gamma"):
        functions["OpenCV"] = lambda: opencv_step(name, image[0].copy())
    return _row(name, side, "", {n: _often(f) for n, f in functions.items()}, STEP_RUNS, repeats)


def opencv_warp(image: NDArray, labels: NDArray, matrix: NDArray, size: tuple[int, int]) -> None:
    import cv2

    x_first = matrix[::-1, [1, 0, 2]]
    cv2.warpAffine(image[0], x_first, size[::-1], flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    cv2.warpAffine(labels, x_first, size[::-1], flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP, borderValue=-1)


def opencv_step(name: str, channel: NDArray[np.float32]) -> None:
    import cv2

    if name == "noise":
        cv2.add(channel, cv2.randn(np.empty_like(channel), 0, 0.05), dst=channel)
    elif name == "blur":
        cv2.GaussianBlur(channel, (5, 5), sigmaX=0.9, sigmaY=0.8, dst=channel)
    elif name == "low resolution":
        coarse = cv2.resize(channel, None, fx=0.7, fy=0.7, interpolation=cv2.INTER_NEAREST_EXACT)
        cv2.resize(coarse, channel.shape[::-1], dst=channel, interpolation=cv2.INTER_LINEAR)
    else:
        mean, std = (value.item() for value in cv2.meanStdDev(channel))
        low, high, _, _ = cv2.minMaxLoc(channel)
        share = 1 / (high - low)
        cv2.pow(cv2.addWeighted(channel, share, channel, 0, -low * share, dst=channel), 0.8, dst=channel)
        mean_now, std_now = (value.item() for value in cv2.meanStdDev(channel))
        cv2.addWeighted(channel, std / std_now, channel, 0, mean - mean_now * std / std_now, dst=channel)


def _often(function: Callable[[], object]) -> Callable[[], None]:
    def run() -> None:
        for _ in range(STEP_RUNS):
            function()

    return run


def _row(
    what: str, side: int, labels: object, functions: dict[str, Callable[[], object]], runs: int, repeats: int
) -> dict[str, Any]:
    times = interleaved(functions, repeats=repeats, device="cpu")
    milliseconds = {f"{name} ms": 1e3 * statistics.median(times[name]) / runs for name in functions}
    return {"what": what, "pixels": side, "labels": labels, "x": speedup(times, "ours", "nnU-Net"), **milliseconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--samples", type=int, default=200, help="augmented in one run of a whole sample")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if importlib.util.find_spec("cv2"):
        import cv2

        cv2.setNumThreads(0)
    rows = []
    for side in CROP:
        rows += [whole_sample(side, labels, options.samples, options.repeats) for labels in (1, 5, 15)]
        rows += [spatial(side, labels, options.repeats) for labels in (1, 5, 15)]
        rows += [step(name, side, options.repeats) for name in STEPS]
    write_results("augmentation", "cpu", rows, options.out, NOTES)


if __name__ == "__main__":
    main()
