import itertools

import numpy as np
import pytest
from scipy import stats

from nnunetv2_meddino.errors import ConfigurationError
from pretraining.corpus.sampler import CYCLE, SampleOrder, StepSampler, shares_of


def sampler(order, **changes):
    settings = {"batch_size": 6, "rank": 0, "world_size": 1, "start_step": 0, "slots": 2} | changes
    return StepSampler(order, **settings)


def draws(order, count, **settings):
    return list(itertools.islice(sampler(order, **settings), count))


@pytest.fixture(scope="module")
def order():
    return SampleOrder([np.arange(100, 150), np.arange(1000, 1007)], [0.75, 0.25], seed=11)


def test_every_order_of_four_slices_is_equally_likely():
    epochs = SampleOrder([np.arange(4)], [1.0], seed=3).rows(0, 4 * 4800).reshape(-1, 4)
    counts = np.unique(epochs, axis=0, return_counts=True)[1]
    assert len(counts) == 24
    assert stats.chisquare(counts).pvalue > 0.01


def test_every_cycle_mixes_the_sources_anew(order):
    first, second = (order.rows(cycle * CYCLE, 1000) >= 1000 for cycle in (0, 1))
    assert (first != second).any()


def test_sources_and_seeds_have_orders_of_their_own():
    groups = [np.arange(100), np.arange(100, 200)]
    first, second = (SampleOrder(groups, [0.5, 0.5], seed=seed).rows(0, 400) for seed in (1, 2))
    assert (first != second).any()
    assert (first[first < 100][:50] != first[first >= 100][:50] - 100).any()


def test_all_slices_are_seen_once_in_every_epoch_and_in_a_new_order():
    rows = np.array([3, 5, 8, 13, 21, 34, 55])
    order = SampleOrder([rows], [1.0], seed=2)
    epochs = order.rows(0, 7 * 40).reshape(40, 7)
    for epoch in epochs:
        assert sorted(epoch.tolist()) == rows.tolist()
    assert len({tuple(epoch) for epoch in epochs.tolist()}) > 35


def test_every_source_runs_through_its_own_epochs_and_has_its_exact_share(order):
    rows = order.rows(0, CYCLE)
    first, second = rows[rows < 1000], rows[rows >= 1000]
    assert len(first) == CYCLE * 3 // 4
    for of_source, size in ((first, 50), (second, 7)):
        whole = of_source[: len(of_source) // size * size].reshape(-1, size)
        assert (np.sort(whole, axis=1) == np.unique(of_source)).all()
    # sources are mixed throughout: within any thousand samples, the share is near
    assert abs((rows[:1000] >= 1000).mean() - 0.25) < 0.05


def test_epochs_of_a_source_go_on_over_the_end_of_a_cycle(order):
    rows = order.rows(CYCLE - 500, 1000)
    before = int((order.rows(0, CYCLE - 500) >= 1000).sum())
    second = rows[rows >= 1000][-before % 7 :]
    whole = second[: len(second) // 7 * 7].reshape(-1, 7)
    assert (np.sort(whole, axis=1) == np.arange(1000, 1007)).all()


def test_a_sample_does_not_depend_on_what_was_asked_before(order):
    fresh = SampleOrder([np.arange(100, 150), np.arange(1000, 1007)], [0.75, 0.25], seed=11)
    far = 9 * CYCLE + 4321
    order.rows(0, 10)
    np.testing.assert_array_equal(order.rows(far - 3, 50)[3:], fresh.rows(far, 47))


@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
def test_the_union_over_ranks_is_the_same_global_batch(order, world_size):
    expected = order.rows(0, 12 * 5).reshape(5, 12)
    ranks = [draws(order, 5, batch_size=12 // world_size, rank=r, world_size=world_size) for r in range(world_size)]
    for step, parts in enumerate(zip(*ranks, strict=True)):
        np.testing.assert_array_equal(np.concatenate([part.rows for part in parts]), expected[step])
        np.testing.assert_array_equal(np.concatenate([part.global_index for part in parts]), np.arange(12))
        assert {part.step for part in parts} == {step}


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("start_step", [1, 7, 123_456])
def test_a_resumed_run_goes_on_as_the_undisturbed_one(order, world_size, start_step):
    settings = {"batch_size": 8 // world_size, "rank": world_size - 1, "world_size": world_size}
    before = draws(order, 4, start_step=start_step - 1, **settings)[1:]
    resumed = draws(order, 3, start_step=start_step, **settings)
    for a, b in zip(before, resumed, strict=True):
        assert a.step == b.step
        np.testing.assert_array_equal(a.rows, b.rows)


def test_shares_follow_weights_and_leave_out_what_is_not_named():
    assert shares_of({"b": 3, "a": 1}, {"a": 5, "b": 5, "c": 5}) == {"a": 0.25, "b": 0.75}
    assert shares_of({}, {"a": 5}) == {}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"z": 1}, "'z': no usable slices; the corpus has: a, b"),
        ({"empty": 1}, "'empty': no usable slices"),
        ({"a": 0}, "positive"),
        ({"a": -1}, "positive"),
        ({"a": float("nan")}, "positive"),
        ({"a": 1, "b": 1e-6}, "less than one in 65536"),
    ],
)
def test_refuses_weights_that_cannot_be_met(weights, message):
    with pytest.raises(ConfigurationError, match=message):
        shares_of(weights, {"a": 5, "b": 5, "empty": 0})


@pytest.mark.parametrize(
    "changes", [{"batch_size": 0}, {"rank": 1}, {"rank": -1}, {"world_size": 0}, {"start_step": -1}]
)
def test_refuses_numbers_out_of_range(order, changes):
    with pytest.raises(ConfigurationError, match="at least 1"):
        sampler(order, **changes)
