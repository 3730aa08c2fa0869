"""Planning against nnU-Net itself: its planner, PlansManager and preprocessing are the reference."""

from __future__ import annotations

import errno
import json
import logging
import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import SimpleITK
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprint_dataset
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_meddino.demo.phantom import DATASET_NAME, make_phantom_dataset
from nnunetv2_meddino.environment import NNUNET_N_PROC_DA
from nnunetv2_meddino.errors import ConfigurationError, DataError, PlanError
from nnunetv2_meddino.planning import planner
from nnunetv2_meddino.planning.planner import _warn_unless_axial as warn_unless_axial
from nnunetv2_meddino.planning.planner import largest_batch, plan_dataset
from nnunetv2_meddino.planning.presets import load_overlay, overlays
from tests.conftest import shared_path

CT = "Dataset900_CTMini"
BENCHMARKS = ("amos22", "btcv", "kits23", "lits")
MR = "Dataset901_MRMini"
SAGITTAL = (0, 0, 1, 1, 0, 0, 0, 1, 0)  # direction cosines: the third array axis of the file runs left to right


def use_folders(root: Path, patch: pytest.MonkeyPatch) -> None:
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (root / name).mkdir(exist_ok=True)
        patch.setenv(name, str(root / name))
    patch.setenv("OMP_WAIT_POLICY", "passive")


def use_threads(patch: pytest.MonkeyPatch) -> None:
    """Let nnU-Net's worker pools be threads: a spawned process needs seconds to import nnU-Net."""
    patch.setattr(multiprocessing, "get_context", lambda _: SimpleNamespace(Pool=ThreadPool))


def write_dataset(root: Path, name: str, image: SimpleITK.Image, label: SimpleITK.Image, ending: str) -> Path:
    """Two cases with the same image; the labels are background and organ."""
    folder = root / "nnUNet_raw" / name
    for sub in ("imagesTr", "labelsTr"):
        (folder / sub).mkdir(parents=True)
    for case in ("case_1", "case_2"):
        SimpleITK.WriteImage(image, str(folder / "imagesTr" / f"{case}_0000{ending}"))
        SimpleITK.WriteImage(label, str(folder / "labelsTr" / f"{case}{ending}"))
    labels = {"background": 0, "organ": 1}
    declared = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 2, "file_ending": ending}
    (folder / "dataset.json").write_text(json.dumps(declared))
    return folder


def write_thin_slices(root: Path, direction: tuple[int, ...] | None = None) -> Path:
    """40 axial slices, 0.5 mm apart, of 24 x 32 pixels of 0.8 mm: the largest spacing lies in the slice."""
    voxels = np.random.default_rng(0).normal(0, 50, (40, 24, 32)).astype(np.float32)
    organ = np.zeros(voxels.shape, np.uint8)
    organ[10:30, 8:16, 8:24] = 1
    images = [SimpleITK.GetImageFromArray(array) for array in (voxels, organ)]
    for image in images:
        image.SetSpacing((0.8, 0.8, 0.5))
        if direction:
            image.SetDirection(direction)
    return write_dataset(root, "Dataset701_Thin", images[0], images[1], ".nii.gz")


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**read(path), **values}, indent=4))


@pytest.fixture(scope="module")
def planned_by_nnunet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Root folder in which nnU-Net itself has planned the real CT dataset."""
    source = shared_path(f"data/{CT}")
    root = tmp_path_factory.mktemp("nnunet")
    with pytest.MonkeyPatch.context() as patch:
        use_folders(root, patch)
        use_threads(patch)
        (root / "nnUNet_raw" / CT).symlink_to(source)
        extract_fingerprint_dataset(900, num_processes=1)
        ExperimentPlanner(CT).plan_experiment()
    yield root


@pytest.fixture
def ct(planned_by_nnunet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The ``nnUNet_preprocessed`` folder of the real CT dataset with nnU-Net's plans, free to be changed."""
    shutil.copytree(planned_by_nnunet, tmp_path, symlinks=True, dirs_exist_ok=True)
    use_folders(tmp_path, monkeypatch)
    folder = tmp_path / "nnUNet_preprocessed" / CT
    (folder / "dataset.json").chmod(0o644)
    return folder


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root folder without datasets."""
    use_folders(tmp_path, monkeypatch)
    return tmp_path


def test_a_full_disk_is_not_called_a_fault_of_the_data(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_phantom_dataset(empty / "nnUNet_raw", num_training=1, num_test=0, seed=0)

    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(planner, "extract_fingerprint_dataset", full)
    with pytest.raises(OSError, match="No space left on device: '.*/dataset_fingerprint.json'"):
        plan_dataset(DATASET_NAME)


# --- the configuration -----------------------------------------------------------------------------------------------


def test_keeps_the_field_of_view_of_2d_in_896_pixels(ct: Path) -> None:
    result = plan_dataset(900)

    # nnU-Net plans 112 x 128 px at 3 mm for slices of 101 x 122: 112 * 3 / 896 = 0.375, 101 * 896 / 112 = 808, ...
    assert PlansManager(str(ct / "nnUNetPlans.json")).get_configuration("2d").patch_size == [112, 128]
    planned = PlansManager(str(ct / "nnUNetPlans.json")).get_configuration("2d_896")
    assert planned.patch_size == [896, 896]
    assert planned.spacing == pytest.approx([0.375, 3 / 7])
    assert planned.median_image_size_in_voxels == [808, 854]
    assert planned.data_identifier == "nnUNetPlans_2d_896"
    assert planned.normalization_schemes == ["CTNormalization"]
    assert planned.batch_dice is True
    # 5 % of the dataset: 0.05 * 6 cases * 14 slices * 808 * 854 / 896^2 = 3.6; a 24 GB GPU would hold 5
    assert planned.batch_size == 4
    assert (result.planned, result.written, result.batch_size) == (False, True, 4)


def test_spacing_of_the_authors_example(ct: Path) -> None:
    # The README of MedDINOv3 gives 0.4464285714285714 mm for a 512 px patch; that is 0.78125 mm.
    plans = read(ct / "nnUNetPlans.json")
    plans["configurations"]["2d"] |= {"patch_size": [512, 512], "spacing": [0.78125, 0.78125]}
    change(ct / "nnUNetPlans.json", **plans)
    assert plan_dataset(900).spacing_mm == pytest.approx((0.4464285714285714, 0.4464285714285714), rel=1e-15)


def test_only_the_new_configuration_is_added(ct: Path) -> None:
    before = (ct / "nnUNetPlans.json").read_text()
    plan_dataset(900)
    after = read(ct / "nnUNetPlans.json")
    assert (ct / "nnUNetPlans.json").read_text() == json.dumps(after, indent=4)  # nnU-Net's layout
    del after["configurations"]["2d_896"]
    assert json.dumps(after, indent=4) == before
    assert [path.name for path in ct.iterdir() if "tmp" in path.name] == []


def test_second_run_touches_nothing(ct: Path) -> None:
    plan_dataset(900)
    before = (ct / "nnUNetPlans.json").stat()
    again = plan_dataset(CT)
    after = (ct / "nnUNetPlans.json").stat()
    assert (after.st_mtime_ns, after.st_ino) == (before.st_mtime_ns, before.st_ino)
    assert not again.written


def test_differing_configuration_is_replaced_only_on_request(ct: Path, caplog: pytest.LogCaptureFixture) -> None:
    plans = read(ct / "nnUNetPlans.json")
    plans["configurations"]["2d_896"] = {"inherits_from": "2d", "patch_size": [896, 896], "batch_size": 12}
    change(ct / "nnUNetPlans.json", **plans)
    before = (ct / "nnUNetPlans.json").read_bytes()
    with pytest.raises(PlanError, match="differs from this plan in: batch_size, data_identifier, median.*, spacing"):
        plan_dataset(900)
    assert (ct / "nnUNetPlans.json").read_bytes() == before
    assert plan_dataset(900, overwrite=True).batch_size == 4
    assert "preprocess again" in caplog.text


def test_provenance_is_kept_in_the_plan(ct: Path) -> None:
    plan_dataset(900, gpu_memory_gb=16)
    provenance = read(ct / "nnUNetPlans.json")["configurations"]["2d_896"]["meddino_plan"]
    assert provenance["from_2d"] == {"spacing": [3.0, 3.0], "patch_size": [112, 128]}
    # 16 GB: (14.8 - 1.9) / (1.21 + 1.98 + 0.3 * 13 / 14) = 3.7
    assert (provenance["fits_in_memory"], provenance["5_percent_of_dataset"]) == (3, 4)
    assert (provenance["gpu_memory_gb"], provenance["output_channels"]) == (16, 13)
    assert provenance["made_by"].startswith("nnunetv2_meddino ")


def test_batch_size_is_at_least_two_and_says_when_it_may_not_fit(ct: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert plan_dataset(900, gpu_memory_gb=8).batch_size == 2
    assert "estimated not to fit into 8 GB (1 would)" in caplog.text


@pytest.mark.parametrize(
    ("patch_size", "heads", "memory_gb", "images"),
    [
        (896, 14, 80, 20),  # 74 usable - 1.9 static = 72.1; 72.1 / 3.49 = 20.7
        (896, 14, 24, 5),  # 20.3 / 3.49 = 5.8
        (448, 14, 24, 23),  # a quarter of the tokens: 20.3 / 0.8725 = 23.3
        (896, 140, 80, 11),  # the loss of 140 channels: 72.1 / (1.21 + 1.98 + 3) = 11.6
        (896, 14, 2, 0),  # not even the parameters
    ],
)
def test_memory_rule(patch_size: int, heads: int, memory_gb: float, images: int) -> None:
    assert largest_batch(patch_size, heads, memory_gb) == images


@pytest.mark.slow
def test_stock_preprocessing_runs_the_new_configuration(ct: Path) -> None:
    plan_dataset(900, patch_size=224)
    # 3 mm * 112 / 224 = 1.5 mm and 3 mm * 128 / 224 = 12/7 mm: 101 -> 202 rows, 122 -> 213.5 columns
    command = [str(Path(sys.executable).parent / "nnUNetv2_preprocess"), "-d", "900", "-c", "2d_224", "-np", "1"]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, NNUNET_N_PROC_DA.name: "1"})
    data, label, _, properties = nnUNetDatasetBlosc2(str(ct / "nnUNetPlans_2d_224")).load_case("ctmini_001")
    assert properties["spacing"] == [3.0, 3.0, 3.0]
    assert data.shape == label.shape == (1, 14, 202, 214)
    assert len(list((ct / "nnUNetPlans_2d_224").glob("*.pkl"))) == 6


# --- plans made from nothing -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_thin_slices_stay_axial_where_nnunet_would_transpose(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = write_thin_slices(empty)
    monkeypatch.setenv(NNUNET_N_PROC_DA.name, "0")  # as users set it for CPU training; nnU-Net's planner fails on it
    result = plan_dataset(701, patch_size=64, plans_name="MedDINOPlans", num_processes=1)
    assert os.environ[NNUNET_N_PROC_DA.name] == "0"
    assert (result.planned, result.written) == (True, True)

    plans = PlansManager(str(result.plans_file))
    assert plans.transpose_forward == plans.transpose_backward == [0, 1, 2]
    data, _, _ = DefaultPreprocessor(verbose=False).run_case(
        [str(raw / "imagesTr" / "case_1_0000.nii.gz")],
        str(raw / "labelsTr" / "case_1.nii.gz"),
        plans,
        plans.get_configuration("2d_64"),
        str(raw / "dataset.json"),
    )
    in_plane = [size * 0.8 / mm for size, mm in zip((24, 32), result.spacing_mm, strict=True)]
    assert data.shape == (1, 40, *map(round, in_plane))

    monkeypatch.setenv(NNUNET_N_PROC_DA.name, "1")
    assert ExperimentPlanner("Dataset701_Thin").plan_experiment()["transpose_forward"] == [1, 0, 2]
    with pytest.raises(PlanError, match=r"transpose_forward \[1, 0, 2\].*meddino plan -d 701 -p MedDINOPlans"):
        plan_dataset(701)


def test_isotropic_mri_is_axial_in_stock_plans_too(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_threads(monkeypatch)
    (empty / "nnUNet_raw" / "Dataset901_MRMini").symlink_to(shared_path("data/Dataset901_MRMini"))
    extract_fingerprint_dataset(901, num_processes=1)
    ExperimentPlanner(901).plan_experiment()
    result = plan_dataset(901)
    # nnU-Net plans 56 x 40 px at 1 mm: 56 / 896 = 1 / 16 mm, 40 / 896 = 5 / 112 mm
    assert result.spacing_mm == pytest.approx((1 / 16, 5 / 112))
    assert not result.planned


def test_natural_images_are_planned(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_threads(monkeypatch)
    pixels = np.random.default_rng(0).integers(0, 255, (64, 96), dtype=np.uint8)
    organ = np.zeros_like(pixels)
    organ[16:48, 16:64] = 1
    images = [SimpleITK.GetImageFromArray(array) for array in (pixels, organ)]
    write_dataset(empty, "Dataset702_Photos", images[0], images[1], ".png")
    result = plan_dataset(702, patch_size=128, num_processes=1)
    assert list(read(result.plans_file)["configurations"]) == ["2d", "2d_128"]
    assert result.spacing_mm == pytest.approx((64 / 128, 96 / 128))


def test_result_reads_as_what_was_done_and_what_comes_next(ct: Path) -> None:
    assert str(plan_dataset(900, num_processes=3)).splitlines() == [
        f"2d_896 added to {ct / 'nnUNetPlans.json'}",
        "patches of 896 x 896 px at 0.375 x 0.429 mm (median slice 808 x 854 px), batch size 4",
        "next:",
        "  nnUNetv2_preprocess -d 900 -plans_name nnUNetPlans -c 2d_896 -np 3",
        "  meddino train 900 2d_896 0 -tr MedDINOv3Trainer -p nnUNetPlans",
    ]
    assert str(plan_dataset(900)).startswith("2d_896 already in ")


@pytest.mark.slow
def test_label_outside_the_declared_range_names_the_case(empty: Path) -> None:
    raw = write_thin_slices(empty)
    label = SimpleITK.ReadImage(str(raw / "labelsTr" / "case_2.nii.gz"))
    label[3, 3, 3] = 7
    SimpleITK.WriteImage(label, str(raw / "labelsTr" / "case_2.nii.gz"))
    with pytest.raises(DataError, match=r"Case case_2: .*Unexpected labels.*case_2\.nii\.gz(.|\n)*Found: \[0. 1. 7.\]"):
        plan_dataset(701, num_processes=1)
    assert list((empty / "nnUNet_preprocessed").rglob("*.json")) == []


@pytest.mark.parametrize(
    ("direction", "reader", "warns"),
    [
        (SAGITTAL, "SimpleITKIO", True),
        (SAGITTAL, "NibabelIOWithReorient", False),
        (None, "SimpleITKIO", False),
    ],
)
def test_warns_where_files_hold_no_axial_slices(
    empty: Path, caplog: pytest.LogCaptureFixture, direction: tuple[int, ...] | None, reader: str, warns: bool
) -> None:
    image = write_thin_slices(empty, direction) / "imagesTr" / "case_1_0000.nii.gz"
    warn_unless_axial(str(image), reader)
    assert ("is not stored in axial slices" in caplog.text) == warns


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("patch_size", [0, -896, 100])
def test_refuses_a_patch_that_is_not_whole_tokens(ct: Path, patch_size: int) -> None:
    with pytest.raises(PlanError, match="multiple of 16"):
        plan_dataset(900, patch_size=patch_size)


@pytest.mark.parametrize("plans_name", ["my__plans", "", "folder/plans"])
def test_refuses_plans_names_that_nnunet_cannot_handle(ct: Path, plans_name: str) -> None:
    with pytest.raises(PlanError, match="Plans name"):
        plan_dataset(900, plans_name=plans_name)


@pytest.mark.parametrize("variable", ["nnUNet_raw", "nnUNet_preprocessed"])
def test_refuses_unset_folders(ct: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.delenv(variable)
    with pytest.raises(ConfigurationError, match=f"Not set: {variable}"):
        plan_dataset(900)


@pytest.mark.parametrize("dataset", [999, "999", "Dataset999_Absent", "CTMini", "-1", "../Dataset900_CTMini"])
def test_refuses_unknown_data_sets(ct: Path, dataset: int | str) -> None:
    with pytest.raises(DataError, match="found:"):
        plan_dataset(dataset)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"transpose_forward": [1, 0, 2]}, "does not cut 2D slices axially.*meddino plan -d 900 -p MedDINOPlans"),
        ({"configurations": {"3d_fullres": {}}}, "has no 2d configuration"),
        ({"configurations": {"2d": {"patch_size": [64, 64]}}}, "not a complete nnU-Net v2 plans file"),
        ({"configurations": None}, "not a complete nnU-Net v2 plans file"),
        ({"plans_name": "Other"}, "calls itself Other"),
    ],
)
def test_refuses_plans_that_cannot_carry_the_configuration(ct: Path, changes: dict[str, Any], message: str) -> None:
    change(ct / "nnUNetPlans.json", **changes)
    before = (ct / "nnUNetPlans.json").read_bytes()
    with pytest.raises(PlanError, match=message):
        plan_dataset(900)
    assert (ct / "nnUNetPlans.json").read_bytes() == before


def test_refuses_a_2d_configuration_with_three_axes(ct: Path) -> None:
    plans = read(ct / "nnUNetPlans.json")
    plans["configurations"]["2d"] = plans["configurations"]["3d_fullres"]
    change(ct / "nnUNetPlans.json", **plans)
    with pytest.raises(PlanError, match="not two-dimensional"):
        plan_dataset(900)


@pytest.mark.parametrize("content", ['{"configurations": {', "[]", ""])
def test_refuses_damaged_plans(ct: Path, content: str) -> None:
    (ct / "nnUNetPlans.json").write_text(content)
    with pytest.raises(PlanError, match=r"nnUNetPlans\.json"):
        plan_dataset(900)
    assert (ct / "nnUNetPlans.json").read_text() == content


def test_an_interrupted_write_leaves_the_old_plans(ct: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_: object) -> None:
        raise OSError("No space left on device")

    before = sorted((path.name, path.read_bytes()) for path in ct.iterdir())
    monkeypatch.setattr(Path, "replace", full_disk)
    with pytest.raises(OSError, match="No space"):
        plan_dataset(900)
    assert sorted((path.name, path.read_bytes()) for path in ct.iterdir()) == before


# --- overlays --------------------------------------------------------------------------------------------------------


def test_every_overlay_in_the_folder_is_tested() -> None:
    assert tuple(sorted(overlays())) == (*BENCHMARKS, "mixed512")


@pytest.mark.parametrize("name", BENCHMARKS)
def test_overlay_makes_a_valid_configuration(ct: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    overlay = load_overlay(name)
    assert overlay.dataset is not None
    labels = overlay.dataset.labels
    assert list(labels.values()) == list(range(len(labels)))
    assert next(iter(labels)) == "background"
    assert overlay.dataset.source.startswith("https://")
    change(ct / "dataset.json", labels=labels, numTraining=overlay.dataset.labelled_cases)

    caplog.set_level(logging.WARNING)
    result = plan_dataset(900, overlay=name)
    assert caplog.text == ""
    planned = PlansManager(str(result.plans_file)).get_configuration(result.configuration)
    assert planned.patch_size == [896, 896]
    assert planned.spacing == pytest.approx([0.375, 3 / 7])  # the rule, from these plans
    assert planned.normalization_schemes == ["CTNormalization"]
    assert callable(planned.resampling_fn_data)
    assert planned.configuration["meddino_plan"]["overlay"] == name


@pytest.fixture
def own_overlay(tmp_path: Path) -> Path:
    """An overlay for the CT dataset, with its spacing and batch size fixed."""
    facts = {"name": "mine", "source": "-", "licence": "-", "modality": "CT", "labelled_cases": 6, "note": ""}
    facts["labels"] = read(shared_path(f"data/{CT}/dataset.json"))["labels"]
    settings = {"patch_size": [896, 896], "spacing": [0.5, 0.6], "batch_size": 12}
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"dataset": facts, "configuration": {"2d_896": settings}}))
    return path


def test_overlay_may_fix_spacing_and_batch_size(ct: Path, own_overlay: Path) -> None:
    result = plan_dataset(900, overlay=own_overlay)
    assert (result.spacing_mm, result.batch_size) == ((0.5, 0.6), 12)
    assert result.median_image_size_px == (606, 610)  # 101 * 3 / 0.5 and 122 * 3 / 0.6


def test_overlay_for_other_labels_is_refused(ct: Path) -> None:
    with pytest.raises(DataError, match=r"Overlay lits is for labels \[0, 1, 2\]"):
        plan_dataset(900, overlay="lits")


def test_overlay_for_another_patch_size_is_refused(ct: Path, own_overlay: Path) -> None:
    with pytest.raises(PlanError, match="no configuration 2d_224, only: 2d_896"):
        plan_dataset(900, patch_size=224, overlay=own_overlay)


def test_overlay_for_another_number_of_cases_warns(
    ct: Path, own_overlay: Path, caplog: pytest.LogCaptureFixture
) -> None:
    change(ct / "dataset.json", numTraining=5)
    plan_dataset(900, overlay=own_overlay)
    assert "mine has 6 labelled cases, this dataset 5" in caplog.text


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("dataset", {"labels": {"background": 0, "organ": 2}}, "labels must be 0, 1, 2"),
        ("dataset", {"spelling": 1}, "spelling"),
        ("configuration", {"2d_896": {"patch_size": [896, 800]}}, "not the square in its name"),
        ("configuration", {"2d_100": {"patch_size": [100, 100]}}, "multiple of 16"),
        ("configuration", {"2d_896": {"patch_size": [896, 896], "batchsize": 2}}, "unknown settings: batchsize"),
        ("configuration", {"2d_896": {"patch_size": [896, 896], "spacing": [0.5, 0]}}, "spacing of 2d_896"),
        ("configuration", {"2d_896": {"patch_size": [896, 896], "spacing": "finer"}}, "spacing of 2d_896"),
        ("configuration", {"2d_896": {}}, "patch_size"),
        (
            "configuration",
            {"2d_896": {"patch_size": [896, 896], "resampling_fn_seg_kwargs": {"order": 0}}},
            "resampling_fn_seg_kwargs alone",
        ),
        (
            "configuration",
            {"2d_896": {"patch_size": [896, 896], "resampling_fn_seg": "nearest", "resampling_fn_seg_kwargs": {}}},
            "nearest",
        ),
        (
            "configuration",
            {
                "2d_896": {
                    "patch_size": [896, 896],
                    "resampling_fn_seg": "resample_data_or_seg_to_shape",
                    "resampling_fn_seg_kwargs": {"orders": 0},
                }
            },
            "orders",
        ),
    ],
)
def test_faulty_overlays_are_refused(own_overlay: Path, part: str, changes: dict[str, Any], message: str) -> None:
    content = read(own_overlay)
    content[part] |= changes
    own_overlay.write_text(json.dumps(content))
    with pytest.raises(PlanError, match=f"mine.json does not follow.*{message}"):
        load_overlay(own_overlay)


def test_unknown_overlay_lists_the_known_ones() -> None:
    with pytest.raises(PlanError, match="amos22, btcv, kits23, lits, mixed512"):
        load_overlay("acdc")


# --- the recipe for mixed modalities ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mr_planned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Root folder in which the real MRI dataset is planned by nnU-Net, then with the mixed512 overlay."""
    source = shared_path(f"data/{MR}")
    root = tmp_path_factory.mktemp("mixed")
    with pytest.MonkeyPatch.context() as patch:
        use_folders(root, patch)
        use_threads(patch)
        (root / "nnUNet_raw" / MR).symlink_to(source)
        extract_fingerprint_dataset(901, num_processes=1)
        ExperimentPlanner(MR).plan_experiment()
        plan_dataset(901, patch_size=512, overlay="mixed512")
        yield root


def test_mixed512_makes_the_median_image_512_pixels(mr_planned: Path) -> None:
    folder = mr_planned / "nnUNet_preprocessed" / MR
    planned = PlansManager(str(folder / "nnUNetPlans.json")).get_configuration("2d_512")
    assert (planned.patch_size, planned.median_image_size_in_voxels) == ([512, 512], [512, 512])
    fingerprint = read(folder / "dataset_fingerprint.json")
    shapes = [
        compute_new_shape(shape, spacing, [spacing[0], *planned.spacing])
        for shape, spacing in zip(fingerprint["shapes_after_crop"], fingerprint["spacings"], strict=True)
    ]
    assert len(shapes) == 20
    assert np.median(shapes, axis=0)[1:].tolist() == [512, 512]


def test_mixed512_changes_nothing_else(mr_planned: Path) -> None:
    plans = PlansManager(str(mr_planned / "nnUNet_preprocessed" / MR / "nnUNetPlans.json"))
    ours, base = (plans.get_configuration(name).configuration for name in ("2d_512", "2d"))
    own = {"patch_size", "spacing", "median_image_size_in_voxels", "batch_size", "data_identifier", "meddino_plan"}
    assert {key for key in {*ours, *base} - {"inherits_from"} if ours.get(key) != base.get(key)} == {
        *own,
        "resampling_fn_seg_kwargs",
    }
    assert base["normalization_schemes"] == ["ZScoreNormalization"]
    assert ours["resampling_fn_probabilities_kwargs"]["order"] == 1
    assert ours["meddino_plan"]["spacing_rule"] == "median field of view / patch size, per axis"


@pytest.mark.parametrize("case", ["hippocampus_001", "hippocampus_014", "hippocampus_015"])
def test_mixed512_takes_every_label_from_the_nearest_voxel(mr_planned: Path, case: str) -> None:
    folder = mr_planned / "nnUNet_preprocessed" / MR
    plans = PlansManager(str(folder / "nnUNetPlans.json"))
    raw = mr_planned / "nnUNet_raw" / MR
    image, labels = raw / "imagesTr" / f"{case}_0000.nii.gz", raw / "labelsTr" / f"{case}.nii.gz"
    configuration = plans.get_configuration("2d_512")
    preprocessor = DefaultPreprocessor(verbose=False)
    data, seg, properties = preprocessor.run_case(
        [str(image)], str(labels), plans, configuration, str(folder / "dataset.json")
    )
    original = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(labels)))
    (z0, z1), *in_plane = properties["bbox_used_for_cropping"]
    assert [z0, z1] == [0, len(original)]
    assert [tuple(box) for box in in_plane] == [(0, size) for size in original.shape[1:]]  # nothing was cropped away

    # closed form: the centre of output pixel i of N lies in input pixel floor((i + 1/2) n / N)
    rows, columns = (
        ((2 * np.arange(target) + 1) * size) // (2 * target)
        for size, target in zip(original.shape[1:], seg.shape[2:], strict=True)
    )
    expected = original[:, rows][:, :, columns]
    inside = seg[0] >= 0  # nnU-Net marks voxels outside the non-zero image -1
    assert inside.mean() > 0.99
    np.testing.assert_array_equal(seg[0][inside], expected[inside])
    assert set(np.unique(seg)) - {-1} == {0, 1, 2}
    assert data.shape == seg.shape


def test_mixed512_fits_x_rays_and_colour_pictures(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_threads(monkeypatch)
    pixels = np.random.default_rng(0).integers(0, 255, (120, 96), dtype=np.uint8)
    organ = np.zeros_like(pixels)
    organ[16:48, 16:64] = 1
    images = [SimpleITK.GetImageFromArray(array) for array in (pixels, organ)]
    write_dataset(empty, "Dataset703_XRay", images[0], images[1], ".png")
    result = plan_dataset(703, patch_size=512, overlay="mixed512", num_processes=1)
    assert result.median_image_size_px == (512, 512)
    assert result.spacing_mm == pytest.approx((120 / 512, 96 / 512))


def test_mixed512_is_for_512_pixels(ct: Path) -> None:
    with pytest.raises(PlanError, match="mixed512 has no configuration 2d_896, only: 2d_512"):
        plan_dataset(900, overlay="mixed512")
