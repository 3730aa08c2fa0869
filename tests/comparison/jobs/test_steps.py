from __future__ import annotations

import json
from pathlib import Path

import pytest

from nnunetv2_meddino.comparison.folders import Folders
from nnunetv2_meddino.comparison.jobs.steps import Step, continuation, plan_steps
from nnunetv2_meddino.comparison.results import Selection
from nnunetv2_meddino.errors import ConfigurationError, DataError, PlanError
from tests.comparison.results import make_folders, plans, write_dataset, write_fold

NAME = "Dataset701_Abdomen"
SELECTION = Selection((NAME,), ("nnUNetTrainer",), ("2d",), ("0",))


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    folders = make_folders(tmp_path)
    write_dataset(folders, NAME, 3)
    return folders


def preprocess(folders: Folders, *configurations: str, cases: int = 3, name: str = "nnUNetPlans") -> None:
    """Write plans and, for each configuration, the files of preprocessed cases."""
    more = {c: {"inherits_from": "2d", "data_identifier": f"{name}_{c}"} for c in configurations if c != "2d"}
    (folders.preprocessed / NAME / f"{name}.json").write_text(json.dumps(plans(NAME, name, **more)))
    for configuration in configurations:
        data = folders.preprocessed / NAME / f"{name}_{configuration}"
        data.mkdir(exist_ok=True)
        for case in range(cases):
            (data / f"case_{case:03d}.pkl").touch()


def steps_of(folders: Folders, selection: Selection = SELECTION, **changes: object) -> list[Step]:
    selection = Selection(**vars(selection) | changes)
    return plan_steps(selection, folders, device="cpu", processes=2)


def commands(steps: list[Step]) -> list[str]:
    return [" ".join(step.command) for step in steps]


TRAIN = f"nnUNetv2_train {NAME} 2d 0 -tr nnUNetTrainer -p nnUNetPlans -device cpu"


def test_a_raw_data_set_is_planned_preprocessed_and_trained(folders):
    steps = steps_of(folders)
    assert commands(steps) == [
        "nnUNetv2_plan_and_preprocess -d 701 -c 2d -np 2 -npfp 2 --verify_dataset_integrity",
        TRAIN,
    ]
    assert steps[1].needs == (steps[0].name,)


def test_trainers_of_any_length_are_known(folders):
    preprocess(folders, "2d")
    trainers = ("nnUNetTrainer_3epochs", "SegFormerTrainer_2epochs")
    assert commands(steps_of(folders, trainers=trainers)) == [TRAIN.replace("nnUNetTrainer", name) for name in trainers]
    with pytest.raises(ConfigurationError, match="Trainer Segformer_2epochs is unknown"):
        steps_of(folders, trainers=("Segformer_2epochs",))


def test_what_is_there_is_not_done_again(folders):
    preprocess(folders, "2d")
    assert commands(steps_of(folders)) == [TRAIN]


@pytest.mark.parametrize("damage", ["a case is missing", "no references"])
def test_incomplete_data_are_preprocessed_again(folders, damage):
    preprocess(folders, "2d", cases=2 if damage == "a case is missing" else 3)
    if damage == "no references":
        (folders.preprocessed / NAME / "gt_segmentations").rename(folders.preprocessed / NAME / "elsewhere")
    steps = steps_of(folders)
    assert commands(steps) == ["nnUNetv2_preprocess -d 701 -plans_name nnUNetPlans -c 2d -np 2", TRAIN]
    assert steps[1].needs == (steps[0].name,)


def test_a_high_resolution_configuration_is_added_to_plans(folders):
    preprocess(folders, "2d")
    steps = steps_of(folders, configurations=("2d", "2d_96"))
    assert commands(steps) == [
        f"meddino plan -d {NAME} --patch-size 96 -p nnUNetPlans",
        "nnUNetv2_preprocess -d 701 -plans_name nnUNetPlans -c 2d_96 -np 2",
        TRAIN,
        TRAIN.replace(" 2d ", " 2d_96 "),
    ]
    assert [step.needs for step in steps] == [(), (steps[0].name,), (), (steps[1].name,)]


def test_without_plans_a_high_resolution_configuration_makes_them_for_all(folders):
    steps = steps_of(folders, configurations=("2d", "2d_96", "2d_128"), plans="MyPlans")
    assert commands(steps)[:5] == [
        f"meddino plan -d {NAME} --patch-size 96 -p MyPlans",
        f"meddino plan -d {NAME} --patch-size 128 -p MyPlans",
        "nnUNetv2_preprocess -d 701 -plans_name MyPlans -c 2d -np 2",
        "nnUNetv2_preprocess -d 701 -plans_name MyPlans -c 2d_96 -np 2",
        "nnUNetv2_preprocess -d 701 -plans_name MyPlans -c 2d_128 -np 2",
    ]
    plan, second = steps[0].name, steps[1].name
    assert [step.needs for step in steps[:5]] == [(), (plan,), (plan,), (plan,), (second,)]
    assert [step.needs[0] for step in steps[5:]] == [step.name for step in steps[2:5]]


def test_trainings_continue_validate_or_are_done(folders):
    preprocess(folders, "2d")
    model = folders.results / NAME / "nnUNetTrainer__nnUNetPlans__2d"
    write_fold(model / "fold_0", epochs=(10, 10))
    (model / "fold_0" / "validation").mkdir()
    (model / "fold_0" / "validation" / "summary.json").write_text("{}")
    write_fold(model / "fold_1", epochs=(10, 10))
    write_fold(model / "fold_2", epochs=(4, 10))
    (model / "fold_3").mkdir()
    steps = steps_of(folders, folds=("0", "1", "2", "3"))
    assert commands(steps) == [
        f"nnUNetv2_train Dataset701_Abdomen 2d {fold} -tr nnUNetTrainer -p nnUNetPlans -device cpu" for fold in "123"
    ]
    assert [continuation(step.training.folder) for step in steps] == [("--val",), ("--c",), ()]


def test_every_trainer_and_fold_is_trained_under_a_name_of_its_own(folders):
    preprocess(folders, "2d", "2d_96")
    steps = steps_of(
        folders, trainers=("nnUNetTrainer", "MedDINOv3Trainer"), configurations=("2d", "2d_96"), folds=("0", "all")
    )
    assert len(steps) == len({step.name for step in steps}) == 8


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"trainers": ()}, ConfigurationError, "needs --trainers"),
        ({"configurations": ()}, ConfigurationError, "needs --configurations"),
        ({"folds": ()}, ConfigurationError, "needs --folds"),
        ({"trainers": ("MedDINOTrainer",)}, ConfigurationError, r"Did you mean MedDINOv3Trainer\?"),
        ({"trainers": ("nnUNetTrainr",)}, ConfigurationError, r"Did you mean nnUNetTrainer\?"),
        ({"configurations": ("2D",)}, PlanError, r"Configuration 2D is not in nnU-Net's plans of .* Did you mean 2d\?"),
        ({"plans": "OtherPlans"}, PlanError, r"OtherPlans.json does not exist.*meddino plan -d 701 -p OtherPlans"),
        ({"datasets": ("7",)}, DataError, "Dataset 7 is not in"),
    ],
)
def test_what_cannot_be_trained_is_refused(folders, changes, error, message):
    with pytest.raises(error, match=message):
        steps_of(folders, **changes)


def test_a_configuration_that_plans_lack_is_refused(folders):
    preprocess(folders, "2d")
    with pytest.raises(PlanError, match=r"Configuration 3d_fullres is not in plans nnUNetPlans .* There are: 2d;"):
        steps_of(folders, configurations=("3d_fullres",))


def test_a_trainer_in_a_folder_of_the_user_is_known(folders, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "my_trainer.py").write_text("class MyTrainer(nnUNetTrainer):\n    pass\n")
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path / "mine"))
    preprocess(folders, "2d")
    assert len(steps_of(folders, trainers=("MyTrainer",))) == 1
