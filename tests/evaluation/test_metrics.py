from __future__ import annotations

import ast
import json
import math
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from nnunetv2_meddino.errors import ConfigurationError, DataError
from nnunetv2_meddino.evaluation import BoundaryMetrics, CaseMetrics, ClassMetrics, evaluate_case
from nnunetv2_meddino.evaluation.surface import engine
from tests.conftest import shared_path
from tests.evaluation import oracle

SPACING = (2.5, 0.9, 0.7)

CASES = [
    "both_empty",
    "cavity",
    "concentric_balls_half_mm",
    "far_false_positive",
    "full_volume",
    "kidney_dilated",
    "kidney_noisy_boundary",
    "kidney_shift",
    "multilabel_missing",
    "multilabel_real",
    "one_slice",
    "pred_empty",
    "random_voxels",
    "real_duodenum_aniso",
    "real_liver_3mm",
    "ref_empty",
    "regions_kits",
    "sheet_diagonal",
    "sheet_full_plane",
    "single_voxel_in_block",
    "single_voxel_same",
    "single_voxel_shift",
    "spacing_float32_tie",
    "spacing_float64_tie",
    "thin_plate_truncated",
    "touch_high_border",
    "touch_low_border",
]

DEEPMIND, MONAI = 1e-14, 4e-6
"""Absolute tolerances: float64 sums in another order, and MONAI's float32."""


@lru_cache(maxsize=1)
def expected() -> dict[str, Any]:
    return json.loads((shared_path("golden_metrics") / "expected.json").read_text())


def golden(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    with np.load(shared_path("golden_metrics") / f"{name}.npz") as stored:
        return stored["ref"], stored["pred"], stored["spacing"]


def golden_classes(name: str) -> dict[str, tuple[int, ...]]:
    case = expected()["cases"][name]
    regions = {key: ast.literal_eval(key) for key in case.get("per_region", {}) if key.startswith("(")}
    return {str(label): (label,) for label in case["labels"]} | regions


def evaluate_golden(name: str) -> CaseMetrics:
    return evaluate_case(*golden(name), golden_classes(name), planar=False)


def stored(name: str, key: str, library: str) -> dict[str, float] | None:
    case = expected()["cases"][name]
    block = {**case["per_label"], **case.get("per_region", {})}[key].get(library)
    return block and {k: float(v) for k, v in block.items()}


def comparable(result: CaseMetrics) -> dict[str, ClassMetrics]:
    """The classes that both masks hold; libraries disagree about the others."""
    return {key: m for key, m in result.classes.items() if m.n_ref and m.n_pred}


@pytest.mark.parametrize("name", CASES)
def test_surfel_metrics_equal_deepmind(name: str) -> None:
    for key, metrics in comparable(evaluate_golden(name)).items():
        theirs, ours = stored(name, key, "deepmind"), metrics.surfel
        assert ours.nsd[1.0] == pytest.approx(theirs["surface_dice_tol_1mm"], abs=2e-15, rel=0)
        assert ours.nsd[2.0] == pytest.approx(theirs["surface_dice_tol_2mm"], abs=2e-15, rel=0)
        means = ours.reference_to_prediction_mm, ours.prediction_to_reference_mm
        assert means[0] == pytest.approx(theirs["average_surface_distance_gt_to_pred"], abs=DEEPMIND, rel=0)
        assert means[1] == pytest.approx(theirs["average_surface_distance_pred_to_gt"], abs=DEEPMIND, rel=0)
        areas = theirs["surface_area_gt_mm2"], theirs["surface_area_pred_mm2"]
        assert ours.assd_mm == pytest.approx((means[0] * areas[0] + means[1] * areas[1]) / sum(areas), abs=DEEPMIND)
        assert ours.hd95_mm == theirs["robust_hausdorff_95"]
        assert ours.hd_mm == theirs["hausdorff_100"]
        assert metrics.dsc == theirs["volumetric_dice"]


@pytest.mark.parametrize("name", CASES)
def test_voxel_metrics_equal_monai_and_metricsreloaded(name: str) -> None:
    for key, metrics in comparable(evaluate_golden(name)).items():
        theirs, ours = stored(name, key, "monai"), metrics.voxel
        assert ours.nsd[1.0] == pytest.approx(theirs["surface_dice_1mm"], abs=MONAI)
        if name != "spacing_float32_tie":  # MONAI compares in float32, where a distance of 2.00000003 mm is 2 mm
            assert ours.nsd[2.0] == pytest.approx(theirs["surface_dice_2mm"], abs=MONAI)
        assert ours.assd_mm == pytest.approx(theirs["average_surface_distance_symmetric"], abs=MONAI)
        assert ours.reference_to_prediction_mm == pytest.approx(
            theirs["average_surface_distance_gt_to_pred"], abs=MONAI
        )
        assert ours.prediction_to_reference_mm == pytest.approx(
            theirs["average_surface_distance_pred_to_gt"], abs=MONAI
        )
        assert ours.hd95_mm == pytest.approx(theirs["hausdorff_95"], abs=MONAI)
        assert ours.hd_mm == pytest.approx(theirs["hausdorff_100"], abs=MONAI)
        theirs = stored(name, key, "metricsreloaded")
        assert ours.nsd[1.0] == theirs["nsd_1mm"]
        assert ours.nsd[2.0] == theirs["nsd_2mm"]
        assert ours.assd_mm == pytest.approx(theirs["assd"], abs=DEEPMIND)
        means = ours.reference_to_prediction_mm, ours.prediction_to_reference_mm
        assert sum(means) / 2 == pytest.approx(theirs["masd"], abs=DEEPMIND)
        assert ours.hd95_mm == pytest.approx(theirs["hd_perc_95"], abs=DEEPMIND)
        assert ours.hd_mm == theirs["hd"]


@pytest.mark.parametrize("name", CASES)
def test_counts_equal_nnunet(name: str) -> None:
    for key, metrics in evaluate_golden(name).classes.items():
        theirs = stored(name, key, "nnunetv2")
        row = metrics.as_dict()
        assert [row[k] for k in ("TP", "FP", "FN", "TN")] == [theirs[k] for k in ("TP", "FP", "FN", "TN")]
        if metrics.n_ref:
            assert (row["Dice"], row["IoU"]) == (theirs["Dice"], theirs["IoU"])


def test_single_slice_equals_deepmind_in_2d() -> None:
    result = evaluate_case(*golden("one_slice"), {"disc": 1})
    theirs = expected()["cases"]["one_slice"]["as_2d"]["deepmind"]
    ours = result.classes["disc"].surfel
    assert result.dimensions == 2
    assert ours.nsd[1.0] == pytest.approx(theirs["surface_dice_tol_1mm"], abs=2e-15, rel=0)
    assert ours.nsd[2.0] == theirs["surface_dice_tol_2mm"]
    assert ours.reference_to_prediction_mm == pytest.approx(theirs["average_surface_distance_gt_to_pred"], abs=DEEPMIND)
    assert ours.prediction_to_reference_mm == pytest.approx(theirs["average_surface_distance_pred_to_gt"], abs=DEEPMIND)
    assert ours.hd95_mm == theirs["robust_hausdorff_95"]


def test_ignored_voxels_are_left_out_of_the_counts_as_in_nnunet() -> None:
    result = evaluate_case(*golden("ignore_label"), {"1": 1, "2": 2}, ignore_label=4)
    for key, theirs in expected()["ignore_label"]["nnunetv2"].items():
        row = result.classes[key].as_dict()
        assert {k: row[k] for k in theirs} == theirs


def assert_same(a: CaseMetrics, b: CaseMetrics, tolerance: float = 1e-13) -> None:
    assert a.classes.keys() == b.classes.keys()
    for key in a.classes:
        left, right = a.classes[key].as_dict(), b.classes[key].as_dict()
        assert left == pytest.approx(right, abs=tolerance, rel=tolerance, nan_ok=True), key


def assert_equals_oracle(
    reference: np.ndarray, prediction: np.ndarray, spacing: Any, classes: Any, **options: Any
) -> None:
    measured = evaluate_case(reference, prediction, spacing, classes, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "measure_bytes", oracle.measure_bytes)
        assert_same(measured, evaluate_case(reference, prediction, spacing, classes, **options))


@pytest.mark.parametrize("name", CASES)
def test_golden_cases_equal_the_oracle(name: str) -> None:
    assert_equals_oracle(*golden(name), golden_classes(name), planar=False)


def test_an_ignore_label_equals_the_oracle() -> None:
    assert_equals_oracle(*golden("ignore_label"), {"1": 1, "2": 2}, ignore_label=4)


def read(path: Path) -> tuple[np.ndarray, tuple[float, ...]]:
    image = sitk.ReadImage(str(path))
    return sitk.GetArrayFromImage(image), tuple(round(s, 6) for s in reversed(image.GetSpacing()))


@pytest.mark.parametrize(
    ("reference", "prediction"),
    [
        ("hn_0522c0017_oncologist", "hn_0522c0017_radiographer"),
        ("hn_0522c0161_oncologist", "hn_0522c0161_radiographer"),
        ("ts_ct_model1p5mm", "ts_ct_model3mm"),
        ("sct_t2_manual", "sct_t2_deepseg3d"),
    ],
)
def test_real_pairs_equal_the_oracle(reference: str, prediction: str) -> None:
    folder = shared_path("data/metric_pairs")
    a, spacing = read(folder / f"{reference}.nii.gz")
    b, _ = read(folder / f"{prediction}.nii.gz")
    classes = {str(label): int(label) for label in np.union1d(a, b) if label}
    assert_equals_oracle(a, b, spacing, classes)


# Properties


def blobs(seed: int, shape: tuple[int, int, int] = (20, 40, 44), labels: int = 3) -> np.ndarray:
    """Smooth random regions, some of them cut by the border."""
    from scipy import ndimage

    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), (1.5, 3, 3))
    edges = np.quantile(noise, np.linspace(0.4, 1, labels + 1))[:-1]
    return np.searchsorted(edges, noise).astype(np.uint8)


CLASSES = {"one": 1, "two": 2, "three": 3, "all": (1, 2, 3)}


def scalars(metrics: BoundaryMetrics) -> tuple[float, ...]:
    return (*metrics.nsd.values(), metrics.assd_mm, metrics.hd95_mm, metrics.hd_mm)


def test_swapping_the_masks_swaps_the_directions_only() -> None:
    a, b = blobs(0), blobs(1)
    forth = evaluate_case(a, b, SPACING, CLASSES)
    back = evaluate_case(b, a, SPACING, CLASSES)
    for key in CLASSES:
        x, y = forth.classes[key], back.classes[key]
        assert (x.dsc, x.fp) == (y.dsc, y.fn)
        for m, n in ((x.voxel, y.voxel), (x.surfel, y.surfel)):
            assert scalars(m) == pytest.approx(scalars(n), abs=1e-13)
            assert m.reference_to_prediction_mm == pytest.approx(n.prediction_to_reference_mm, abs=1e-13)
            assert m.prediction_to_reference_mm == pytest.approx(n.reference_to_prediction_mm, abs=1e-13)


def test_a_mask_is_at_distance_zero_from_itself() -> None:
    a = blobs(0)
    for metrics in evaluate_case(a, a, SPACING, CLASSES, tolerances_mm=0).classes.values():
        assert metrics.dsc == 1
        assert scalars(metrics.voxel) == scalars(metrics.surfel) == (1, 0, 0, 0)


def test_moving_both_masks_together_changes_nothing() -> None:
    a, b = (np.pad(blobs(seed), 9) for seed in (0, 1))
    before = evaluate_case(a, b, SPACING, CLASSES)
    moved = [np.roll(volume, (5, -8, 7), axis=(0, 1, 2)) for volume in (a, b)]
    assert_same(before, evaluate_case(*moved, SPACING, CLASSES))


def test_nsd_grows_with_the_tolerance_up_to_one_at_the_hausdorff_distance() -> None:
    a, b = blobs(0), blobs(1)
    hausdorff = evaluate_case(a, b, SPACING, CLASSES).classes["two"].surfel.hd_mm
    tolerances = [*np.linspace(0, hausdorff, 40, endpoint=False), hausdorff]
    for metrics in evaluate_case(a, b, SPACING, {"two": 2}, tolerances_mm=tolerances).classes.values():
        values = list(metrics.surfel.nsd.values())
        assert values == sorted(values)
        assert values[-2] < values[-1] == pytest.approx(1, abs=1e-15)


def test_distances_scale_with_the_spacing() -> None:
    a, b = blobs(0), blobs(1)
    small = evaluate_case(a, b, SPACING, CLASSES, tolerances_mm=1.5)
    large = evaluate_case(a, b, [4 * s for s in SPACING], CLASSES, tolerances_mm=6)
    for key in CLASSES:
        for m, n in zip(
            (small.classes[key].voxel, small.classes[key].surfel),
            (large.classes[key].voxel, large.classes[key].surfel),
            strict=True,
        ):
            assert n.nsd[6.0] == pytest.approx(m.nsd[1.5], abs=1e-14)
            assert [n.assd_mm, n.hd95_mm, n.hd_mm] == pytest.approx([4 * v for v in scalars(m)[1:]], abs=1e-12)


def test_spacing_belongs_to_the_array_axes_in_order() -> None:
    mask = np.zeros((12, 12, 12), dtype=np.uint8)
    mask[5, 5, 5] = 1
    for axis, step in enumerate(SPACING):
        moved = np.roll(mask, 2, axis=axis)
        metrics = evaluate_case(mask, moved, SPACING, {"voxel": 1}).classes["voxel"]
        assert metrics.voxel.hd_mm == metrics.voxel.assd_mm == 2 * step


# Conventions


def one_label(*corners: tuple[slice, slice, slice]) -> np.ndarray:
    volume = np.zeros((10, 12, 14), dtype=np.uint8)
    for corner in corners:
        volume[corner] = 1
    return volume


BLOCK = (slice(2, 6), slice(3, 8), slice(3, 9))
EMPTY, FULL = one_label(), one_label(BLOCK)


def overlap(metrics: ClassMetrics) -> set[float]:
    return {metrics.dsc, metrics.iou, *metrics.voxel.nsd.values(), *metrics.surfel.nsd.values()}


def distances(metrics: ClassMetrics) -> list[float]:
    return [v for m in (metrics.voxel, metrics.surfel) for v in list(m.as_dict("x").values())[len(m.nsd) :]]


def test_a_missed_class_scores_zero_and_has_no_distance() -> None:
    metrics = evaluate_case(FULL, EMPTY, SPACING, {"a": 1}).classes["a"]
    assert overlap(metrics) == {0}
    assert all(map(math.isnan, distances(metrics)))
    assert metrics.missed
    assert not metrics.only_predicted


@pytest.mark.parametrize("prediction", [EMPTY, FULL])
def test_a_class_absent_from_the_reference_is_undefined_whatever_was_predicted(prediction: np.ndarray) -> None:
    metrics = evaluate_case(EMPTY, prediction, (1, 1, 1), {"a": 1}).classes["a"]
    values = [metrics.dsc, metrics.iou, *metrics.voxel.nsd.values(), *metrics.surfel.nsd.values(), *distances(metrics)]
    assert all(map(math.isnan, values))
    assert not metrics.missed
    assert metrics.only_predicted == bool(prediction.any())
    assert metrics.false_positive_volume_ml == pytest.approx(prediction.sum() / 1000)


def test_disagreement_beside_ignored_voxels_is_no_surface_error() -> None:
    reference, prediction = FULL.copy(), FULL.copy()
    reference[:, :, 9:] = 2
    prediction[2:6, 3:8, 9:12] = 1  # the prediction goes on where nobody looked
    metrics = evaluate_case(reference, prediction, SPACING, {"a": 1}, ignore_label=2).classes["a"]
    assert metrics.dsc == 1
    assert scalars(metrics.surfel) == scalars(metrics.voxel) == (1, 1, 0, 0, 0)
    shorter = prediction.copy()
    shorter[:, :, 7:] = 0
    metrics = evaluate_case(reference, shorter, (1, 1, 1), {"a": 1}, ignore_label=2).classes["a"]
    # x = 8 touches ignored voxels and is not measured from, so of the reference's shell x = 7 is the farthest: the 14
    # voxels of the ring, 1 voxel from the prediction
    assert metrics.voxel.hd_mm == 1
    assert metrics.voxel.reference_to_prediction_mm == pytest.approx(14 / (20 + 14 * 4))


def test_elements_beside_ignored_voxels_stay_targets() -> None:
    reference = one_label((slice(2, 6), slice(3, 8), slice(3, 9)))
    reference[:, :, 9:] = 2
    prediction = one_label((slice(2, 6), slice(3, 8), slice(7, 8)))
    metrics = evaluate_case(reference, prediction, (1, 1, 1), {"a": 1}, ignore_label=2).classes["a"]
    # the middle of x = 7 is at 1 from the reference's shell: below, above, or at x = 8, which touches ignored voxels
    inside = evaluate_case(reference, prediction, (9, 9, 1), {"a": 1}, ignore_label=2).classes["a"]
    assert metrics.voxel.prediction_to_reference_mm == inside.voxel.prediction_to_reference_mm == 6 / 20


def test_a_class_predicted_among_ignored_voxels_only_is_missed() -> None:
    reference = FULL.copy()
    reference[:, :, 10:] = 2
    prediction = one_label((slice(2, 6), slice(3, 8), slice(11, 13)))
    metrics = evaluate_case(reference, prediction, SPACING, {"a": 1}, ignore_label=2).classes["a"]
    assert metrics.missed
    assert overlap(metrics) == {0}
    assert all(map(math.isnan, distances(metrics)))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_single_slice_is_measured_in_2d_along_any_axis(axis: int) -> None:
    flat_spacing = [0.8, 0.6]
    a, b = blobs(3, (1, 30, 34))[0], blobs(4, (1, 30, 34))[0]
    want = evaluate_case(a[None], b[None], (5, *flat_spacing), CLASSES)
    spacing = np.insert(flat_spacing, axis, 3.0)
    got = evaluate_case(np.expand_dims(a, axis), np.expand_dims(b, axis), spacing, CLASSES)
    assert got.dimensions == 2
    for key in CLASSES:  # the thickness of the slice matters for volumes only
        assert scalars(got.classes[key].surfel) == pytest.approx(scalars(want.classes[key].surfel), abs=1e-14)
        assert scalars(got.classes[key].voxel) == pytest.approx(scalars(want.classes[key].voxel), abs=1e-14)


def test_tolerances_may_differ_by_class() -> None:
    tolerances = {"one": 1, "two": (1.5, 3), "three": [2.0], "all": 5}
    result = evaluate_case(blobs(0), blobs(1), SPACING, CLASSES, tolerances_mm=tolerances)
    assert {key: tuple(m.voxel.nsd) for key, m in result.classes.items()} == {
        "one": (1.0,),
        "two": (1.5, 3.0),
        "three": (2.0,),
        "all": (5.0,),
    }


def test_keys_name_boundary_tolerance_and_unit() -> None:
    row = evaluate_case(FULL, FULL, SPACING, {"a": 1}, tolerances_mm=(1, 2.5)).classes["a"].as_dict()
    for name in ("voxel", "surfel"):
        assert {f"NSD_{name}_1mm", f"NSD_{name}_2.5mm", f"ASSD_{name}_mm", f"HD95_{name}_mm", f"HD_{name}_mm"} <= set(
            row
        )


# Labels


@pytest.mark.parametrize(
    ("dtype", "shift", "scale"),
    [
        (np.int16, 0, 1),
        (np.float32, 0, 1),
        (np.int64, 0, 1000),
        (np.int16, -2, 1),
        (np.float64, 0, -7),
        (np.uint16, 0, 20000),
    ],
)
def test_any_label_values_in_any_type_give_the_same_values(dtype: type, shift: int, scale: int) -> None:
    volumes = [blobs(seed) for seed in (0, 1)]
    want = evaluate_case(*volumes, SPACING, CLASSES)
    changed = [(v.astype(np.int64) * scale + shift).astype(dtype) for v in volumes]
    classes = {key: tuple(np.atleast_1d(v) * scale + shift) for key, v in CLASSES.items()}
    assert_same(want, evaluate_case(*changed, SPACING, classes), 0)


def test_background_can_be_a_class() -> None:
    a, b = blobs(0), blobs(1)
    got = evaluate_case(a, b, SPACING, {"background": 0, "one": 1})
    want = evaluate_case(a == 0, b == 0, SPACING, {"background": 1})
    assert scalars(got.classes["background"].surfel) == scalars(want.classes["background"].surfel)
    assert got.classes["background"].tp == want.classes["background"].tp


def test_a_region_may_be_a_list_as_in_dataset_json() -> None:
    a, b = blobs(0), blobs(1)
    want = evaluate_case(np.isin(a, (1, 3)), np.isin(b, (1, 3)), SPACING, {"region": 1})
    got = evaluate_case(a, b, SPACING, {"region": [1, 3]})
    assert got.classes["region"].as_dict() == pytest.approx(want.classes["region"].as_dict(), abs=1e-13)


def test_more_classes_than_bits_in_a_word_and_labels_than_bytes() -> None:
    rng = np.random.default_rng(0)
    coarse = rng.permutation(np.arange(6 * 7 * 8) % 300).reshape(6, 7, 8)  # every label occurs
    a = coarse.repeat(3, 0).repeat(3, 1).repeat(3, 2)
    b = np.roll(a, 1, axis=2)
    classes: dict[str, int | tuple[int, ...]] = {str(label): label for label in range(1, 300)}
    classes |= {"low": tuple(range(1, 100)), "high": tuple(range(150, 299))}
    result = evaluate_case(a, b, SPACING, classes)
    for key in ("7", "150", "299", "low", "high"):
        labels = classes[key] if isinstance(classes[key], tuple) else (classes[key],)
        masks = [np.isin(v, labels) for v in (a, b)]
        want = evaluate_case(*masks, SPACING, {key: 1})  # one class, in one pass
        assert result.classes[key].as_dict() == pytest.approx(want.classes[key].as_dict(), abs=1e-13, nan_ok=True)


def test_classes_are_drawn_in_several_passes_where_maps_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = blobs(0), blobs(1)
    want = evaluate_case(a, b, SPACING, CLASSES)
    monkeypatch.setattr(engine, "MAP_BYTES", 1)
    assert_same(want, evaluate_case(a, b, SPACING, CLASSES), 0)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_undeclared_labels_are_named(dtype: type) -> None:
    a, b = FULL.astype(dtype), FULL.astype(dtype)
    a[0, 0, 0], b[0, 0, 1], b[0, 0, 2] = 7, 9, 3
    assert evaluate_case(a, b, SPACING, {"a": 1, "b": 3}).undeclared_labels == (7, 9)
    assert evaluate_case(a, b, SPACING, {"a": 1, "b": 3}, ignore_label=7).undeclared_labels == (9,)


def test_volumes_in_any_memory_order_give_the_same_values() -> None:
    a, b = blobs(0), blobs(1)
    assert_same(
        evaluate_case(a, b, SPACING, CLASSES), evaluate_case(np.asfortranarray(a), b[::-1][::-1], SPACING, CLASSES), 0
    )


# Wrong input


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"prediction": FULL[:1]}, DataError, "same shape"),
        ({"reference": FULL[0], "prediction": FULL[0]}, DataError, "3D"),
        ({"prediction": FULL * 0.5}, DataError, "whole numbers"),
        ({"prediction": np.where(FULL, np.nan, 0)}, DataError, "The prediction .* nan; .*whole numbers"),
        ({"reference": np.where(FULL, np.inf, 0)}, DataError, "The reference .* inf; .*whole numbers"),
        ({"spacing_mm": (1, 1)}, DataError, "spacing"),
        ({"spacing_mm": (1, 0, 1)}, DataError, "spacing"),
        ({"classes": {}}, ConfigurationError, "no classes"),
        ({"classes": {"a": ()}}, ConfigurationError, "'a' has no labels"),
        ({"classes": {"a": (1, 4)}, "ignore_label": 4}, ConfigurationError, "ignore label 4"),
        ({"tolerances_mm": -1}, ConfigurationError, "tolerances"),
        ({"tolerances_mm": {}}, ConfigurationError, "tolerance is given for a"),
        ({"planar": True}, DataError, "single slice"),
    ],
)
def test_wrong_input_is_refused_with_the_reason(change: dict[str, Any], error: type[Exception], words: str) -> None:
    arguments = {"reference": FULL, "prediction": FULL, "spacing_mm": SPACING, "classes": {"a": 1}} | change
    with pytest.raises(error, match=words):
        evaluate_case(**arguments)
