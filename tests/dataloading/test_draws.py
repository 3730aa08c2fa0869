"""Samples are drawn as nnU-Net draws them where it is right, evenly where it is not, and again alike."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from scipy.stats import chi2_contingency, chisquare

from nnunetv2_meddino.dataloading.draws import Draws, Stream
from nnunetv2_meddino.errors import ConfigurationError, DataError
from nnunetv2_meddino.inference.sliding_window import SlidingWindow

SHAPE = (6, 12, 15)
COUNT = 4000
LABELS = [0, 1, 2, 3]
ANNOTATED = (-1, *LABELS)


class Volumes:
    """Cases that are nothing but positions of foreground; ``Cases`` for us, a dataset for nnU-Net."""

    def __init__(self, **locations: dict) -> None:
        self.locations = {
            case: {label: np.array([(0, *v) for v in voxels]) for label, voxels in of_case.items()}
            for case, of_case in locations.items()
        }
        self.names = self.identifiers = list(locations)

    def shape(self, case):
        return SHAPE

    def foreground(self, case):
        of_case = self.locations[case].items()
        return {k: np.ravel_multi_index(v.reshape(-1, 4).astype(int).T[1:], SHAPE) for k, v in of_case}


def voxels(*slices: int) -> list[tuple[int, int, int]]:
    return [(z, y, x) for z in slices for y in (3, 6) for x in (2, 7, 9)]


CASES = Volumes(
    a={1: voxels(0, 0, 1), 2: voxels(2), 3: []},
    b={1: voxels(4), 2: [], 3: voxels(1, 5)},
    c={1: [], 2: [], 3: []},
)


def draws(cases=CASES, size=(8, 10), *, batch_size=3, forced=1 / 3, seed=5, stream=Stream.TRAINING, **options):
    return Draws(cases, size, batch_size=batch_size, forced=forced, seed=seed, stream=stream, **options)


def drawn(count: int = COUNT, **settings) -> list:
    source = draws(**settings)
    return [source.draw(*divmod(number, source.batch_size)) for number in range(count)]


def of_nnunet(cases: Volumes, size, *, force: bool, count: int = COUNT, ignore: bool = False) -> list[tuple]:
    """Case, slice and corner of nnU-Net's samples, with a random state of their own."""
    labels = SimpleNamespace(all_labels=LABELS, has_ignore_label=ignore)
    loader = nnUNetDataLoader(cases, 1, size, size, labels)
    before = np.random.get_state()
    np.random.seed(3)
    found = []
    for _ in range(count):
        (case,) = loader.get_indices()
        (z, y, x), _ = loader.get_bbox(np.array(SHAPE), force, cases.locations[case])
        found.append((str(case), int(z), (int(y), int(x))))
    np.random.set_state(before)
    return found


def assert_alike(first: list, second: list) -> None:
    """Two samples of one distribution, by the chi-squared test; the seeds are fixed."""
    kinds = sorted({*first, *second})
    table = np.array([[sample.count(kind) for kind in kinds] for sample in (first, second)])
    assert chi2_contingency(table).pvalue > 0.01, dict(zip(kinds, table.T.tolist(), strict=True))


def test_cases_slices_and_boxes_without_force_are_those_of_nnunet():
    ours = [(d.case, d.slice_index, d.corner) for d in drawn(forced=0)]
    stock = of_nnunet(CASES, (8, 10), force=False)
    for part in range(3):
        assert_alike([d[part] for d in ours], [d[part] for d in stock])


def test_forced_classes_and_their_slices_are_those_of_nnunet():
    """In each case a slice belongs to one class, so that nnU-Net's slice tells the class that it does not report."""
    ours = drawn(forced=1)
    assert_alike([(d.case, d.slice_index) for d in ours], [d[:2] for d in of_nnunet(CASES, (8, 10), force=True)])
    assert {(d.case, d.label) for d in ours} == {("a", 1), ("a", 2), ("b", 1), ("b", 3), ("c", None)}
    classes = [d.label for d in ours if d.case == "a"]
    assert chisquare([classes.count(1), classes.count(2)]).pvalue > 0.01


def test_boxes_that_are_not_forced_hold_an_annotated_voxel_where_there_is_an_ignore_label():
    some = {1: voxels(2), 2: [], 3: [], ANNOTATED: voxels(2, 3, 3)}
    cases = Volumes(a=some, b={1: [], 2: [], 3: [], ANNOTATED: []}, c={1: [], 2: [], 3: [], ANNOTATED: voxels(5)})
    for forced in (0, 1):
        ours = drawn(cases=cases, forced=forced, annotated=ANNOTATED)
        stock = of_nnunet(cases, (8, 10), force=bool(forced), ignore=True)
        assert_alike([(d.case, d.slice_index) for d in ours], [d[:2] for d in stock])
        assert {d.label for d in ours if d.case == "a"} == ({1} if forced else {ANNOTATED})
        assert {d.label for d in ours if d.case == "b"} == {None}
        assert {d.label for d in ours if d.case == "c"} == {ANNOTATED}


@pytest.mark.parametrize(
    ("voxel", "rows", "columns"),
    [
        ((0, 0), (0, 0), (0, 0)),
        ((11, 14), (4, 4), (5, 5)),
        ((6, 1), (0, 4), (0, 1)),
        ((2, 12), (0, 2), (3, 5)),
    ],
)
def test_a_forced_box_is_drawn_evenly_among_those_in_the_slice_that_hold_the_voxel(voxel, rows, columns):
    corners = [d.corner for d in drawn(cases=Volumes(a={1: [(3, *voxel)]}), forced=1)]
    expected = list(itertools.product(range(rows[0], rows[1] + 1), range(columns[0], columns[1] + 1)))
    counts = [corners.count(corner) for corner in expected]
    assert sum(counts) == COUNT
    assert chisquare(counts).pvalue > 0.01 or len(counts) == 1


def test_a_forced_box_as_large_as_the_slice_is_the_slice_where_that_of_nnunet_is_23_percent_padding():
    """Half of the voxels of a slice are behind its middle, by a quarter on average: 1 - (1 - 1/8)^2 for both axes."""
    cases = Volumes(a={1: [(1, *place) for place in np.ndindex(SHAPE[1:])]})
    assert {d.corner for d in drawn(cases=cases, size=SHAPE[1:], forced=1)} == {(0, 0)}
    corners = [corner for *_, corner in of_nnunet(cases, SHAPE[1:], force=True)]
    inside = [(SHAPE[1] - row) * (SHAPE[2] - column) / np.prod(SHAPE[1:]) for row, column in corners]
    assert 1 - np.mean(inside) == pytest.approx(1 - (7 / 8) ** 2, abs=0.03)


def test_a_smaller_slice_lies_in_the_middle_of_the_box_as_in_prediction():
    size = (17, 22)
    (corner,) = {d.corner for d in drawn(size=size, forced=0.5)}
    seen: list[torch.Tensor] = []
    window = SlidingWindow(SHAPE[1:], size, 0.5, torch.device("cpu"))
    window.logits(torch.ones(1, 1, *SHAPE[1:]), lambda padded: seen.append(padded) or padded)
    assert corner == tuple((-seen[0][0, 0].nonzero()[0]).tolist())


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("share", [0.33, 1 / 3, 0.5, 0, 1])
def test_the_share_of_forced_samples_is_the_one_asked_for_at_every_batch_size(batch_size, share):
    source = draws(batch_size=batch_size, forced=share)
    batches = [sum(source.is_forced(step, place) for place in range(batch_size)) for step in range(1000)]
    assert all(abs(count - batch_size * share) < 1 for count in batches)
    for steps in (1, 10, 100, 1000):
        assert abs(sum(batches[:steps]) - steps * batch_size * share) < 1 + 1e-6


def test_a_sample_is_the_same_whatever_was_drawn_before_and_differs_between_seeds_streams_and_places():
    alone = draws(forced=0).draw(40, 2)
    assert alone == drawn(123, forced=0)[-1]
    others = [draws(forced=0, seed=6).draw, draws(forced=0, stream=Stream.VALIDATION).draw, draws(forced=0).draw]
    sequence = [[draw(step, place) for step in range(20)] for draw in others for place in (0, 1)]
    assert all(a != b for a, b in itertools.combinations(sequence, 2))


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(DataError, match="Case [abc] was preprocessed before .* ignore label"):
        draws(annotated=ANNOTATED).draw(0, 0)
    with pytest.raises(ConfigurationError, match=r"oversample_foreground_percent is 33"):
        draws(forced=33)
    with pytest.raises(DataError, match="no case"):
        draws(cases=Volumes())
