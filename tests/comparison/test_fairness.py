from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nnunetv2_meddino.comparison.fairness import catalog_entry, collections_of, notices
from nnunetv2_meddino.comparison.folders import Method
from nnunetv2_meddino.comparison.model import ModelFacts, Training
from nnunetv2_meddino.comparison.results import DatasetResults, MethodResults
from nnunetv2_meddino.comparison.scores import Scores
from nnunetv2_meddino.evaluation.results import METRICS
from nnunetv2_meddino.weights.catalog import CATALOG

TRAINING = Training(True, 1000, 1000, 250, 3600.0, 1.7e9, "GPU X", (0, 1), None)
CT_3M = {"name": "meddinov3_vitb16_ct3m"}


def row(trainer: str, *, training: Training = TRAINING, cases: int = 8, folds: str = "0", remarks=(), **model):
    values = np.full((cases, 1), 0.9)
    empty = np.zeros((cases, 1), bool)
    scores = Scores(tuple(f"c{i}" for i in range(cases)), {"1": "a"}, {m.key: values for m in METRICS}, empty, empty)
    facts = ModelFacts(**{"patch_size": (64, 64), "spacing_mm": (0.8, 0.8), "batch_size": 2, "network": None} | model)
    where = {fold: Path(f"fold_{fold}") for fold in folds.split()}
    trainings = dict.fromkeys(where, training)
    fold_of = dict.fromkeys(scores.cases, folds.split()[0])
    return MethodResults(Method(trainer, "nnUNetPlans", "2d"), where, scores, fold_of, trainings, facts, tuple(remarks))


def texts(*rows: MethodResults, name: str = "Dataset900_Private", absent=(), warnings: bool = True) -> list[str]:
    found = notices([DatasetResults(name, {}, list(rows), list(absent))])
    return [notice.text for notice in found if notice.is_warning is warnings]


def test_equal_circumstances_raise_no_warning():
    assert texts(row("A"), row("B"), row("C")) == []
    assert texts(row("A"), row("B"), warnings=False) == []


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (
            row("B", patch_size=(896, 896)),
            r"Different resolution. A__\S+: patch 64 x 64 at 0.8 x 0.8 mm; B__\S+: patch 896 x 896",
        ),
        (row("B", spacing_mm=(0.4, 0.4)), "Different resolution.*0.4 x 0.4 mm"),
        (row("B", folds="0 1"), r"Different folds. A__\S+: 0; B__\S+: 0, 1\."),
        (row("B", cases=6), r"Different evaluated cases.*: 8 cases; .*: 6 cases \(without c6, c7\)\."),
        (
            row("B", training=replace(TRAINING, epochs_planned=100, epochs_done=100)),
            "Different length of training.*1000 epochs x 250.*100 epochs x 250",
        ),
        (
            row("B", training=replace(TRAINING, iterations_per_epoch=25)),
            "Different length of training.*x 25 iterations",
        ),
        (row("B", training=replace(TRAINING, mirroring=())), "Different mirroring at test time.*all axes.*none"),
        (
            row("B", training=replace(TRAINING, loader="whole_slice")),
            r"Different loaders of the training. A__\S+: stock; B__\S+: whole_slice\.",
        ),
        (
            row("B", training=replace(TRAINING, finished=False, epochs_done=7)),
            r"B__\S+: the training of fold 0 is not finished \(7 of 1000 epochs, no checkpoint_final.pth\)",
        ),
        (row("B", training=replace(TRAINING, epochs_done=999)), r"not finished \(999 of 1000 epochs\)"),
        (row("B", remarks=["has no fold 3"]), r"B__\S+ has no fold 3\."),
    ],
)
def test_each_inequality_is_told_with_its_rows_and_values(other, expected):
    import re

    (text,) = texts(row("A"), other)
    assert re.search(expected, text)


def test_rows_whose_pretrained_encoders_were_fine_tuned_in_different_ways_are_named():
    plain = replace(TRAINING, weights={"name": "none"})
    rows = row("A"), row("B", training=plain), row("C", training=replace(plain, fine_tuning="lora"))
    (text,) = texts(*rows)
    assert text == ("Different fine-tuning. B__nnUNetPlans__2d: as its trainer defines it; C__nnUNetPlans__2d: lora.")
    assert texts(row("A"), row("B", training=plain)) == []


def test_folds_that_stopped_at_the_same_epoch_are_told_together():
    stopped = replace(TRAINING, finished=False, epochs_done=7)
    assert "folds 0, 1, 2 is not finished" in texts(row("A", training=stopped, folds="0 1 2"))[0]


def test_two_and_three_dimensions_may_both_mirror_all_axes():
    volumes = row(
        "B", training=replace(TRAINING, mirroring=(0, 1, 2)), patch_size=(9, 64, 64), spacing_mm=(1, 0.8, 0.8)
    )
    assert not any("mirroring" in text for text in texts(row("A"), volumes))


def test_fold_all_is_not_unseen():
    assert any("cases that it was trained on" in text for text in texts(row("A", folds="all")))


def test_what_is_absent_is_told():
    assert texts(row("A"), absent=["B has no results."]) == ["B has no results."]


def test_five_cases_are_too_few_for_a_test():
    assert any("at least 6" in text for text in texts(row("A", cases=5), row("B", cases=5), warnings=False))
    assert not any("at least 6" in text for text in texts(row("A", cases=6), row("B", cases=6), warnings=False))


def test_evaluation_inside_the_pretraining_corpus_is_a_warning():
    pretrained = row("B", training=replace(TRAINING, weights=CT_3M))
    (text,) = texts(row("A"), pretrained, name="Dataset219_AMOS2022_postChallenge_task1")
    assert text.startswith(
        "B__nnUNetPlans__2d: its weights (meddinov3_vitb16_ct3m) were pretrained on images of AMOS22"
    )
    assert texts(row("A"), pretrained, name="Dataset900_CTMini") == []
    (note,) = texts(row("A"), pretrained, name="Dataset900_CTMini", warnings=False)
    assert "CHAOS" in note


def test_weights_derived_from_a_catalog_entry_have_seen_its_corpus():
    derived = {"name": "my_finetune", "derived_from": {"name": "converted", "derived_from": CT_3M}}
    assert catalog_entry(derived) is CATALOG["meddinov3_vitb16_ct3m"]
    assert catalog_entry({"name": "x", "derived_from": "meddinov3_vitb16_ct3m"}) is CATALOG["meddinov3_vitb16_ct3m"]
    pretrained = row("B", training=replace(TRAINING, weights=derived))
    assert len(texts(pretrained, name="Dataset017_BTCV")) == 1


def test_what_both_networks_of_a_pretraining_started_from_counts():
    dinov3 = {"name": "a", "derived_from": {"name": "dinov3_vitb16_lvd1689m"}}
    origins = {"initial": dinov3, "gram_teacher": {"name": "run-stage1", "derived_from": {"initial": CT_3M}}}
    teacher = {"name": "run-stage2", "derived_from": {"name": "run-stage2", "derived_from": origins}}
    assert catalog_entry(teacher) is CATALOG["meddinov3_vitb16_ct3m"]
    assert catalog_entry({"name": "x", "derived_from": {"initial": dinov3}}) is CATALOG["dinov3_vitb16_lvd1689m"]
    assert catalog_entry({"name": "x", "derived_from": {}}) is None


def listing(cases, **origins):
    """Weights of a pretraining that lists its cases."""
    return replace(TRAINING, weights={"name": "w", "seen_cases": cases, "derived_from": origins})


def test_evaluated_cases_in_a_listed_corpus_are_a_warning():
    pretrained = row("B", training=listing({"LiTS": [f"c{i}" for i in range(6)], "KiTS": ["c1"]}))
    (text,) = texts(row("A"), pretrained)
    assert text.startswith(
        "B__nnUNetPlans__2d: 6 of the 8 evaluated cases have the ids of cases in the corpus that its"
    )
    assert text.endswith(": c0 in LiTS, c1 in KiTS and LiTS, c2 in LiTS, c3 in LiTS, c4 in LiTS and 1 more.")
    assert texts(row("A"), pretrained, warnings=False) == []


def test_a_listed_corpus_without_the_evaluated_cases_is_a_remark():
    pretrained = row("B", training=listing({"LiTS": ["c8"]}))
    assert texts(pretrained, name="Dataset027_LiTS") == []
    (text,) = texts(pretrained, name="Dataset027_LiTS", warnings=False)
    assert "none of the 8 evaluated cases has the id of a case in the corpus" in text


def test_a_list_does_not_speak_for_what_the_weights_were_made_from():
    (warning,) = texts(row("B", training=listing({"a": []}, initial=CT_3M)), name="Dataset027_LiTS")
    assert "pretrained on images of LiTS" in warning
    notes = texts(row("B", training=listing({"a": []}, initial={"name": "mine"})), warnings=False)
    assert any("nothing is known of the images of mine, which its weights (w) were made from" in note for note in notes)


def test_weights_of_unknown_corpus_are_noted_and_random_ones_are_not():
    for name, expected in (("mine", "nothing is known"), ("dinov3_vitb16_lvd1689m", "no medical collection is named")):
        (note,) = texts(row("A", training=replace(TRAINING, weights={"name": name})), warnings=False)
        assert expected in note
    assert texts(row("A", training=replace(TRAINING, weights={"name": "none"})), warnings=False) == []


@pytest.mark.parametrize(
    ("name", "collections"),
    [
        ("Dataset219_AMOS2022_postChallenge_task1", ("AMOS22",)),
        ("Dataset017_BTCV", ("BTCV",)),
        ("Dataset220_KiTS2023", ("KiTS",)),
        ("Dataset027_LiTS", ("LiTS", "MSD Liver")),
        ("Dataset003_Liver", ("MSD Liver", "LiTS")),
        ("Dataset007_Pancreas", ("MSD Pancreas",)),
        ("Dataset082_TCIA-Pancreas-CT", ("Pancreas-CT",)),
        ("Dataset291_TotalSegmentator_part1", ("TotalSegmentator",)),
        ("Dataset221_AbdomenCT1K", ("AbdomenCT-1K",)),
        ("Dataset046_WORD", ("WORD",)),
        ("Dataset900_CTMini", ()),
        ("Dataset901_Keywords", ()),
        ("Dataset902_Splits", ()),
        ("Dataset903_LiverVessels", ()),
    ],
)
def test_names_of_data_sets_stand_for_collections(name, collections):
    assert collections_of(name) == collections


def test_every_alias_names_a_collection_of_the_catalog():
    from nnunetv2_meddino.comparison import fairness

    known = set(CATALOG["meddinov3_vitb16_ct3m"].collections)
    assert {c for _, collections in fairness._ALIASES for c in collections} == known
