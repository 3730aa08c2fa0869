from __future__ import annotations

import csv
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from nnunetv2_meddino.errors import ConfigurationError, DataError
from nnunetv2_meddino.evaluation import (
    Failure,
    LabelSet,
    Pairing,
    cases,
    evaluate_files,
    evaluate_pair,
    pair_files,
    summarise,
    write_reports,
)
from nnunetv2_meddino.evaluation.classes import tolerances_by_class
from nnunetv2_meddino.evaluation.reports import summary_dict, table
from nnunetv2_meddino.evaluation.validation import evaluate_validation
from tests.conftest import shared_path

COUNTS = ("Dice", "IoU", "TP", "FP", "FN", "TN", "n_pred", "n_ref")
AB = LabelSet.from_json({"background": 0, "a": 1, "b": 2}, "labels.json")


def write(path: Path, labels: np.ndarray, spacing_xyz=(1.0, 1.0, 1.0)) -> Path:
    path.parent.mkdir(exist_ok=True)
    image = sitk.GetImageFromArray(labels.astype(np.uint8))
    image.SetSpacing(spacing_xyz)
    sitk.WriteImage(image, path, True)
    return path


def box(*slices: slice, label: int = 1, shape=(8, 10, 12)) -> np.ndarray:
    volume = np.zeros(shape, np.uint8)
    volume[slices] = label
    return volume


CUBE = box(slice(2, 6), slice(2, 6), slice(2, 6))


@pytest.fixture
def three_cases(tmp_path: Path) -> Pairing:
    """Case 1: ``a`` right, ``b`` found where there is none; case 2: ``a`` missed; case 3: ``a`` shifted by 2 in x."""
    far = box(slice(6, 8), slice(7, 10), slice(8, 12), label=2)
    for case, reference, prediction in [
        ("case_3", CUBE, np.roll(CUBE, 2, axis=2)),
        ("case_1", CUBE, CUBE + far),
        ("case_2", CUBE + far, far),
    ]:
        write(tmp_path / "reference" / f"{case}.nii.gz", reference, (0.5, 1.0, 2.0))
        write(tmp_path / "prediction" / f"{case}.nii.gz", prediction, (0.5, 1.0, 2.0))
    return pair_files(tmp_path / "reference", tmp_path / "prediction")


def test_counts_dice_iou_and_all_means_equal_nnunets_summary():
    golden = shared_path("golden_metrics") / "nnunet_folder"
    expected = json.loads((golden / "summary_expected.json").read_text())
    labels = LabelSet.from_json([1, 2, 3, 4], "labels")
    ours = summary_dict(evaluate_files(pair_files(golden / "ref", golden / "pred"), labels))

    def check(own: dict, theirs: dict) -> None:
        assert set(theirs) == set(COUNTS)
        for key, value in theirs.items():
            if math.isnan(value):
                assert own[key] is None
            else:
                assert own[key] == pytest.approx(value, rel=1e-14), key

    check(ours["foreground_mean"], expected["foreground_mean"])
    for key in "1234":
        check(ours["mean"][key], expected["mean"][key])
    assert len(ours["metric_per_case"]) == len(expected["metric_per_case"]) == 3
    for own, theirs in zip(ours["metric_per_case"], expected["metric_per_case"], strict=True):
        assert own["reference_file"].endswith(theirs["reference_file"])
        assert own["prediction_file"].endswith(theirs["prediction_file"])
        for key in "1234":
            check(own["metrics"][key], theirs["metrics"][key])


def test_nnunet_reads_our_file(three_cases, tmp_path):
    from nnunetv2.evaluation.evaluate_predictions import load_summary_json

    labels = LabelSet.from_json({"background": 0, "both": [1, 2], "b": 2, "ignore": 3}, "dataset.json")
    write_reports(evaluate_files(three_cases, labels), f"{tmp_path}/out.json")
    summary = load_summary_json(str(tmp_path / "out.json"))
    assert list(summary["mean"]) == [(1, 2), 2]
    assert summary["metric_per_case"][0]["metrics"][(1, 2)]["n_ref"] == 64


def test_spacing_is_that_of_the_reference_in_array_order(tmp_path):
    """A cube shifted by 2 voxels along x, of 0.5 mm: every distance is a multiple of 0.5 and the largest is 1 mm."""
    reference = write(tmp_path / "reference.nii.gz", CUBE, (0.5, 1.0, 2.0))
    prediction = write(tmp_path / "prediction.nii.gz", np.roll(CUBE, 2, axis=2), (0.5001, 1.0, 2.0))
    result = evaluate_files(pair_files(reference, prediction), LabelSet.from_json([1], "")).results[0]
    assert result.spacing_mm == (2.0, 1.0, 0.5)
    assert result.metrics.classes["1"].voxel.hd_mm == 1.0
    along_z = write(tmp_path / "along_z.nii.gz", np.roll(CUBE, 1, axis=0), (0.5, 1.0, 2.0))
    result = evaluate_files(pair_files(reference, along_z), LabelSet.from_json([1], "")).results[0]
    assert result.metrics.classes["1"].voxel.hd_mm == 2.0


def test_the_float32_of_a_header_does_not_move_a_distance_beyond_its_tolerance(tmp_path):
    """0.4 is stored as 0.4000000059604645: five voxels would be 2.00000003 mm."""
    plate = box(slice(2, 3), slice(2, 6), slice(0, 12), shape=(10, 8, 12))
    reference = write(tmp_path / "reference.nii.gz", plate, (1.0, 1.0, 0.4))
    prediction = write(tmp_path / "prediction.nii.gz", np.roll(plate, 5, axis=0), (1.0, 1.0, 0.4))
    result = evaluate_files(pair_files(reference, prediction), LabelSet.from_json([1], ""), 2.0).results[0]
    assert result.metrics.classes["1"].voxel.nsd == {2.0: 1.0}


def as_image(path: Path) -> sitk.Image:
    return sitk.ReadImage(path)


@pytest.mark.parametrize("given", [(str, str), (Path, Path), (as_image, as_image), (str, as_image), (as_image, Path)])
def test_two_files_or_images_give_the_numbers_of_every_class(tmp_path, given):
    """A cube of four voxels shifted by two along x, of 0.5 mm: half of it overlaps, and no surface is 1 mm away."""
    files = [
        write(tmp_path / "r.nii.gz", CUBE, (0.5, 1.0, 2.0)),
        write(tmp_path / "p.nrrd", np.roll(CUBE, 2, axis=2), (0.5, 1.0, 2.0)),
    ]
    reference, prediction = (kind(file) for kind, file in zip(given, files, strict=True))
    cube = evaluate_pair(reference, prediction, LabelSet.from_json({"cube": 1}), (1, 0.9)).classes["cube"]
    assert cube.dsc == 0.5
    assert cube.voxel.nsd[1] == cube.surfel.nsd[1] == 1
    assert cube.voxel.nsd[0.9] < 1
    assert cube.voxel.hd_mm == 1


def test_what_is_wrong_with_two_files_or_images_is_raised(tmp_path):
    labels = LabelSet.from_json({"a": 1})
    file = write(tmp_path / "r.nii.gz", CUBE)
    image = as_image(file)
    image.SetOrigin((0, 0, 5))
    with pytest.raises(DataError, match=r"the prediction in memory is not on the grid of its reference .*r\.nii\.gz"):
        evaluate_pair(file, image, labels)
    with pytest.raises(
        DataError, match=r"the reference in memory cannot be read as a segmentation .* 3 values per voxel"
    ):
        evaluate_pair(sitk.Compose(image, image, image), image, labels)
    with pytest.raises(DataError, match=r"the prediction in memory holds the value 0\.5; a segmentation holds whole"):
        evaluate_pair(file, sitk.Cast(as_image(file), sitk.sitkFloat32) / 2, labels)
    with pytest.raises(DataError, match=r"r\.nii\.gz holds labels that are not declared: 1"):
        evaluate_pair(file, file, LabelSet.from_json({"b": 2}))
    with pytest.raises(DataError, match=r"absent\.nii\.gz does not exist"):
        evaluate_pair(file, str(tmp_path / "absent.nii.gz"), labels)
    with pytest.raises(ConfigurationError, match="The reference is a ndarray; .* call evaluate_case for arrays"):
        evaluate_pair(CUBE, file, labels)
    with pytest.raises(ConfigurationError, match="unknown classes: liver"):
        evaluate_pair(file, file, labels, {"liver": 1})


def test_means_count_missed_classes_and_leave_out_absent_ones(three_cases):
    summary = summarise(evaluate_files(three_cases, AB))
    assert (summary.counts["a"].n, summary.counts["a"].n_missed, summary.counts["a"].n_fp_cases) == (3, 1, 0)
    assert (summary.counts["b"].n, summary.counts["b"].n_missed, summary.counts["b"].n_fp_cases) == (1, 0, 1)
    assert summary.counts["b"].false_positive_volume_ml == pytest.approx(24 / 1000)
    assert summary.mean["a"]["Dice"] == pytest.approx((1 + 0 + 0.5) / 3)
    assert summary.std["a"]["Dice"] == pytest.approx(0.5)
    assert summary.mean["a"]["HD_voxel_mm"] == pytest.approx((0 + 1) / 2), "the missed case has no distance"
    assert summary.mean["b"]["Dice"] == 1
    assert math.isnan(summary.std["b"]["Dice"])
    assert summary.foreground_mean["Dice"] == pytest.approx((0.5 + 1) / 2)
    assert summary.case_mean["Dice"] == pytest.approx((1 + (0 + 1) / 2 + 0.5) / 3)


def test_a_class_that_no_case_has_is_left_out_of_the_mean_over_classes(three_cases):
    labels = LabelSet.from_json({"a": 1, "b": 2, "nowhere": 7}, "labels.json")
    summary = summarise(evaluate_files(three_cases, labels))
    assert math.isnan(summary.mean["nowhere"]["Dice"])
    assert summary.foreground_mean["Dice"] == pytest.approx(0.75)


class FatalPath(type(Path())):
    """A file whose reading ends the process, as the system ends one that takes too much memory."""

    def is_file(self) -> bool:
        os._exit(9)


def test_the_number_of_processes_changes_nothing_and_a_killed_one_costs_its_own_case_only(three_cases):
    pairs = [*three_cases.pairs, cases.Pair("case_4", Path("absent.nii.gz"), Path("absent.nii.gz"))]
    alone = evaluate_files(Pairing(pairs), AB)
    finished: list[tuple[int, int]] = []
    before = dict(os.environ)
    killed = cases.Pair("case_0", FatalPath("fatal.nii.gz"), FatalPath("fatal.nii.gz"))
    several = evaluate_files(Pairing([*pairs, killed]), AB, processes=2, on_case=lambda *done: finished.append(done))
    assert finished == [(i, 5) for i in range(1, 6)]
    assert dict(os.environ) == before
    assert [f.case for f in several.failures] == ["case_0", "case_4"]
    assert several.failures.pop(0).message.startswith("fatal.nii.gz: the process was killed")
    assert [r.pair.case for r in several.results] == ["case_1", "case_2", "case_3"]
    assert json.dumps(summary_dict(several)) == json.dumps(summary_dict(alone))


def test_a_case_too_large_for_the_memory_is_named(three_cases, monkeypatch):
    def fail(*arguments: object, **options: object) -> None:
        raise MemoryError

    monkeypatch.setattr(cases, "evaluate_case", fail)
    failures = evaluate_files(three_cases, AB).failures
    assert len(failures) == 3
    assert "case_1.nii.gz: not enough memory" in failures[0].message


def test_the_csv_file_holds_the_same_numbers(three_cases, tmp_path):
    evaluation = evaluate_files(three_cases, AB)
    path = write_reports(evaluation, tmp_path / "new" / "out.json")
    assert path == tmp_path / "new" / "out.csv"
    assert sorted(p.name for p in path.parent.iterdir()) == ["out.csv", "out.json"]
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["case"], r["class"]) for r in rows] == [(f"case_{i}", name) for i in (1, 2, 3) for name in "ab"]
    for row in rows:
        result = next(r for r in evaluation.results if r.pair.case == row["case"])
        metrics = result.metrics.classes[row["class"]]
        assert row["missed"] == str(int(metrics.missed)) and row["only_predicted"] == str(int(metrics.only_predicted))
        for key, value in metrics.as_dict().items():
            read = float(row[key]) if row[key] else math.nan
            assert read == value or (math.isnan(read) and math.isnan(value)), key


def test_the_json_file_is_strict_and_says_what_was_measured(three_cases, tmp_path):
    three_cases.failures.append(Failure("case_0", "reason"))
    write_reports(evaluate_files(three_cases, AB), tmp_path / "out.json")

    def refuse(token: str) -> None:
        raise AssertionError(token)

    content = json.loads((tmp_path / "out.json").read_text(), parse_constant=refuse)
    assert content["metric_per_case"][1]["metrics"]["1"]["HD95_voxel_mm"] is None
    assert content["classes"] == {"1": "a", "2": "b"}
    assert content["nsd_tolerances_mm"] == {"1": [1.0, 2.0], "2": [1.0, 2.0]}
    assert content["case_counts"]["1"]["n_missed"] == 1
    assert content["failed"] == [{"case": "case_0", "message": "reason"}]
    assert content["metric_per_case"][0]["spacing_zyx_mm"] == [2.0, 1.0, 0.5]


def test_ignored_voxels_count_for_nothing(tmp_path):
    reference, prediction = CUBE.copy(), np.roll(CUBE, 2, axis=2)
    reference[(CUBE == 0) & (prediction == 1)] = 3
    pairing = pair_files(write(tmp_path / "r.nii.gz", reference), write(tmp_path / "p.nii.gz", prediction))
    labels = LabelSet.from_json({"labels": {"background": 0, "a": 1, "ignore": 3}}, "dataset.json")
    metrics = evaluate_files(pairing, labels).results[0].metrics.classes["a"]
    assert (metrics.tp, metrics.fp, metrics.fn) == (32, 0, 32)
    failure = evaluate_files(pairing, LabelSet.from_json([1], "")).failures[0]
    assert failure.message.startswith(f"{tmp_path / 'r.nii.gz'} holds labels that are not declared: 3.")


def test_a_single_slice_is_measured_in_two_dimensions(tmp_path):
    square = box(slice(0, 1), slice(2, 6), slice(2, 6), shape=(1, 10, 12))[0]
    for name, labels in (("r.png", square), ("p.png", np.roll(square, 1, axis=1))):
        sitk.WriteImage(sitk.GetImageFromArray(labels), tmp_path / name)
    evaluation = evaluate_files(pair_files(tmp_path / "r.png", tmp_path / "p.png"), LabelSet.from_json([1], ""))
    assert evaluation.results[0].metrics.dimensions == 2
    assert evaluation.results[0].metrics.classes["1"].voxel.hd_mm == 1


@pytest.mark.parametrize(
    ("content", "classes", "keys"),
    [
        ({"labels": {"background": 0, "a": 1, "b": [2]}}, {"a": (1,), "b": (2,)}, ["1", "2"]),
        ({"labels": {"all": [1, 2], "b": [2], "c": 3}}, {"all": (1, 2), "b": (2,), "c": (3,)}, ["(1, 2)", "(2,)", "3"]),
        ([1, [1, 2]], {"1": (1,), "(1, 2)": (1, 2)}, ["1", "(1, 2)"]),
        ({"1": "spleen", "0": "background", "5": "liver"}, {"spleen": (1,), "liver": (5,)}, ["1", "5"]),
    ],
)
def test_labels_come_from_a_dataset_a_mapping_or_a_list(content, classes, keys):
    labels = LabelSet.from_json(content, "labels.json")
    assert labels.classes == classes
    assert list(labels.keys.values()) == keys


@pytest.mark.parametrize("kind", [str, Path])
def test_labels_are_read_from_a_file(tmp_path, kind):
    file = tmp_path / "dataset.json"
    file.write_text('{"labels": {"background": 0, "a": 1, "both": [1, 2], "ignore": 3}}')
    assert LabelSet.read(kind(file)) == LabelSet({"a": (1,), "both": (1, 2)}, {"a": "1", "both": "(1, 2)"}, 3)
    file.write_text("[1, 2")
    with pytest.raises(
        ConfigurationError, match=r"dataset\.json cannot be read as JSON: .* It must hold a dataset\.json"
    ):
        LabelSet.read(kind(file))
    file.write_text("[0]")
    with pytest.raises(ConfigurationError, match=r"dataset\.json declares no class but background"):
        LabelSet.read(kind(file))
    with pytest.raises(ConfigurationError, match="content declares no class but background"):
        LabelSet.from_json({})


def test_keys_of_regions_are_those_of_nnunet():
    from nnunetv2.evaluation.evaluate_predictions import label_or_region_to_key
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    declared = {"background": 0, "all": [1, 2, 3], "core": [2], "rim": 3, "ignore": 4}
    theirs = LabelManager(declared, [1, 2, 3]).foreground_regions
    ours = LabelSet.from_json({"labels": declared}, "dataset.json")
    assert list(ours.keys.values()) == [label_or_region_to_key(region) for region in theirs]
    assert ours.ignore_label == 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text", "must hold"),
        ({}, "no class but background"),
        ({"background": 0}, "no class but background"),
        ({"a": "1"}, "'a'.*whole numbers"),
        ({"a": -1}, "whole numbers from 0"),
        ({"a": []}, "'a'"),
        ({"a": 1, "b": 1}, "two names"),
        ({"a": [1, 2], "ignore": 2}, "ignore label 2"),
        ({"a": 1, "ignore": [2]}, "one whole number"),
    ],
)
def test_labels_that_make_no_sense_are_refused(content, message):
    with pytest.raises(ConfigurationError, match=message):
        LabelSet.from_json(content, "labels.json")


@pytest.mark.parametrize(
    ("tolerances", "message"),
    [
        ({"a": 1}, "No NSD tolerance is given for b"),
        ({"a": 1, "b": 1, "c": 1}, "unknown classes: c"),
        (-1, "0 or more"),
        (math.nan, "0 or more"),
        ([], "different lengths"),
        ([1.0330772, 1.0330773], "different lengths"),
    ],
)
def test_tolerances_that_make_no_sense_are_refused(tolerances, message):
    with pytest.raises(ConfigurationError, match=message):
        tolerances_by_class(tolerances, ["a", "b"])


def test_with_a_tolerance_of_its_own_for_each_class_the_mean_is_over_those(three_cases):
    evaluation = evaluate_files(three_cases, AB, {"a": 0.5, "b": (2, 5)})
    summary = summarise(evaluation)
    assert "NSD_voxel_0.5mm" not in summary.foreground_mean
    own = (summary.mean["a"]["NSD_voxel_0.5mm"] + summary.mean["b"]["NSD_voxel_2mm"]) / 2
    assert summary.foreground_mean["NSD_voxel_class_tolerance"] == pytest.approx(own)
    heads = [str(column.header) for column in table(evaluation).columns]
    assert heads[:5] == ["class", "tol. mm", "DSC", "NSD voxel at tol.", "NSD surfel at tol."]


def test_validation_writes_beside_nnunets_summary_and_evaluates_what_was_predicted(three_cases, tmp_path, caplog):
    truth, validation = tmp_path / "reference", tmp_path / "prediction"
    write(truth / "other_fold.nii.gz", CUBE)
    write(truth / "broken.nii.gz", CUBE)
    (validation / "broken.nii.gz").write_bytes((truth / "broken.nii.gz").read_bytes()[:-20])
    (validation / "summary.json").write_text("nnU-Net's own")
    dataset = {"labels": {"background": 0, "a": 1, "b": 2}, "file_ending": ".nii.gz"}
    path = evaluate_validation(validation, truth, dataset)
    assert path == validation / "surface_metrics.json"
    content = json.loads(path.read_text())
    assert [case["case"] for case in content["metric_per_case"]] == ["case_1", "case_2", "case_3"]
    assert content["mean"]["1"]["Dice"] == pytest.approx(0.5)
    assert [failure["case"] for failure in content["failed"]] == ["broken"]
    assert "broken.nii.gz cannot be read" in caplog.text
    assert (validation / "summary.json").read_text() == "nnU-Net's own"
    with pytest.raises(DataError, match="holds no segmentation"):
        evaluate_validation(validation, truth, {**dataset, "file_ending": ".nrrd"})


def test_validation_compares_arrays_as_nnunet_lays_them(three_cases, tmp_path):
    """A label map whose header differs in origin and direction from its image was still trained on."""
    truth, validation = tmp_path / "reference", tmp_path / "prediction"
    image = sitk.ReadImage(validation / "case_1.nii.gz")
    image.SetOrigin((5.0, -3.0, 40.0))
    image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    sitk.WriteImage(image, validation / "case_1.nii.gz")
    dataset = {"labels": {"background": 0, "a": 1, "b": 2}, "file_ending": ".nii.gz"}
    content = json.loads(evaluate_validation(validation, truth, dataset).read_text())
    assert [case["case"] for case in content["metric_per_case"]] == ["case_1", "case_2", "case_3"]
    assert [f.case for f in evaluate_files(pair_files(truth, validation), AB).failures] == ["case_1"]
