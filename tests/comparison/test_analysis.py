from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from nnunetv2_meddino.comparison.analysis import analyse, choose_reference
from nnunetv2_meddino.comparison.folders import Method
from nnunetv2_meddino.comparison.model import ModelFacts
from nnunetv2_meddino.comparison.results import DatasetResults, MethodResults
from nnunetv2_meddino.comparison.scores import Scores
from nnunetv2_meddino.errors import ConfigurationError
from nnunetv2_meddino.evaluation.results import METRICS

DICE, HD95 = METRICS[0], METRICS[4]
NAN = np.nan
STOCK, OURS, THIRD = (Method(t, "nnUNetPlans", "2d") for t in ("nnUNetTrainer", "MedDINOv3Trainer", "DINOv3Trainer"))


def results(method: Method, dice: np.ndarray, distance: np.ndarray | None = None, cases: list[str] | None = None):
    """One row; the distances stand for both distance metrics, and Dice for the overlap metrics."""
    dice = np.asarray(dice, float)
    distance = np.ones_like(dice) if distance is None else np.asarray(distance, float)
    scores = Scores(
        tuple(cases or [f"c{i}" for i in range(len(dice))]),
        {str(k + 1): f"organ {k + 1}" for k in range(dice.shape[1])},
        {metric.key: distance if not metric.higher_is_better else dice for metric in METRICS},
        np.isnan(distance) & ~np.isnan(dice),
        np.zeros(dice.shape, bool),
    )
    facts = ModelFacts((8, 8), (1.0, 1.0), 2, None)
    return MethodResults(method, {"0": Path("fold_0")}, scores, dict.fromkeys(scores.cases, "0"), {}, facts, ())


def dataset(*rows: MethodResults, name: str = "Dataset701_A") -> DatasetResults:
    return DatasetResults(name, {}, list(rows))


def test_the_mean_over_classes_is_taken_in_each_case_first():
    # case means 0.5, 0.9 and 0.2; class means 0.6 and 0.3
    entry = analyse([dataset(results(STOCK, [[0.7, 0.3], [0.9, NAN], [0.2, NAN]]))], STOCK).entries[0]
    assert entry.estimate.mean == pytest.approx((0.5 + 0.9 + 0.2) / 3)
    assert entry.class_mean == pytest.approx((0.6 + 0.3) / 2)
    assert (entry.estimate.n, entry.comparison) == (3, None)


def test_a_missed_class_counts_as_zero_overlap_and_favours_nobody_in_distances():
    # the method misses organ 2 of case 0, on which the reference method is bad: compared on organ 1, it is worse
    ours = results(OURS, [[0.8, 0.0], [0.8, 0.8], [0.8, 0.8]], [[3, NAN], [3, 3], [3, 3]])
    stock = results(STOCK, [[0.9, 0.5], [0.9, 0.9], [0.9, 0.9]], [[1, 50], [1, 1], [1, 1]])
    analysis = analyse([dataset(stock, ours)], STOCK)
    distance = analysis.entry("Dataset701_A", OURS, HD95)
    assert (distance.estimate.mean, distance.n_missed) == (3, 1)
    assert (distance.comparison.paired.wins, distance.comparison.paired.losses) == (0, 3)
    assert distance.comparison.paired.mean == pytest.approx(2)
    overlap = analysis.entry("Dataset701_A", OURS, DICE)
    assert overlap.comparison.paired.mean == pytest.approx(-(0.3 + 0.1 + 0.1) / 3)
    assert analysis.entry("Dataset701_A", OURS, HD95, "2").comparison.paired.n == 2


def test_only_cases_that_both_methods_have_are_compared():
    ours = results(OURS, [[0.9], [0.5], [0.7]], cases=["b", "c", "d"])
    stock = results(STOCK, [[0.1], [0.6], [0.4]], cases=["a", "b", "c"])
    paired = analyse([dataset(stock, ours)], STOCK).entry("Dataset701_A", OURS, DICE).comparison.paired
    assert (paired.n, paired.wins) == (2, 2)
    assert paired.mean == pytest.approx((0.3 + 0.1) / 2)


def test_the_family_of_tests_spans_data_sets_metrics_and_methods():
    rng = np.random.default_rng(0)
    datasets, raw = [], {}
    for name in ("Dataset701_A", "Dataset702_B"):
        stock = rng.uniform(0.5, 0.9, (12, 2))
        rows = [results(STOCK, stock, stock + 1)]
        for method in (OURS, THIRD):
            values = stock + rng.normal(0.05, 0.05, (12, 2))
            rows.append(results(method, values, 2 - values))
            raw[name, method] = stats.wilcoxon(values.mean(axis=1) - stock.mean(axis=1), zero_method="pratt").pvalue
        datasets.append(dataset(*rows, name=name))
    analysis = analyse(datasets, STOCK)
    main = [e for e in analysis.entries if e.label is None and e.comparison]
    assert analysis.family == len(main) == 2 * 2 * len(METRICS)
    assert analysis.exploratory_family == 2 * 2 * 2 * len(METRICS)
    for key, p in raw.items():
        assert analysis.entry(*key, DICE).comparison.paired.p == pytest.approx(p)
    smallest = min(main, key=lambda e: e.comparison.paired.p)
    assert smallest.comparison.p_holm == pytest.approx(len(main) * smallest.comparison.paired.p)


def test_a_data_set_without_the_reference_method_has_means_and_no_tests():
    values = [[0.5], [0.6], [0.8]]
    alone = dataset(results(OURS, values), name="Dataset702_B")
    analysis = analyse([dataset(results(STOCK, values), results(OURS, values)), alone], STOCK)
    assert analysis.entry("Dataset702_B", OURS, DICE).comparison is None
    assert analysis.entry("Dataset701_A", OURS, DICE).comparison.p_holm == 1


def test_the_reference_is_nnunet_or_the_first_row_or_what_is_named():
    other = Method("nnUNetTrainer", "nnUNetPlans", "3d_fullres")
    rows = [OURS, STOCK, other, STOCK]
    assert choose_reference(None, rows) == STOCK
    assert choose_reference(None, [THIRD, OURS]) == THIRD
    assert choose_reference("MedDINOv3Trainer", rows) == OURS
    assert choose_reference(other.name, rows) == other
    with pytest.raises(ConfigurationError, match="is any of nnUNetTrainer__nnUNetPlans__2d, nnUNetTrainer__nnUNet"):
        choose_reference("nnUNetTrainer", rows)
    with pytest.raises(ConfigurationError, match=r"MedDINOv3 is not among the rows. Did you mean MedDINOv3Trainer\?"):
        choose_reference("MedDINOv3", rows)
