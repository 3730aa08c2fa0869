"""Which cases a reproduction trains on and judges."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from nnunetv2_meddino.cli import reproduce
from nnunetv2_meddino.errors import DataError
from nnunetv2_meddino.reproduction.study import ALL, STUDIES, Row, Study
from nnunetv2_meddino.trainers import TRAINERS
from nnunetv2_meddino.trainers.fine_tuning import SETTINGS
from pretraining.config.recipes import RECIPES

SMALL = STUDIES["small"]
CASES = [f"sts_{number:03d}" for number in (10, 15, 18, 24, 28, 32, 47, 50)]


def test_every_case_is_held_out_once_with_every_number_of_labels():
    splits, folds = SMALL.splits(CASES), SMALL.folds(len(CASES))
    assert list(folds) == ["1 case", "2 cases", "4 cases", ALL]
    assert sorted(number for numbers in folds.values() for number in numbers) == list(range(len(splits)))
    for label, numbers in folds.items():
        held_out = Counter(case for number in numbers for case in splits[number]["val"])
        assert held_out == Counter(CASES), label
        for number in numbers:
            train, validation = (set(splits[number][part]) for part in ("train", "val"))
            assert not train & validation
            assert len(train) == (len(CASES) - len(validation) if label == ALL else int(label.split()[0]))


def test_a_seed_keeps_its_held_out_cases_and_its_few_cases_are_among_its_more():
    splits, folds = SMALL.splits(CASES), list(SMALL.folds(len(CASES)).values())
    for fewer, more in zip(folds, folds[1:], strict=False):
        for a, b in zip(fewer, more, strict=True):
            assert splits[a]["val"] == splits[b]["val"]
            assert set(splits[a]["train"]) < set(splits[b]["train"])


def test_numbers_of_cases_that_are_not_fewer_than_all_are_left_out():
    assert list(SMALL.folds(5)) == ["1 case", "2 cases", ALL]  # four of five cases are all that is not held out
    assert list(replace(SMALL, seeds=2).folds(2)) == [ALL]


def test_too_few_cases_are_refused():
    with pytest.raises(DataError, match="4 labelled cases cannot be divided into 5 parts"):
        SMALL.splits(CASES[:4])


def test_plans_of_a_row_differ_in_name_and_batch_alone():
    configurations = {"2d": {"batch_size": 40}, "2d_224": {"inherits_from": "2d"}, "2d_112": {"batch_size": 9}}
    plans = {"plans_name": "nnUNetPlans", "configurations": configurations, "dataset_name": "D"}
    row = Row("Stage1", "after stage 1", "stage1")
    changed = SMALL.plans_of(row, plans)
    assert changed["plans_name"] == "Stage1Plans"
    assert changed["configurations"]["2d_224"] == {"inherits_from": "2d", "batch_size": SMALL.batch_size}
    assert (changed["configurations"]["2d"], changed["dataset_name"]) == ({"batch_size": 40}, "D")
    assert plans["configurations"]["2d_224"] == {"inherits_from": "2d"}, "the dataset's own plans stay as they are"


def test_the_command_takes_every_study():
    assert set(reproduce.STUDIES) == set(STUDIES)


@pytest.mark.parametrize("study", STUDIES.values(), ids=STUDIES)
def test_studies_name_what_exists(study: Study):
    assert study.recipe in RECIPES
    assert len({row.name for row in study.rows}) == len(study.rows)
    assert all(row.trainer in TRAINERS and row.fine_tuning in SETTINGS for row in study.rows)
    assert study.rows[0].few_labels, "what the others are compared with is needed with every number of labels"


def test_the_first_two_rows_are_complete_before_another_begins():
    parts = SMALL.parts()
    assert parts[:6] == [(2, 1), (2, 2), (2, 3), (2, 4), (2, 5), (3, 5)]
    assert parts[-1] == (len(SMALL.rows), 5)
    assert replace(SMALL, rows=SMALL.rows[:1], seeds=2).parts() == [(1, 1), (1, 2)]
