"""Ways to bring a slice to the network and its logits back to labels: which of them prediction uses, and why.

python benchmarks/prediction_choices.py [--out FOLDER]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numba
import numpy as np
import torch
from measure import RESULTS, interleaved, write_results
from numpy.typing import NDArray
from scipy import ndimage
from skimage.transform import resize

from nnunetv2_meddino.inference.labels import labels_of
from nnunetv2_meddino.inference.resampling import Resampling

NETWORK_PX, IMAGE_PX, CLASSES = 896, 512, 16
REPEATS = 9
NOTES = (
    f"One slice on one thread, user CPU time, medians of {REPEATS} interleaved runs after one that is not counted. "
    f"Logits of {CLASSES} classes at {NETWORK_PX} px become labels at {IMAGE_PX} px by linear interpolation; an image "
    f"of {IMAGE_PX} px goes to {NETWORK_PX} px by cubic splines. 'first run s' is wall time, with compilation or the "
    "making of the matrices. 'differs' is from scipy's result: fraction of labels, or the largest difference as a "
    "fraction of the range."
)


@numba.njit(cache=False)
def compiled_labels(logits: NDArray[np.float32], size: int) -> NDArray[np.uint8]:
    """Interpolate logits ``(K, rows, columns)`` and keep the best class, in one pass over a row of the result."""
    classes, rows, columns = logits.shape
    labels = np.zeros((size, size), np.uint8)
    best = np.empty(size, np.float32)
    x0, wx = places(columns, size)
    y0, wy = places(rows, size)
    for y in range(size):
        top, bottom = y0[y], min(y0[y] + 1, rows - 1)
        best[:] = -np.inf
        for k in range(classes):
            for x in range(size):
                left, right = x0[x], min(x0[x] + 1, columns - 1)
                above = logits[k, top, left] * (1 - wx[x]) + logits[k, top, right] * wx[x]
                below = logits[k, bottom, left] * (1 - wx[x]) + logits[k, bottom, right] * wx[x]
                value = above * (1 - wy[y]) + below * wy[y]
                if value > best[x]:
                    best[x] = value
                    labels[y, x] = k
    return labels


@numba.njit(cache=False)
def places(source: int, target: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return for the centre of each part the value before it, and the weight of the one behind that."""
    before = np.empty(target, np.int64)
    weights = np.empty(target, np.float32)
    for i in range(target):
        centre = min(max((i + 0.5) * source / target - 0.5, 0.0), source - 1.0)
        before[i] = int(centre)
        weights[i] = centre - before[i]
    return before, weights


def compare(
    what: str, ways: dict[str, Callable[[], Any]], differs: Callable[[NDArray[Any], NDArray[Any]], float]
) -> list[dict[str, Any]]:
    """Time ways to compute the same, of which the first is the reference of the others' results."""
    first_s, results = {}, {}
    for name, way in ways.items():
        start = time.perf_counter()
        results[name] = np.asarray(way()).squeeze()
        first_s[name] = time.perf_counter() - start
    times = {name: median(runs) for name, runs in interleaved(ways, repeats=REPEATS, device="cpu").items()}
    reference = next(iter(results.values()))
    return [
        {
            "what": what,
            "way": name,
            "ms": 1000 * times[name],
            "first run s": first_s[name],
            "differs": differs(results[name], reference),
        }
        for name in ways
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    blurred = [ndimage.gaussian_filter(rng.normal(size=(NETWORK_PX,) * 2), 12) for _ in range(CLASSES)]
    values = (100 * np.stack(blurred)).astype(np.float32)
    logits = torch.from_numpy(values)[np.newaxis]
    image = ndimage.gaussian_filter(rng.normal(size=(IMAGE_PX,) * 2), 1).astype(np.float32)
    pixels = torch.from_numpy(image)[np.newaxis, np.newaxis]
    down = Resampling((NETWORK_PX,) * 2, (IMAGE_PX,) * 2, order=1)
    up = Resampling((IMAGE_PX,) * 2, (NETWORK_PX,) * 2, order=3)
    resized = {"order": 1, "mode": "edge", "anti_aliasing": False}
    rows = compare(
        "logits to labels",
        {
            "skimage (scipy) for each class, argmax: nnU-Net": lambda: np.stack(
                [resize(plane, (IMAGE_PX,) * 2, **resized) for plane in values]
            ).argmax(0),
            "torch interpolate, argmax": lambda: down(logits).argmax(1),
            "torch interpolate, running maximum: used": lambda: labels_of(down(logits), None),
            "one compiled loop (numba)": lambda: compiled_labels(values, IMAGE_PX),
        },
        lambda labels, reference: float((labels != reference).mean()),
    )
    rows += compare(
        "image to network",
        {
            "scipy zoom: nnU-Net": lambda: ndimage.zoom(
                image, NETWORK_PX / IMAGE_PX, order=3, mode="nearest", grid_mode=True
            ),
            "two products with matrices: used": lambda: up(pixels),
        },
        lambda resampled, reference: float(np.abs(resampled - reference).max() / np.ptp(reference)),
    )
    write_results("prediction_choices", "cpu", rows, options.out, NOTES)


if __name__ == "__main__":
    main()
