"""The demo's steps: with stand-ins for the nnU-Net commands, and once, slowly, with the real ones."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from matplotlib import colors, image

import nnunetv2_meddino.commands
from nnunetv2_meddino.commands import BarWatch, PredictionWatch, TrainingWatch
from nnunetv2_meddino.demo import phantom, run
from nnunetv2_meddino.demo.phantom import make_phantom_dataset
from nnunetv2_meddino.demo.run import STATEMENT, TRAINER, run_demo
from nnunetv2_meddino.errors import BusyError, ConfigurationError, DataError, DemoError
from nnunetv2_meddino.locks import locked
from nnunetv2_meddino.visualization.style import COLOURS
from tests.processes import has_ended, until

# Leaves what the real commands leave, fails or hangs on request, and keeps a diary of how it was called.
STAND_IN = f"""#!{sys.executable}
import json, os, shutil, signal, subprocess, sys, time
from pathlib import Path
name, arguments = Path(sys.argv[0]).name, sys.argv[1:]
raw, preprocessed, results = (Path(os.environ["nnUNet_" + kind]) for kind in ("raw", "preprocessed", "results"))
dataset = next(raw.iterdir())
fold = results / dataset.name / "{TRAINER}__nnUNetPlans__2d" / "fold_0"
dice = json.loads(os.environ.get("DICE", '{{"1": 0.6, "2": 0.7, "3": 0.8, "4": 0.9}}'))
summary = json.dumps({{"mean": {{label: {{"Dice": value}} for label, value in dice.items()}},
    "metric_per_case": [{{}}, {{}}]}})
with open(os.environ["DIARY"], "a") as diary:
    diary.write(json.dumps({{"name": name, "arguments": arguments, "environment": dict(os.environ)}}) + "\\n")
if name == "nnUNetv2_train":
    fold.mkdir(parents=True, exist_ok=True)
    (fold / "debug.json").write_text(json.dumps({{"num_epochs": "12"}}))
    (fold / "checkpoint_best.pth").touch()
    print("2025-01-01 10:00:00.0: Epoch 0 ")
if os.environ.get("FAIL") == name:
    print("Traceback (most recent call last):\\n  File x.py, line 1\\nValueError: the scanner is on fire")
    sys.exit(3)
if os.environ.get("INTERRUPT") == name:
    ignore = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(600)"
    worker = subprocess.Popen([sys.executable, "-c", ignore], stdout=subprocess.PIPE)
    worker.stdout.readline()
    Path(os.environ["DIARY"]).with_name("pids").write_text(f"{{os.getpid()}} {{worker.pid}}")
    os.kill(int(os.environ["DEMO"]), signal.SIGINT)
    time.sleep(600)
if name == "nnUNetv2_plan_and_preprocess":
    (preprocessed / dataset.name).mkdir(exist_ok=True)
    (preprocessed / dataset.name / "nnUNetPlans.json").write_text("{{}}")
if name == "nnUNetv2_train":
    (fold / "validation").mkdir(exist_ok=True)
    shutil.copy(min((dataset / "labelsTr").iterdir()), fold / "validation")
    (fold / "validation" / "summary.json").write_text(summary)
if name == "nnUNetv2_predict":
    labels = dataset / ("labelsTs" if (dataset / "labelsTs").exists() else "labelsTr")
    shutil.copytree(labels, arguments[arguments.index("-o") + 1], dirs_exist_ok=True)
if name == "nnUNetv2_evaluate_folder":
    Path(arguments[1], "summary.json").write_text(summary)
"""
SHORT_TRAINER = """
import torch
from nnunetv2_meddino.trainers.variants import MedDINOv3Trainer_demo

class MedDINOv3Trainer_demo_of_the_test(MedDINOv3Trainer_demo):
    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = 3
"""
STEPS = ("plan_and_preprocess", "train", "predict", "evaluate_folder")


class Stage:
    """A work folder, what was printed, and the diary of the stand-ins."""

    def __init__(self, folder: Path):
        self.folder, self.work_dir, self.diary = folder, folder / "work", folder / "diary"
        self.screen = io.StringIO()

    def play(self, data: Path | None = None) -> run.DemoResult:
        with redirect_stdout(self.screen):
            return run_demo(work_dir=self.work_dir, data=data)

    def calls(self) -> list[dict]:
        return [json.loads(line) for line in self.diary.read_text().splitlines()] if self.diary.exists() else []

    def called(self) -> list[str]:
        return [call["name"].removeprefix("nnUNetv2_") for call in self.calls()]


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    executables = tmp_path / "bin"
    executables.mkdir()
    for step in STEPS:
        (executables / f"nnUNetv2_{step}").write_text(STAND_IN)
        (executables / f"nnUNetv2_{step}").chmod(0o755)
    (executables / "python").symlink_to(Path(sys.executable).resolve())
    monkeypatch.setattr(sys, "executable", str(executables / "python"))
    monkeypatch.setattr(run, "PHANTOMS", {"num_training": 1, "num_test": 1, "seed": 0})
    _make_coarse(monkeypatch)
    stage = Stage(tmp_path)
    monkeypatch.setenv("DIARY", str(stage.diary))
    return stage


def _make_coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let phantoms of the same size have fewer voxels; a training would learn nothing from them."""
    monkeypatch.setattr(phantom, "SHAPE", (4, 80, 80))
    monkeypatch.setattr(phantom, "SPACING_MM", (24.0, 3.6, 3.6))


@pytest.fixture
def real_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dataset of the user's own, with labelled test cases."""
    _make_coarse(monkeypatch)
    made = make_phantom_dataset(tmp_path, num_training=1, num_test=1, seed=0)
    for index in range(1, 5):
        shutil.copy(made / "labelsTr" / "phantomTr_000.nii.gz", made / "labelsTr" / f"phantomTr_00{index}.nii.gz")
    return made.rename(tmp_path / "Dataset123_Mine")


def test_steps_run_in_order_and_the_result_is_told(stage: Stage) -> None:
    result = stage.play()
    assert stage.called() == list(STEPS)
    assert result.scores == pytest.approx({"liver": 0.6, "spleen": 0.7, "kidneys": 0.8, "spine": 0.9})
    assert result.mean_dice == pytest.approx(0.75)
    assert result.scored_on == "2 unseen test cases"
    screen = stage.screen.getvalue()
    for told in ("[3/6] Train", "liver", "0.600", "0.750", "meddino demo --data", *map(str, result.paths.values())):
        assert told in screen
    assert " ".join(STATEMENT.split()) in " ".join(screen.split())
    assert all(path.exists() for path in result.paths.values())
    assert sorted(log.name for log in result.paths["logs"].iterdir()) == [
        "02_plan.log",
        "03_train.log",
        "04_predict.log",
        "05_evaluate.log",
    ]


def test_a_structure_that_no_case_has_is_left_out_of_the_mean(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DICE", '{"1": 0.6, "2": NaN, "3": 0.8}')
    result = stage.play()
    assert result.mean_dice == pytest.approx(0.7)
    assert "absent" in stage.screen.getvalue()


def test_regions_are_named(stage: Stage, real_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    description = json.loads((real_data / "dataset.json").read_text())
    description["labels"] = {"background": 0, "trunk": [1, 2, 3, 4], "spine": 4}
    (real_data / "dataset.json").write_text(json.dumps(description))
    monkeypatch.setenv("DICE", '{"(1, 2, 3, 4)": 0.8, "4": 0.6}')
    assert stage.play(real_data).scores == {"trunk": 0.8, "spine": 0.6}


def test_commands_get_the_work_folder_and_the_parent_keeps_its_environment(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("nnUNet_raw", "/of/the/user")
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    before = dict(os.environ)
    stage.play()
    assert dict(os.environ) == before
    plan, train, predict, evaluate = stage.calls()
    for call in (plan, train, predict, evaluate):
        assert call["environment"]["nnUNet_raw"] == str(stage.work_dir / "nnUNet_raw")
        assert call["environment"]["MEDDINO_WEIGHTS"] == "none"
        assert call["environment"]["MEDDINO_BACKBONE"] == "tiny"
        assert call["environment"]["OMP_WAIT_POLICY"] == "passive"
        assert "nnunet_ext" in call["environment"]["nnUNet_extTrainer"]
    assert "nnUNet_n_proc_DA" not in plan["environment"]
    assert train["environment"]["nnUNet_n_proc_DA"] == "0"
    assert train["arguments"] == ["990", "2d", "0", "-tr", TRAINER, "-device", "cpu"]
    assert "--disable_tta" not in predict["arguments"]


def test_a_finished_demo_is_not_run_again(stage: Stage) -> None:
    first = stage.play()
    second = stage.play()
    assert stage.called() == list(STEPS)
    assert second == first
    assert stage.screen.getvalue().count("already done") == 6


def test_a_step_whose_output_is_gone_is_run_again_with_all_that_follow(stage: Stage) -> None:
    result = stage.play()
    (result.paths["preprocessed"] / "nnUNetPlans.json").unlink()
    stage.play()
    assert stage.called() == [*STEPS, *STEPS]


def test_a_failed_step_is_named_with_its_cause_and_log(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIL", "nnUNetv2_train")
    with pytest.raises(DemoError) as failure:
        stage.play()
    message = str(failure.value)
    assert "[3/6] Train" in message
    assert "status 3" in message
    assert "ValueError: the scanner is on fire" in message
    assert "Traceback" not in message
    assert "x.py" not in message
    assert str(stage.work_dir / "logs" / "03_train.log") in message
    assert stage.called() == ["plan_and_preprocess", "train"]


def test_training_goes_on_from_its_checkpoint(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIL", "nnUNetv2_train")
    with pytest.raises(DemoError):
        stage.play()
    monkeypatch.delenv("FAIL")
    stage.play()
    assert stage.called() == ["plan_and_preprocess", "train", "train", "predict", "evaluate_folder"]
    assert "--c" not in stage.calls()[1]["arguments"]
    assert "--c" in stage.calls()[2]["arguments"]


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C works, also where the tests were started in the background, which makes processes ignore it."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


def test_ctrl_c_ends_the_command_with_its_workers_and_can_be_continued(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, interruptible: None
) -> None:
    monkeypatch.setenv("INTERRUPT", "nnUNetv2_train")
    monkeypatch.setenv("DEMO", str(os.getpid()))
    with pytest.raises(KeyboardInterrupt):
        stage.play()
    pids = [int(pid) for pid in (stage.folder / "pids").read_text().split()]
    until(lambda: all(map(has_ended, pids)))
    assert "The same command continues from here" in stage.screen.getvalue()
    monkeypatch.delenv("INTERRUPT")
    assert stage.play().mean_dice == pytest.approx(0.75)


def test_a_folder_of_someone_else_is_refused_and_left_alone(stage: Stage) -> None:
    stage.work_dir.mkdir()
    (stage.work_dir / "thesis.tex").write_text("years of work")
    with pytest.raises(DemoError, match="not the work folder of a demo"):
        stage.play()
    assert [file.name for file in stage.work_dir.iterdir()] == ["thesis.tex"]


def test_two_demos_do_not_write_over_each_other(stage: Stage) -> None:
    stage.play()
    with locked(stage.work_dir), pytest.raises(BusyError, match="another command works in"):
        stage.play()
    assert stage.play().mean_dice == pytest.approx(0.75)


def test_a_work_folder_of_other_settings_is_refused(stage: Stage, real_data: Path) -> None:
    stage.play()
    with pytest.raises(DemoError, match="other settings.*choose another"):
        stage.play(real_data)
    assert stage.called() == list(STEPS)


def test_a_missing_command_is_named_before_anything_is_written(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nnunetv2_meddino.commands, "entry_points", lambda **_: ())  # nnU-Net is not installed
    (stage.folder / "bin" / "nnUNetv2_predict").unlink()
    with pytest.raises(ConfigurationError, match="nnUNetv2_predict not found"):
        stage.play()
    assert not stage.work_dir.exists()


def test_a_real_data_set_is_linked_and_scored_on_its_test_cases(stage: Stage, real_data: Path) -> None:
    result = stage.play(real_data)
    assert (stage.work_dir / "nnUNet_raw" / "Dataset123_Mine").readlink() == real_data
    assert stage.calls()[0]["arguments"][:2] == ["-d", "123"]
    assert result.scored_on == "2 unseen test cases"


def test_without_test_labels_the_validation_of_fold_0_is_scored(stage: Stage, real_data: Path) -> None:
    shutil.rmtree(real_data / "labelsTs")
    result = stage.play(real_data)
    assert stage.called() == ["plan_and_preprocess", "train", "predict"]
    assert result.scored_on == "2 validation cases of fold 0 (unseen in training)"
    assert result.paths["scores"].parent.name == "validation"


def test_without_test_images_nothing_is_predicted(stage: Stage, real_data: Path) -> None:
    shutil.rmtree(real_data / "labelsTs")
    shutil.rmtree(real_data / "imagesTs")
    result = stage.play(real_data)
    assert stage.called() == ["plan_and_preprocess", "train"]
    assert "predictions" not in result.paths
    assert result.paths["overlay"].is_file()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: folder.rename(folder.with_name("Mine")), "DatasetXXX_Name"),
        (lambda folder: (folder / "dataset.json").unlink(), "dataset.json not found"),
        (lambda folder: (folder / "labelsTr" / "phantomTr_000.nii.gz").unlink(), "4 training cases.*at least 5"),
    ],
)
def test_a_folder_that_is_no_raw_data_set_is_refused(stage: Stage, real_data: Path, spoil, message: str) -> None:
    folder = spoil(real_data) or real_data
    with pytest.raises(DataError, match=message):
        stage.play(folder)
    assert not stage.work_dir.exists()


def test_damaged_files_of_a_data_set_are_named_before_anything_is_planned(stage: Stage, real_data: Path) -> None:
    image, label = real_data / "imagesTr" / "phantomTr_000_0000.nii.gz", real_data / "labelsTr" / "phantomTr_002.nii.gz"
    whole = {file: file.read_bytes() for file in (image, label)}
    for file, content in whole.items():
        file.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"(?s)2 of \d+ files.*phantomTr_000_0000\.nii.*phantomTr_002\.nii"):
        stage.play(real_data)
    assert stage.called() == []
    for file, content in whole.items():
        file.write_bytes(content)
    stage.play(real_data)
    assert stage.called()[:2] == ["plan_and_preprocess", "train"]


def test_training_output_is_told_as_epochs_loss_and_dice(tmp_path: Path) -> None:
    (tmp_path / "debug.json").write_text('{"num_epochs": "12"}')
    seen: list[tuple] = []
    watch = TrainingWatch(lambda *report: seen.append(report), tmp_path / "debug.json")
    lines = """2025-01-01 10:00:00.123456: Epoch 0 
        2025-01-01 10:00:00.123456: Current learning rate: 0.002 
        2025-01-01 10:00:00.123456: train_loss -0.4321 
        2025-01-01 10:00:00.123456: Pseudo dice [np.float32(0.5), np.float32(nan), np.float32(1.0), 0.0] 
        2025-01-01 10:00:00.123456: Epoch time: 5.12 s 
        2025-01-01 10:00:00.123456: Epoch 3 
        2025-01-01 10:00:00.123456: predicting case_7 
        2025-01-01 10:00:00.123456: predicting case_8 (2 of 3) 
        2025-01-01 10:00:00.123456: Validation: surface metrics of 3 cases 
        2025-01-01 10:00:00.123456: Validation complete """  # noqa: W291 (so nnU-Net writes it)
    for line in lines.splitlines():
        watch(line.strip(" ") + " ")
    assert seen == [
        (0.0, "epoch 1/12"),
        (0.0, "epoch 1/12, loss -0.43"),
        (0.0, "epoch 1/12, loss -0.43, pseudo Dice 0.50"),
        (0.25, "epoch 4/12, loss -0.43, pseudo Dice 0.50"),
        (1.0, "validating case_7"),
        (1.0, "validating case_8 (2 of 3)"),
        (1.0, "validating: surface metrics of 3 cases"),
    ]


def test_bars_and_predicted_cases_are_told_as_fractions() -> None:
    seen: list[tuple] = []
    bar, prediction = BarWatch(lambda *report: seen.append(report)), PredictionWatch(lambda *r: seen.append(r), 2)
    for line in ("Preprocessing cases:  50%|#####     | 4/8 [00:01<00:01]", "INFO: 100 %"):
        bar(line)
    for line in ("Predicting phantomTs_000:", "perform_everything_on_device: False", "done with phantomTs_000"):
        prediction(line)
    assert seen == [(0.5, "preprocessing cases"), (0.0, "phantomTs_000"), (0.5, "")]


@pytest.mark.slow
def test_the_real_pipeline_learns_from_phantoms_and_draws_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extension = tmp_path / "trainers"
    extension.mkdir()
    (extension / "demo_of_the_test.py").write_text(SHORT_TRAINER)
    monkeypatch.setenv("nnUNet_extTrainer", str(extension))
    monkeypatch.setattr(run, "TRAINER", "MedDINOv3Trainer_demo_of_the_test")
    monkeypatch.setattr(run, "PHANTOMS", {"num_training": 5, "num_test": 1, "seed": 0})
    screen = io.StringIO()
    with redirect_stdout(screen):
        result = run_demo(work_dir=tmp_path / "work")
    assert list(result.scores) == ["liver", "spleen", "kidneys", "spine"]
    assert result.scores["spine"] > 0.5  # the easiest: bone, always in the same place
    assert all(path.exists() for path in result.paths.values())
    assert (result.paths["model"] / "fold_0" / "checkpoint_final.pth").is_file()
    assert (result.paths["predictions"] / "phantomTs_000.nii.gz").is_file()
    assert STATEMENT.split(":")[0] in screen.getvalue()
    picture = image.imread(result.paths["overlay"])[..., :3]
    assert picture.shape[0] > 600
    assert picture.shape[1] > 1500
    for colour in COLOURS[:4]:
        assert np.all(np.abs(picture - colors.to_rgb(colour)) < 0.02, axis=-1).sum() > 200
