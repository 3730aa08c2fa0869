"""How alike two fingerprints are, whatever the headers of the scans say.

Collections restate the spacing of each other's scans, or lose it and say 1 mm, so nothing here rests on millimetres
alone. Two scans are laid against each other along lines: of the stated distances, of equal numbers of slices, and
through the slices that are most alike, whatever the step. Along a line three things count: the product of the
descriptors; that no slice is more alike elsewhere than at its place, which tells a scan from the neighbouring part of
the same patient; and that the body's size changes from slice to slice as in the other scan. A factor that all slices
share, one along each axis, is the headers' and does not count.

What was measured on 27 CT volumes of 17 patients (chest, abdomen, pelvis, head, limbs) with
``benchmarks/fingerprints.py``, each pair under the right header and under five wrong ones:

- a volume against ten exports of itself (noise, clipping, cropping, every second slice, the mean of three, half the
  pixels, most of these together): 0.947 to 1.00, 1620 of 1620 found; files of one scan: 0.992 to 1.00;
- different patients, 1830 pairs: at most 0.73, 99 of 100 below 0.56;
- adjoining parts of one patient without more than two slices in common, 402 pairs: 95 of 100 below 0.84; 12 reach the
  threshold.

A picture that was cropped through the body, or mirrored, is not found.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pretraining.curation.fingerprint import Fingerprint

NEAR_DUPLICATE = 0.9
"""Similarity from which on two volumes count as one scan; between what was measured, see above."""

MIN_OVERLAP_MM = 40.0
"""Two volumes must have as much in common along z by both headers, or four fifths of the shorter one."""

MIN_SLICES = 4
"""As many described slices are compared at least."""

SIZE_TOLERANCE = 0.08
"""Relative difference of body sizes at which a product falls to 0.61 of itself (1 / sqrt(e)), beyond the factor that
all slices share. Half the pixels move the estimate by up to 0.03."""

SPACING_TOLERANCE = 0.1
"""Relative difference from which on headers disagree; the sizes of bodies in other exports are not known better."""

_MISSED = 4.0
"""Weight of how much more alike slices are elsewhere than at their place."""

_ANCHORS = 8
"""Slices of each scan through whose best partners lines are drawn."""

_PARTNERS = 0.7
"""Product from which on two slices are partners."""

_STEEPEST = 8.0
"""One scan has at most so many slices where the other has one."""

_WEIGHED = 16
"""Lines for which body sizes are compared: the best ones by products."""

_CLEARLY = 0.02
"""Another line must be better by so much than the one of the stated distances to prove a header wrong."""


class Likeness(NamedTuple):
    """How well the shorter of two scans is found in the other."""

    similarity: float
    """From 0 (not at all) to 1."""
    scale: tuple[float, float, float]
    """If both are one scan: how long the same piece of the patient is along ``(z, y, x)`` by the first header, over its
    length by the second."""

    @property
    def spacing_disagrees(self) -> bool:
        """Tell whether one of the headers must be wrong, if both are one scan."""
        return differ(self.scale, (1.0, 1.0, 1.0), SPACING_TOLERANCE)


def differ(sizes: Sequence[float], others: Sequence[float], tolerance: float) -> bool:
    """Tell whether one of some sizes differs from its counterpart by more than a relative tolerance."""
    return bool(np.abs(np.log(np.divide(sizes, others))).max() > np.log1p(tolerance))


_UNLIKE = Likeness(0.0, (1.0, 1.0, 1.0))


def likeness(a: Fingerprint, b: Fingerprint) -> Likeness:
    """Compare two scans; symmetric.

    Each described slice is compared with the other scan at its place: with the better one of the two described slices
    on both sides of it.
    """
    if a.modality != b.modality or not len(a.slices) or not len(b.slices):
        return _UNLIKE
    present = (a.sizes_px.min(1) > 0)[:, np.newaxis] & (b.sizes_px.min(1) > 0)
    products = np.where(present, (_unit(a.slices) @ _unit(b.slices).T).clip(0), 0)
    lines, drawn = _lines(a, b, products)
    keep = _long_enough(a, b, lines)
    lines, drawn = lines[keep], drawn[keep]
    cells, used = _cells(lines, present)
    enough = _enough(used, len(a.slices), drawn)
    lines, cells, used = lines[enough], cells[enough], used[enough]
    if not len(lines):
        return _UNLIKE
    values = products.ravel()[cells].max(1)
    missed = _MISSED * (np.concatenate([products.max(1), products.max(0)]) - values)
    scores = np.where(used, values - missed, 0).sum(1) / used.sum(1)
    order = np.argsort(-scores, kind="stable")
    as_stated = order[np.isclose(lines[order, 0], a.step_mm / b.step_mm, rtol=1e-5)][:1]
    ratios = np.log(np.maximum(a.sizes_px, 1e-3))[:, np.newaxis] - np.log(np.maximum(b.sizes_px, 1e-3))

    def weigh(number: int) -> tuple[float, float, NDArray[Any]]:
        own = used[number]
        weights, factors = _sizes(products, ratios, cells[number][:, own])
        weighed = (products.ravel()[cells[number][:, own]] * weights).max(0)
        return float((weighed - missed[number][own]).mean()), lines[number, 0], factors

    best = weigh(order[0])
    for number in order[1:_WEIGHED]:
        if scores[number] <= best[0]:
            break  # sizes only take away
        best = max(best, weigh(number), key=lambda line: line[0])
    similarity, slope, factors = best
    for number in as_stated:
        own, stated_slope, stated_factors = weigh(number)
        if own >= similarity - _CLEARLY:
            slope, factors = stated_slope, stated_factors
    y, x = np.exp(factors) * np.divide(a.spacing_mm[1:], b.spacing_mm[1:])
    return Likeness(min(max(similarity, 0.0), 1.0), (float(a.step_mm / b.step_mm / slope), float(y), float(x)))


def _unit(slices: NDArray[np.int8]) -> NDArray[np.float32]:
    """Return descriptors of length 1, without what rounding has changed; where there is none, 0."""
    vectors = slices.astype(np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1)


def _lines(a: Fingerprint, b: Fingerprint, products: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return lines, and which of them were drawn through partners.

    A line has a slope and a shift: row ``i`` of ``a`` lies at ``slope * i + shift`` among the rows of ``b``.
    """
    lines = []
    for slope in {round(a.step_mm / b.step_mm, 6), round(a.stride / b.stride, 6)}:
        step = min(slope, 1.0)  # a row of the scan with the denser ones
        shifts = step * np.arange(np.ceil(-slope * len(a.slices) / step), len(b.slices) / step)
        lines.append(np.stack([np.full(len(shifts), slope), shifts], axis=1))
    pairs = {(row, int(products[row].argmax())) for row in _anchors(products)}
    pairs |= {(int(products[:, row].argmax()), row) for row in _anchors(products.T)}
    through: list[tuple[float, float]] = []
    for (i, j), (k, m) in itertools.combinations(sorted(pairs), 2):
        slope = (m - j) / (k - i) if k > i else 0.0
        if 1 / _STEEPEST < slope * b.stride / a.stride < _STEEPEST:
            through.append((slope, j - slope * i))
    lines.append(np.reshape(through, (-1, 2)))
    drawn = np.repeat(np.arange(len(lines)) == len(lines) - 1, [len(own) for own in lines])
    return np.concatenate(lines), drawn


def _anchors(products: NDArray[Any]) -> list[int]:
    """Return rows, evenly spread, that have a partner."""
    rows = np.unique(np.linspace(0, len(products) - 1, _ANCHORS).round().astype(int))
    return [int(row) for row in rows[products[rows].max(1) >= _PARTNERS]]


def _long_enough(a: Fingerprint, b: Fingerprint, lines: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Tell along which lines the scans have enough in common."""
    slope, shift = lines.T
    length_a, length_b = len(a.slices), len(b.slices) / slope  # all in rows of a
    common = np.minimum(length_a, length_b - shift / slope) - np.maximum(0, -shift / slope)
    needed = np.maximum(MIN_OVERLAP_MM / a.step_mm, MIN_OVERLAP_MM / (b.step_mm * slope))
    return common >= np.minimum(needed, 0.8 * np.minimum(length_a, length_b)) - 1e-6


def _cells(lines: NDArray[np.float64], present: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return which products say how well each row of both scans fits at its place, for every line.

    Returns:
        ``(lines, 2, rows)`` indices into the raveled products, of the rows of the first scan, then of the second: the
        other scan's slices before and after the place; and ``(lines, rows)`` whether the place is inside, between
        slices with a body.
    """
    slope, shift = lines[:, :1], lines[:, 1:]
    rows, columns = (np.arange(size) for size in present.shape)
    cells: list[NDArray[np.int64]] = []
    used: list[NDArray[np.bool_]] = []
    for place, last in ((slope * rows + shift, len(columns) - 1), ((columns - shift) / slope, len(rows) - 1)):
        place = np.round(place, 6)  # a place on a slice is there, not a trifle beside it
        before = np.floor(place).astype(np.int64).clip(0, last)
        after = np.ceil(place).astype(np.int64).clip(0, last)
        own = [rows * len(columns) + at if not cells else at * len(columns) + columns for at in (before, after)]
        cells.append(np.stack(own, axis=1))
        used.append((place >= 0) & (place <= last) & present.ravel()[cells[-1]].all(1))
    return np.concatenate(cells, axis=2), np.concatenate(used, axis=1)


def _enough(used: NDArray[np.bool_], rows: int, drawn: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Tell along which lines enough slices are compared, ``rows`` of them of the first scan.

    Any slope at all could lay a whole scan beside the one slice at the other's end, so along lines that were drawn
    enough slices of both scans are compared.
    """
    first, second = used[:, :rows].sum(1), used[:, rows:].sum(1)
    return (first + second >= MIN_SLICES) & (~drawn | (np.minimum(first, second) >= MIN_SLICES))


def _sizes(
    products: NDArray[Any], ratios: NDArray[np.float32], cells: NDArray[np.int64]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return weights ``(2, rows)`` of the products of one line, and the logarithm of the factor of body sizes."""
    own = ratios.reshape(-1, 2)[cells]
    nearest = products.ravel()[cells].argmax(0)
    factors = np.median(own[nearest, np.arange(cells.shape[1])], axis=0)
    return np.exp(-((own - factors) ** 2).sum(2) / (2 * SIZE_TOLERANCE**2)), factors
