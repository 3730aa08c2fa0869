"""Configurations that are resampled while training: a plan of their own, which nnU-Net reads, and no data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_meddino.cli.main import main
from nnunetv2_meddino.errors import PlanError
from nnunetv2_meddino.planning.planner import plan_dataset


@pytest.fixture
def planned(nnunet_home: Path) -> Path:
    """A dataset's folder of ``nnUNet_preprocessed``, planned by nnU-Net, free to be changed."""
    preprocessed = nnunet_home / "preprocessed"
    shared = preprocessed.resolve()
    preprocessed.unlink()
    shutil.copytree(shared, preprocessed)
    return preprocessed / "Dataset998_Discs"


def lazy(**options):
    return plan_dataset(998, patch_size=96, lazy_resample=True, num_processes=1, **options)


def configuration_of(folder: Path) -> dict:
    return json.loads((folder / "nnUNetPlans.json").read_text())["configurations"]["2d_96"]


def overlay(folder: Path, **settings) -> Path:
    file = folder / "own.json"
    file.write_text(json.dumps({"configuration": {"2d_96": {"patch_size": [96, 96], **settings}}}))
    return file


def test_only_the_folder_and_its_source_differ_from_a_plan_that_is_stored(planned):
    result = lazy()
    made = configuration_of(planned)
    plan_dataset(998, patch_size=96, overwrite=True, num_processes=1)
    stored = configuration_of(planned)
    own = {"data_identifier": "nnUNetPlans_2d_96_lazy", "meddino_resampled_from": "2d"}
    assert made == stored | own
    assert not (planned / "nnUNetPlans_2d_96_lazy").exists()
    assert result.next_commands == (
        "nnUNetv2_preprocess -d 998 -plans_name nnUNetPlans -c 2d -np 1",
        "MEDDINO_LOADER=whole_slice meddino train 998 2d_96 0 -tr MedDINOv3Trainer -p nnUNetPlans",
    )


def test_nnunet_reads_the_plan(planned):
    lazy()
    manager = PlansManager(str(planned / "nnUNetPlans.json"))
    fine, native = (manager.get_configuration(name) for name in ("2d_96", "2d"))
    assert (fine.patch_size, fine.spacing) == ([96, 96], [0.5, 1 / 2.4])
    assert fine.normalization_schemes == native.normalization_schemes


def test_a_plan_of_the_other_kind_is_replaced_only_on_request(planned):
    file = planned / "nnUNetPlans.json"
    for first, second in ((False, True), (True, False)):
        plan_dataset(998, patch_size=96, lazy_resample=first, num_processes=1, overwrite=True)
        before = file.read_bytes()
        assert not plan_dataset(998, patch_size=96, lazy_resample=first, num_processes=1).written
        with pytest.raises(PlanError, match="differs from this plan in: data_identifier, meddino_resampled_from"):
            plan_dataset(998, patch_size=96, lazy_resample=second, num_processes=1)
        assert file.read_bytes() == before
        plan_dataset(998, patch_size=96, lazy_resample=second, num_processes=1, overwrite=True)
        assert ("meddino_resampled_from" in configuration_of(planned)) == second


def test_overlays_may_change_the_spacing_and_the_rule_of_labels(planned, tmp_path):
    seg = {"is_seg": True, "order": 0, "order_z": 0, "force_separate_z": None}
    settings = {"resampling_fn_seg": "resample_data_or_seg_to_shape", "resampling_fn_seg_kwargs": seg}
    lazy(overlay=overlay(tmp_path, spacing=[0.4, 0.6], **settings))
    made = configuration_of(planned)
    assert (made["spacing"], made["resampling_fn_seg_kwargs"]["order"]) == ([0.4, 0.6], 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"normalization_schemes": ["NoNormalization"]}, "stored slices are normalised already. Plan without --lazy"),
        (
            {
                "resampling_fn_seg": "resample_data_or_seg_to_shape",
                "resampling_fn_seg_kwargs": {"is_seg": True, "order": 2, "force_separate_z": None},
            },
            "resample seg with resample_data_or_seg_to_shape .* cannot be done while training",
        ),
    ],
)
def test_what_stored_slices_cannot_become_is_refused(planned, tmp_path, settings, message):
    before = (planned / "nnUNetPlans.json").read_bytes()
    with pytest.raises(PlanError, match=message):
        lazy(overlay=overlay(tmp_path, **settings))
    assert (planned / "nnUNetPlans.json").read_bytes() == before


def test_a_case_with_a_coarse_axis_in_its_slices_is_refused(planned):
    file = planned / "dataset_fingerprint.json"
    fingerprint = json.loads(file.read_text())
    fingerprint["spacings"][3] = [1.0, 4.0, 0.9]
    file.write_text(json.dumps(fingerprint))
    with pytest.raises(PlanError, match="A case has voxels of 1 x 4 x 0.9 mm: an axis of its slices is so coarse"):
        lazy()


def test_the_command_says_what_to_run_next(planned, capsys):
    assert main(["plan", "-d", "998", "--patch-size", "96", "--lazy-resample"]) == 0
    assert "MEDDINO_LOADER=whole_slice meddino train 998 2d_96 0" in capsys.readouterr().out
