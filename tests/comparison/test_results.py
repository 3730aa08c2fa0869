from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from nnunetv2_meddino.comparison.folders import Folders
from nnunetv2_meddino.comparison.report.overlays import WorstCase, draw_case
from nnunetv2_meddino.comparison.report.report import short_names
from nnunetv2_meddino.comparison.results import Selection, collect
from nnunetv2_meddino.errors import ConfigurationError, DataError
from nnunetv2_meddino.evaluation.validation import evaluate_validation
from nnunetv2_meddino.networks.vit import BACKBONES, VisionTransformer
from tests.comparison.results import VIT, anatomy, make_folders, write_dataset, write_method, write_splits, write_volume

NAME = "Dataset701_Abdomen"
STOCK, OURS = "nnUNetTrainer__nnUNetPlans__2d", "MedDINOv3Trainer__nnUNetPlans__2d_96"
ONE_CONVOLUTION = {
    "network_class_name": "tests.comparison.networks.OneConvolution",
    "arch_kwargs": {},
    "_kw_requires_import": [],
}


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    folders = make_folders(tmp_path)
    write_dataset(folders, NAME, 5)
    return folders


def rows_of(folders: Folders, **selection: object):
    return collect(Selection((NAME,), **selection), folders)[0].rows


def test_surface_metrics_of_a_stock_training_are_computed_and_pooled_over_folds(folders):
    model = write_method(folders, NAME, STOCK, grow=1.0, without={2: 2})
    (row,) = rows_of(folders)
    assert row.scores.cases == tuple(f"case_00{i}" for i in range(5))
    assert list(row.folds) == ["0", "1"]
    assert row.scores.classes == {"1": "liver", "2": "spleen"}
    assert (model / "fold_1" / "validation" / "surface_metrics.json").is_file()
    prediction = model / "fold_0" / "validation" / "case_004.nii.gz"
    truth, predicted = anatomy(4) == 1, sitk.GetArrayFromImage(sitk.ReadImage(str(prediction))) == 1
    dice = 2 * np.sum(truth & predicted) / (truth.sum() + predicted.sum())
    assert row.scores.values["Dice"][4, 0] == pytest.approx(dice)
    assert np.argwhere(row.scores.missed).tolist() == [[2, 1]]
    assert row.scores.values["Dice"][2, 1] == 0
    assert np.isnan(row.scores.values["HD95_voxel_mm"][2, 1])


def test_a_class_that_the_reference_lacks_is_undefined_and_not_missed(folders):
    model = write_method(folders, NAME, STOCK, folds=1)
    gt = folders.preprocessed / NAME / "gt_segmentations"
    write_volume(gt / "case_001.nii.gz", anatomy(1, without=2))
    write_volume(gt / "case_002.nii.gz", anatomy(2, without=2))
    write_volume(model / "fold_0" / "validation" / "case_002.nii.gz", anatomy(2, without=2))
    (row,) = rows_of(folders)
    assert not row.scores.missed.any()
    assert np.argwhere(row.scores.only_predicted).tolist() == [[1, 1]]
    for values in row.scores.values.values():
        assert np.argwhere(np.isnan(values)).tolist() == [[1, 1], [2, 1]]


def test_surface_metrics_are_kept_while_they_are_newer_than_the_validation(folders):
    model = write_method(folders, NAME, STOCK, folds=1)
    rows_of(folders)
    validation = model / "fold_0" / "validation"
    path, before = validation / "surface_metrics.json", (validation / "surface_metrics.json").stat().st_mtime_ns
    rows_of(folders)
    assert path.stat().st_mtime_ns == before
    newer = path.stat().st_mtime + 10
    os.utime(validation / "summary.json", (newer, newer))
    rows_of(folders)
    assert path.stat().st_mtime_ns != before


def test_a_training_is_described_from_its_checkpoint_and_debug_file(folders):
    weights = {"name": "meddinov3_vitb16_ct3m", "sha256": "0"}
    write_method(folders, NAME, STOCK, epochs=(6, 10), weights=weights)
    (row,) = rows_of(folders)
    training = row.trainings["0"]
    assert (training.epochs_done, training.epochs_planned, training.iterations_per_epoch) == (6, 10, 250)
    assert training.seconds == pytest.approx(6 * 90)
    assert training.ended == pytest.approx(1_700_000_000 + 500 + 90)
    assert not training.finished
    assert (training.device, training.mirroring, training.weights) == ("GPU X", (0, 1), weights)


@pytest.mark.parametrize("loader", [None, "stock", "whole_slice"])
def test_the_loader_of_a_training_is_that_of_its_checkpoint_and_stock_where_it_names_none(folders, loader):
    write_method(folders, NAME, STOCK, folds=1, loader=loader)
    (row,) = rows_of(folders)
    assert row.trainings["0"].loader == (loader or "stock")


@pytest.mark.parametrize("fine_tuning", [None, "frozen"])
def test_the_fine_tuning_of_a_training_is_what_its_checkpoint_names(folders, fine_tuning):
    write_method(folders, NAME, STOCK, folds=1, fine_tuning=fine_tuning)
    (row,) = rows_of(folders)
    assert row.trainings["0"].fine_tuning == fine_tuning


def test_a_training_on_resampled_slices_of_another_configuration_has_another_loader(folders):
    write_method(folders, NAME, STOCK, folds=1, loader="whole_slice", slices_of="2d")
    (row,) = rows_of(folders)
    assert row.trainings["0"].loader == "whole_slice, which resamples slices of 2d"


def test_a_fold_without_checkpoint_is_unfinished_and_still_scored(folders):
    model = write_method(folders, NAME, STOCK, folds=1)
    (model / "fold_0" / "checkpoint_final.pth").unlink()
    (model / "fold_0" / "debug.json").unlink()
    training = rows_of(folders)[0].trainings["0"]
    assert not training.finished
    assert (training.epochs_done, training.seconds, training.device, training.weights) == (None, None, None, None)


def test_a_damaged_checkpoint_is_named(folders):
    model = write_method(folders, NAME, STOCK, folds=1)
    (model / "fold_0" / "checkpoint_final.pth").write_bytes(b"PK no archive")
    with pytest.raises(DataError, match=r"fold_0/checkpoint_final.pth cannot be read"):
        rows_of(folders)


def test_the_size_of_a_network_is_counted_by_hand(folders):
    write_method(folders, NAME, STOCK, architecture=ONE_CONVOLUTION, folds=1)
    model = rows_of(folders)[0].model
    assert (model.network.parameters, model.network.trainable) == (3 * 9 + 7, 3 * 9)
    assert model.network.gflops * 1e9 == pytest.approx(2 * 48 * 32 * 9 * 3)
    assert (model.patch_size, model.spacing_mm, model.batch_size) == ((48, 32), (1.0, 1.0), 12)


def test_the_trained_parameters_of_a_network_are_those_of_its_fine_tuning(folders):
    """Of the tiny ViT, whose width is 96, in four blocks: adapters on qkv, 96 x 288, and proj, 96 x 96, of rank 8."""
    for name, options in {"Full": {}, "Frozen": {"frozen": True}, "LoRA": {"lora": {"rank": 8, "alpha": 16}}}.items():
        architecture = {**VIT, "arch_kwargs": {**VIT["arch_kwargs"], **options}}
        write_method(folders, NAME, f"{name}__nnUNetPlans__2d", architecture=architecture, folds=1)
    trained = {row.method.trainer: row.model.network.trainable for row in rows_of(folders)}
    encoder = sum(p.numel() for p in VisionTransformer(BACKBONES["tiny"], 1).parameters())
    assert trained["Full"] - trained["Frozen"] == encoder
    assert trained["LoRA"] - trained["Frozen"] == 4 * 8 * ((96 + 288) + (96 + 96))


def test_the_attention_of_a_vit_is_counted(folders):
    sides = (64, 128, 192)
    for side in sides:
        name = f"MedDINOv3Trainer__nnUNetPlans__2d_{side}"
        write_method(folders, NAME, name, architecture=VIT, folds=1, patch_size=[side, side], spacing=[0.5, 0.5])
    rows = sorted(rows_of(folders), key=lambda row: row.model.patch_size)
    # all but attention grows with the number of tokens; products of queries, keys and values with its square
    tokens = [(side / 16) ** 2 for side in sides]
    quadratic = np.polyfit(tokens, [row.model.network.gflops * 1e9 for row in rows], 2)[0]
    vit = BACKBONES["tiny"]
    assert quadratic == pytest.approx(4 * vit.depth * vit.embed_dim)
    assert [row.model.spacing_mm for row in rows] == [(0.5, 0.5)] * 3


def test_a_trainer_that_is_not_installed_has_scores_and_no_network(folders, caplog):
    write_method(folders, NAME, "LostTrainer__nnUNetPlans__2d", folds=1)
    (row,) = rows_of(folders)
    assert row.model.network is None
    assert "LostTrainer" in row.model.fault


def test_a_selection_chooses_rows_and_their_order(folders):
    for trainer in ("A", "nnUNetTrainer", "MedDINOv3Trainer"):
        write_method(folders, NAME, f"{trainer}__nnUNetPlans__2d", folds=1)
    write_method(folders, NAME, "nnUNetTrainer__OtherPlans__2d", folds=1)
    write_method(folders, NAME, "nnUNetTrainer__nnUNetPlans__2d_96", folds=1)
    named = [
        row.method.trainer
        for row in rows_of(folders, trainers=("nnUNetTrainer", "A"), plans="nnUNetPlans", configurations=("2d",))
    ]
    assert named == ["nnUNetTrainer", "A"]
    assert len(rows_of(folders)) == 5


def test_missing_and_unvalidated_folds_are_told(folders):
    model = write_method(folders, NAME, STOCK, folds=2)
    (model / "fold_1" / "validation" / "summary.json").unlink()
    (row,) = rows_of(folders, folds=("0", "1", "4"))
    assert row.remarks == ("has no finished validation of fold 1", "has no fold 4")
    assert row.scores.cases == ("case_000", "case_002", "case_004")


def test_a_case_of_two_folds_counts_once(folders):
    model = write_method(folders, NAME, STOCK, folds=1)
    write_splits(folders, NAME, [range(5), [1]])
    (model / "fold_1").mkdir()
    for part in ("checkpoint_final.pth", "debug.json"):
        (model / "fold_1" / part).write_bytes((model / "fold_0" / part).read_bytes())
    validation = model / "fold_1" / "validation"
    validation.mkdir()
    (validation / "case_001.nii.gz").write_bytes(
        (folders.preprocessed / NAME / "gt_segmentations" / "case_001.nii.gz").read_bytes()
    )
    (validation / "summary.json").write_text("{}")
    first = rows_of(folders, folds=("0",))[0].scores
    (row,) = rows_of(folders)
    assert row.scores.cases == first.cases
    assert row.scores.values["Dice"].tolist() == first.values["Dice"].tolist()
    assert row.remarks == ("has cases in several folds, of which the first counts: case_001",)


def test_predictions_of_an_earlier_split_are_not_scored_and_named(folders, tmp_path):
    """Surface metrics that were computed under the earlier split do not count either."""
    model = write_method(folders, NAME, STOCK, folds=2)
    before = rows_of(folders)[0].scores
    stale = model / "fold_0" / "validation" / "case_002.nii.gz"
    write_volume(model / "fold_1" / "validation" / "case_002.nii.gz", anatomy(2))  # without error, unlike the stale one
    write_splits(folders, NAME, [(0, 4), (1, 2, 3)])
    (dataset,) = collect(Selection((NAME,)), folders)
    (row,) = dataset.rows
    assert row.remarks == (
        "has predictions in fold 0 that are not scored, for its validation list does not name their cases: case_002",
    )
    assert row.scores.cases == before.cases
    assert row.scores.values["Dice"][2].tolist() == [1, 1]
    assert row.scores.values["Dice"][[0, 1, 3, 4]].tolist() == before.values["Dice"][[0, 1, 3, 4]].tolist()
    assert row.fold_of["case_002"] == "1"
    stale.write_bytes(b"not looked at")
    draw_case(dataset, WorstCase("case_002", "why"), short_names([row.method]), folders, tmp_path / "a.png")


def test_a_validation_case_without_prediction_is_named(folders):
    model = write_method(folders, NAME, STOCK, folds=1)
    (model / "fold_0" / "validation" / "case_003.nii.gz").unlink()
    (row,) = rows_of(folders)
    assert row.remarks == ("has cases in fold 0 that could not be evaluated: case_003",)


def test_a_fold_whose_validation_list_is_not_known_is_remarked_on(folders):
    write_method(folders, NAME, STOCK, folds=1)
    (folders.preprocessed / NAME / "splits_final.json").unlink()
    (row,) = rows_of(folders)
    assert len(row.scores.cases) == 5
    assert re.search(r"fold 0 whose validation list is not known \(.*splits_final.json is missing\)", row.remarks[0])


def test_distances_are_those_of_the_images_whatever_a_references_header_says(folders):
    model = write_method(folders, NAME, STOCK, folds=1, spread=2.0)
    expected = rows_of(folders)[0].scores.values
    for path in (folders.preprocessed / NAME / "gt_segmentations").iterdir():
        sitk.WriteImage(sitk.GetImageFromArray(sitk.GetArrayFromImage(sitk.ReadImage(path))), path)
    (model / "fold_0" / "validation" / "surface_metrics.json").unlink()
    (row,) = rows_of(folders)
    assert row.remarks == ()
    np.testing.assert_array_equal(row.scores.values["HD95_voxel_mm"], expected["HD95_voxel_mm"])


def test_cases_that_cannot_be_evaluated_are_named(folders):
    model = write_method(folders, NAME, STOCK, folds=1)
    prediction = model / "fold_0" / "validation" / "case_003.nii.gz"
    whole = prediction.read_bytes()
    prediction.write_bytes(b"damaged")
    (row,) = rows_of(folders)
    assert row.remarks == ("has cases in fold 0 that could not be evaluated: case_003",)
    assert "case_003" not in row.scores.cases
    prediction.write_bytes(whole)
    (row,) = rows_of(folders)
    assert row.remarks == ()
    assert "case_003" in row.scores.cases


def test_fold_all_is_only_compared_when_asked_for(folders):
    model = write_method(folders, NAME, STOCK, folds=1)
    (model / "fold_0").rename(model / "fold_all")
    with pytest.raises(DataError, match="has no validated cases: it has no trained fold"):
        rows_of(folders)
    assert len(rows_of(folders, folds=("all",))[0].scores.cases) == 5
    with pytest.raises(ConfigurationError, match="cannot be pooled"):
        rows_of(folders, folds=("0", "all"))


def test_regions_are_classes(tmp_path):
    folders = make_folders(tmp_path)
    write_dataset(folders, NAME, 3, {"background": 0, "both": [1, 2], "spleen": 2})
    write_method(folders, NAME, STOCK, folds=1)
    assert rows_of(folders)[0].scores.classes == {"(1, 2)": "both", "2": "spleen"}


def test_other_tolerances_are_refused(folders):
    model = write_method(folders, NAME, STOCK, folds=1)
    content = json.loads((model / "dataset.json").read_text())
    gt = folders.preprocessed / NAME / "gt_segmentations"
    evaluate_validation(model / "fold_0" / "validation", gt, content, tolerances_mm=(3.0,))
    with pytest.raises(DataError, match=r"surface_metrics.json lacks .*NSD_voxel_1mm.* remove it"):
        rows_of(folders)


def test_methods_with_different_labels_are_not_compared(folders):
    write_method(folders, NAME, STOCK, folds=1)
    write_method(folders, NAME, OURS, folds=1, labels={"background": 0, "spleen": 1, "liver": 2})
    with pytest.raises(DataError, match=r"different labels of Dataset701_Abdomen \(1 \w+, 2 \w+; 1 \w+, 2 \w+\)"):
        rows_of(folders)


def test_a_known_trainer_without_results_is_told_and_an_unknown_one_refused(folders):
    write_method(folders, NAME, STOCK, folds=1)
    (dataset,) = collect(Selection((NAME,), trainers=("nnUNetTrainer", "MedDINOv3Trainer")), folders)
    assert dataset.absent == ["MedDINOv3Trainer has no results."]
    with pytest.raises(ConfigurationError, match=r"MedDINOTrainer is unknown. Did you mean MedDINOv3Trainer\?"):
        rows_of(folders, trainers=("MedDINOTrainer",))
    with pytest.raises(ConfigurationError, match=r"No results of configuration 2D. Did you mean 2d\?"):
        rows_of(folders, configurations=("2D",))


def test_data_sets_are_found_by_number_and_name_and_unknown_ones_refused(folders):
    write_method(folders, NAME, STOCK, folds=1)
    assert [d.name for d in collect(Selection(("701", NAME)), folders)] == [NAME]
    with pytest.raises(DataError, match="Dataset 702 is not in .* There are: Dataset701_Abdomen"):
        collect(Selection(("702",)), folders)
    with pytest.raises(DataError, match=r"Did you mean Dataset701_Abdomen\?"):
        collect(Selection(("Dataset701_Abdomne",)), folders)
    (folders.raw / "Dataset701_Other").mkdir()
    with pytest.raises(DataError, match="ambiguous"):
        collect(Selection(("701",)), folders)


def test_a_data_set_without_results_says_where_it_looked(folders):
    with pytest.raises(DataError, match=r"No results of Dataset701_Abdomen .*results/Dataset701_Abdomen.*--run"):
        rows_of(folders)
