"""Means with intervals and paired tests; the unit is the case. Arrays in, numbers out."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 10_000
SEED = 0
MIN_CASES = 3
"""Fewer values have no interval: the jackknife of BCa says nothing about the skewness of two."""

_BATCH = 500  # resamples at a time: memory stays small with thousands of cases


@dataclass(frozen=True)
class Interval:
    """A 95 % confidence interval."""

    low: float
    high: float


@dataclass(frozen=True)
class Estimate:
    """A mean over cases."""

    mean: float
    """NaN where there is no value."""
    interval: Interval | None
    """None with fewer than ``MIN_CASES`` values or where all are equal."""
    n: int
    """Number of values."""


@dataclass(frozen=True)
class Paired:
    """A method against the reference method on the same cases; differences are method minus reference."""

    n: int
    """Pairs."""
    mean: float
    """Mean difference."""
    mean_interval: Interval | None
    """Its interval, or None as in ``Estimate``."""
    median: float
    """Median difference."""
    median_interval: Interval | None
    """Its interval."""
    wins: int
    """Cases in which the method is better; ``ties`` are exactly equal."""
    ties: int
    """Cases without a difference."""
    losses: int
    """Cases in which the reference is better."""
    p: float | None
    """Two-sided p of the Wilcoxon signed-rank test; 1 where no case differs, None without pairs."""


def estimate(values: NDArray[np.float64]) -> Estimate:
    """Return the mean over cases and its bootstrap interval.

    Args:
        values: One value for each case, ``(N,)``; NaN is left out.
    """
    defined = values[~np.isnan(values)]
    return Estimate(
        mean=math.fsum(defined) / len(defined) if len(defined) else math.nan,
        interval=bootstrap_interval(defined, np.mean),
        n=len(defined),
    )


def bootstrap_interval(values: NDArray[np.float64], statistic: Callable[..., Any]) -> Interval | None:
    """Return the BCa bootstrap interval of a statistic, 10,000 resamples over cases, the same at every call.

    BCa is Efron's bias-corrected and accelerated interval (J. Am. Stat. Assoc. 82, 1987), as scipy implements it.

    Args:
        values: One value for each case, ``(N,)``.
        statistic: ``numpy.mean`` or another that takes ``axis``.

    Returns:
        None with fewer than ``MIN_CASES`` values, and where resampling shows no spread: an interval of no width would
        claim a certainty that nobody has.
    """
    if len(values) < MIN_CASES or np.ptp(values) == 0:
        return None
    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)  # comes back as NaN, which is looked at below
        result = stats.bootstrap(
            (values,),
            statistic,
            n_resamples=RESAMPLES,
            batch=_BATCH,
            confidence_level=CONFIDENCE,
            method="BCa",
            rng=np.random.default_rng(SEED),
        )
    low, high = (float(bound) for bound in result.confidence_interval)
    return Interval(low, high) if math.isfinite(low) and math.isfinite(high) and low < high else None


def paired(values: NDArray[np.float64], reference: NDArray[np.float64], *, higher_is_better: bool) -> Paired:
    """Compare a method with the reference method case by case.

    The test is Wilcoxon's signed-rank test, two-sided, with Pratt's treatment of zeros (J. Am. Stat. Assoc. 54, 1959):
    cases without a difference take part in the ranking. It is exact for small samples, as scipy chooses.

    Args:
        values: The method's values, ``(N,)``.
        reference: The reference method's values of the same cases, ``(N,)``. Where either is NaN the case is left out.
        higher_is_better: Whether a positive difference is a win.

    Raises:
        ValueError: The arrays differ in length.
    """
    if values.shape != reference.shape:
        raise ValueError(f"paired values need the same cases; got {values.shape} and {reference.shape}")
    differences = (values - reference)[~np.isnan(values) & ~np.isnan(reference)]
    n = len(differences)
    better = differences if higher_is_better else -differences
    if n == 0:
        p = None
    elif np.any(differences):
        p = float(stats.wilcoxon(differences, zero_method="pratt", alternative="two-sided").pvalue)
    else:
        p = 1.0
    return Paired(
        n=n,
        mean=math.fsum(differences) / n if n else math.nan,
        mean_interval=bootstrap_interval(differences, np.mean),
        median=float(np.median(differences)) if n else math.nan,
        median_interval=bootstrap_interval(differences, np.median),
        wins=int(np.count_nonzero(better > 0)),
        ties=int(np.count_nonzero(better == 0)),
        losses=int(np.count_nonzero(better < 0)),
        p=p,
    )


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return p-values adjusted for the whole family (Holm, Scand. J. Stat. 6, 1979), in the order given.

    The i-th smallest of m is multiplied by m - i + 1, made no smaller than the one before it, and capped at 1. A None
    is no test: it does not count in m and stays None.
    """
    tested = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * p))
        adjusted[index] = largest
    return adjusted
