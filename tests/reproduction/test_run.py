"""A whole reproduction with the real commands, as small as can be."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import pytest
import torch

from nnunetv2_meddino.cli.main import main
from nnunetv2_meddino.errors import CommandError, ConfigurationError, DataError
from nnunetv2_meddino.reproduction import run
from nnunetv2_meddino.reproduction import study as studies
from nnunetv2_meddino.reproduction.run import reproduce
from nnunetv2_meddino.reproduction.study import ALL, Row, Study
from nnunetv2_meddino.trainers.fine_tuning import FROZEN
from tests.conftest import PROJECT
from tests.nnunet import write_dataset
from tests.pretraining.training import ANY_STAGE, SMALL, small_corpus

TRAINER = "MedDINOv3OneStepTrainer"
PRETRAINING = (
    *SMALL,
    *(f"--{stage}.{s[2:]}" if s.startswith("--") else s for stage, settings in ANY_STAGE.items() for s in settings),
)
TINY = Study(
    recipe="smoke",
    rows=(
        Row("Scratch", "random weights", None, TRAINER, few_labels=True),
        Row("Low", "after stage 1, low", "stage1", TRAINER, high_resolution=False, fine_tuning=FROZEN),
        Row("Stage2", "after stage 2", "stage2", TRAINER, high_resolution=False),
    ),
    few=(1,),
    seeds=2,
    low_px=32,
    high_px=48,
    batch_size=2,
    pretraining=PRETRAINING,
)


def interrupted(run_step, fails, step, report, **settings):
    if fails(step.training):
        raise CommandError("the disk is full")
    run_step(step, report, **settings)


def second_seed(training):
    return int(training.fold) % TINY.seeds == 1


def third_row(training):
    return training.method.plans == "Stage2Plans"


def differences(report: str, title: str) -> dict[str, str]:
    """Return the mean difference of each row of a table, without its interval."""
    table = report.split(f"### {title}\n")[1].split("\n#")[0]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("|")]
    return {row[0]: row[2].split(" [")[0].replace("\N{MINUS SIGN}", "-") for row in cells[2:]}


@pytest.mark.slow
def test_from_a_corpus_to_the_tables(tmp_path, monkeypatch, capsys):
    data, corpus, out = write_dataset(tmp_path / "data"), small_corpus(tmp_path / "c"), tmp_path / "out"
    monkeypatch.setenv("nnUNet_extTrainer", str(PROJECT / "tests/ext_trainers"))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    monkeypatch.setenv("nnUNet_def_n_proc", "1")
    monkeypatch.setenv("MEDDINO_FINETUNE", "lora")  # of the user's shell; rows have their own
    monkeypatch.setitem(studies.STUDIES, "small", TINY)
    command = ["reproduce", "small", "--data", str(data), "--corpus", str(corpus), "-o", str(out), "-device", "cpu"]
    for fails, times in ((second_seed, "trained 1 of 2 times so far"), (third_row, "trained 2 times,")):
        with monkeypatch.context() as patch:
            patch.setattr(run, "run_step", partial(interrupted, run.run_step, fails))
            assert main(command) == 1
        report = (out / "report.md").read_text()
        assert times in report, "a long study shows what it has"
        assert "Not complete yet, and left out: after stage 2." in report
    assert main(command) == 0, capsys.readouterr()
    assert "Not complete yet" not in (out / "report.md").read_text()

    results = out / "nnUNet_results" / data.name
    folds = {folder.name: sorted(f.name for f in folder.glob("fold_*")) for folder in results.iterdir()}
    assert folds == {
        f"{TRAINER}__ScratchPlans__2d_48": ["fold_0", "fold_1", "fold_2", "fold_3"],
        f"{TRAINER}__LowPlans__2d_32": ["fold_2", "fold_3"],  # with all cases only
        f"{TRAINER}__Stage2Plans__2d_32": ["fold_2", "fold_3"],
    }
    low = torch.load(results / f"{TRAINER}__LowPlans__2d_32/fold_2/checkpoint_final.pth", weights_only=False)
    origin = low["init_args"]["meddino"]
    assert (origin["fine_tuning"]["name"], origin["weights"]["derived_from"]["configuration"]["stage"]) == (
        "frozen",
        "stage1",
    )
    scratch = torch.load(results / f"{TRAINER}__ScratchPlans__2d_48/fold_0/checkpoint_final.pth", weights_only=False)
    assert not any("parametrizations" in name for name in scratch["network_weights"])
    report = (out / "report.md").read_text()
    for text in ("trained 2 times,", "after stage 1, low", "1 case", "linear probe, Dice", "random weights"):
        assert text in report
    forth, back = (
        differences(report, f"DSC with all labelled cases, differences to {row.title}") for row in TINY.rows[:2]
    )
    assert set(forth) == set(back) == {row.title for row in TINY.rows}
    assert forth["random weights"] == back["after stage 1, low"] == "", "no row is compared with itself"
    assert float(forth["after stage 1, low"]) == -float(back["random weights"]) != 0
    for label in ("1 case", ALL):
        summary = (out / f"{data.name}, {label}" / "report.md").read_text()
        assert "ScratchPlans" in summary
    splits = json.loads((out / "nnUNet_preprocessed" / data.name / "splits_final.json").read_text())
    assert [len(split["train"]) for split in splits[:2]] == [1, 1]

    before = {path: path.stat().st_mtime_ns for path in results.rglob("checkpoint_final.pth")}
    assert main(command) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before, "what is trained is not trained again"

    for study, corpus_given, changed in (
        (TINY, tmp_path / "another", "corpus"),
        (replace(TINY, few=(2,)), corpus, "study"),
    ):
        with pytest.raises(ConfigurationError, match=f"a reproduction whose {changed} differ"):
            reproduce(study, [data], corpus_given, out, device="cpu")
    labels = sorted((data / "labelsTr").iterdir())
    labels[0].unlink()
    with pytest.raises(ConfigurationError, match="whose datasets differ"):
        reproduce(TINY, [data], corpus, out, device="cpu")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("Dataset001_A", None, "dataset.json"),
        ("Dataset001_A", "{}", "no file_ending"),
        ("Dataset001_A", '{"file_ending": ".nii.gz"}', "no labelsTr"),
        ("CT", '{"file_ending": ".nii.gz"}', "DatasetNNN_Name; not CT"),
    ],
)
def test_what_is_no_dataset_is_refused_before_anything_is_done(tmp_path, capsys, name, content, message):
    (tmp_path / name).mkdir()
    if content is not None:
        (tmp_path / name / "dataset.json").write_text(content)
    command = ["reproduce", "small", "--data", str(tmp_path / name), "--corpus", "c", "-o", str(tmp_path / "out")]
    assert main(command) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "nnUNet_raw").exists()


def test_two_datasets_of_one_number_are_refused(tmp_path):
    folders = [write_dataset(tmp_path / place) for place in "ab"]
    with pytest.raises(DataError, match="different numbers"):
        reproduce(TINY, folders, tmp_path, tmp_path / "out", device="cpu")
