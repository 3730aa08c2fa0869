from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from nnunetv2_meddino.comparison.statistics import Interval, bootstrap_interval, estimate, holm, paired

# Hamilton depression scores before and after, nine patients (Hollander and Wolfe 1973, p. 29; R's ?wilcox.test):
# V = 40, exact one-sided p = 0.01953
BEFORE = np.array([1.83, 0.50, 1.62, 2.48, 1.68, 1.88, 1.55, 3.06, 1.30])
AFTER = np.array([0.878, 0.647, 0.598, 2.05, 1.06, 1.29, 1.06, 3.14, 1.29])
SKEWED = np.random.default_rng(3).exponential(size=25)


def test_an_interval_is_scipys_bca_of_ten_thousand_resamples_with_a_fixed_seed():
    expected = stats.bootstrap((SKEWED,), np.mean, n_resamples=10_000, method="BCa", rng=np.random.default_rng(0))
    interval = estimate(SKEWED).interval
    assert (interval.low, interval.high) == pytest.approx(tuple(expected.confidence_interval), rel=1e-12)
    assert estimate(SKEWED) == estimate(SKEWED)


def test_an_interval_of_many_normal_values_has_the_width_of_theory():
    values = np.random.default_rng(0).normal(5, 2, 400)
    half = stats.norm.ppf(0.975) * values.std(ddof=1) / 20
    interval = estimate(values).interval
    assert interval.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_undefined_values_are_left_out_and_counted_out():
    with_gaps = np.insert(SKEWED, [3, 9], np.nan)
    assert estimate(with_gaps) == estimate(SKEWED)
    assert estimate(with_gaps).n == 25


@pytest.mark.parametrize("values", [[], [0.5], [0.5, 0.9], [0.7, 0.7, 0.7, 0.7]])
def test_too_few_or_equal_values_have_no_interval(values):
    result = estimate(np.array(values))
    assert result.interval is None
    assert result.n == len(values)
    assert result.mean == pytest.approx(np.mean(values)) if values else np.isnan(result.mean)


def test_a_median_that_resampling_cannot_move_has_no_interval():
    assert bootstrap_interval(np.array([0.0] * 19 + [1.0]), np.median) is None


def test_wilcoxon_of_the_textbook():
    result = paired(BEFORE, AFTER, higher_is_better=True)
    assert result.p == pytest.approx(2 * 0.01953125)
    assert (result.wins, result.ties, result.losses) == (7, 0, 2)


def test_cases_without_a_difference_are_ranked_as_pratt_does():
    differences = np.array([0, 0, 0, -0.1, -0.2, 0.3, 0.4, 0.5])
    ranks = stats.rankdata(np.abs(differences))  # zeros take ranks, and then no side
    moving = ranks[differences != 0]
    sums = [np.dot(signs, moving) for signs in itertools.product((-1, 1), repeat=len(moving))]
    observed = np.sum(np.sign(differences) * ranks)
    exact = np.mean(np.abs(sums) >= abs(observed))
    assert exact == 14 / 32  # without the zeros in the ranking it would be 10 / 32
    assert paired(differences, np.zeros(8), higher_is_better=True).p == pytest.approx(exact)


def test_pratt_and_wilcoxon_differ_where_many_cases_are_equal():
    differences = np.concatenate([np.zeros(30), np.linspace(0.1, 1.2, 11), [-1.15]])
    result = paired(differences, np.zeros(len(differences)), higher_is_better=True)
    assert result.p == pytest.approx(stats.wilcoxon(differences, zero_method="pratt").pvalue)
    assert abs(result.p - stats.wilcoxon(differences, zero_method="wilcox").pvalue) > 0.002
    assert (result.n, result.ties) == (42, 30)


def test_differences_are_method_minus_reference_and_a_smaller_distance_wins():
    method, reference = np.array([1.0, 1.0, 2.0, 3.0, np.nan, 5.0]), np.array([2.0, 4.0, 2.0, 2.0, 1.0, np.nan])
    result = paired(method, reference, higher_is_better=False)
    assert (result.n, result.wins, result.ties, result.losses) == (4, 2, 1, 1)
    assert (result.mean, result.median) == (-0.75, -0.5)
    result = paired(np.array([0.1, 0.4, 1.3]), np.zeros(3), higher_is_better=True)
    assert (result.mean, result.median) == pytest.approx((0.6, 0.4))


def test_the_intervals_of_a_difference_resample_pairs():
    method, reference = SKEWED + np.linspace(0.05, 0.15, 25), SKEWED
    result = paired(method, reference, higher_is_better=True)
    assert 0.05 < result.mean_interval.low < 0.1 < result.mean_interval.high < 0.15  # unpaired it would hold 0
    assert 0.05 < result.median_interval.low < 0.1 < result.median_interval.high < 0.15


def test_equal_methods_have_no_interval_and_p_is_one():
    result = paired(SKEWED, SKEWED, higher_is_better=True)
    assert (result.p, result.ties, result.mean, result.mean_interval) == (1.0, 25, 0.0, None)


def test_without_pairs_there_is_no_test():
    nothing = np.array([np.nan, 1.0])
    result = paired(nothing, nothing[::-1], higher_is_better=True)
    assert (result.n, result.p) == (0, None)


def test_other_cases_are_refused():
    with pytest.raises(ValueError, match="same cases"):
        paired(np.zeros(3), np.zeros(4), higher_is_better=True)


def test_holm_of_the_literature():
    # The example of the Wikipedia article on Holm's method (4 hypotheses at 5 %): only H1 and H4 are rejected.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    # R: p.adjust(c(0.01, 0.02, 0.03, 0.04, 0.05), "holm")
    assert holm([0.05, 0.04, 0.03, 0.02, 0.01]) == pytest.approx([0.09, 0.09, 0.09, 0.08, 0.05])


def test_holm_never_exceeds_one_and_counts_no_missing_test():
    assert holm([0.6, None, 0.7]) == [1.0, None, 1.0]
    assert holm([None, 0.02]) == [None, 0.02]
    assert holm([]) == []


def test_an_interval_contains_numbers():
    assert bootstrap_interval(np.array([1.0, 2.0, 4.0]), np.mean) != Interval(1.0, 4.0)
