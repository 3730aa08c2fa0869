"""Chooses the colours of pictures: far apart for every kind of colour vision, and from CT's greys.

Greedy: each colour is the candidate whose smallest CIEDE2000 distance to those before it is largest, seen by normal,
protan, deutan and tritan eyes (Machado, Oliveira and Fernandes 2009, severity 1); so the first are furthest apart.
Distances in normal vision count half: where dichromats just tell two colours apart, they are plainly different to
everybody else. Every candidate is tried as the first colour; the order whose distances add up to most wins.

    python benchmarks/colours.py

prints, for each colour, its smallest distance to those before it, not weighted, over all and in normal vision.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from skimage.color import deltaE_ciede2000, rgb2lab

COUNT = 24
LEVELS = np.linspace(0, 255, 14).round() / 255
"""Of red, green and blue."""

LIGHTNESS = (38, 90)
"""CIELAB: outlines stay visible on a black and on a white page."""

GREY_DISTANCE, NORMAL_GREY_DISTANCE = 8.0, 18.0
"""Smallest CIEDE2000 distance of a colour to any grey: in each kind of vision, and in the normal one."""

NORMAL_WEIGHT = 0.5
"""Of distances in normal vision in the search."""

# Machado, Oliveira and Fernandes, "A Physiologically-based Model for Simulation of Color Vision Deficiency", IEEE TVCG
# 15(6), 2009, the tables for severity 1; they act on linear RGB.
VISIONS = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def seen(rgb: NDArray[np.float64], vision: str) -> NDArray[np.float64]:
    """Return the CIELAB values ``(N, 3)`` of sRGB colours ``(N, 3)`` from 0 to 1 as one kind of vision sees them."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    linear = np.clip(linear @ np.asarray(VISIONS[vision]).T, 0, 1)
    shown = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return rgb2lab(shown)


def distances(
    a: NDArray[np.float64], b: NDArray[np.float64], visions: Iterable[str] = VISIONS, *, normal_weight: float = 1
) -> NDArray[np.float32]:
    """Return the smallest CIEDE2000 distance over kinds of vision between two lists of colours, ``(A, B)``."""
    parts = []
    for vision in visions:
        part = deltaE_ciede2000(seen(a, vision)[:, None], seen(b, vision)[None])
        parts.append((part * (normal_weight if vision == "normal" else 1)).astype(np.float32))
    return np.minimum.reduce(parts)


def candidates() -> NDArray[np.float64]:
    """Return the sRGB colours ``(N, 3)`` that are neither too dark nor too light nor close to a grey."""
    rgb = np.array(list(itertools.product(LEVELS, repeat=3)))
    lightness = rgb2lab(rgb)[:, 0]
    rgb = rgb[(lightness >= LIGHTNESS[0]) & (lightness <= LIGHTNESS[1])]
    greys = np.repeat(np.linspace(0, 1, 52)[:, None], 3, axis=1)
    rgb = rgb[distances(rgb, greys, ("normal",)).min(axis=1) >= NORMAL_GREY_DISTANCE]
    return rgb[distances(rgb, greys).min(axis=1) >= GREY_DISTANCE]


def greedy(between: NDArray[np.float32], first: int) -> tuple[list[int], float]:
    """Return the colours in order, and the sum of each one's distance to the nearest before it."""
    chosen, nearest, total = [first], between[first].copy(), 0.0
    while len(chosen) < COUNT:
        best = int(nearest.argmax())
        total += float(nearest[best])
        chosen.append(best)
        np.minimum(nearest, between[best], out=nearest)
    return chosen, total


def main() -> None:
    """Print the colours in order."""
    rgb = candidates()
    between = distances(rgb, rgb, normal_weight=NORMAL_WEIGHT)
    chosen, _ = max((greedy(between, first) for first in range(len(rgb))), key=lambda found: found[1])
    print(f"{len(rgb)} candidates")
    for number, index in enumerate(chosen):
        code = "#" + "".join(f"{round(255 * part):02X}" for part in rgb[index])
        steps = [distances(rgb[[index]], rgb[chosen[:number]], v).min(initial=np.inf) for v in (VISIONS, ("normal",))]
        print(number + 1, code, *(f"{step:.1f}" for step in steps))


if __name__ == "__main__":
    main()
