"""A whole reproduction with the real commands, as small as can be."""

from __future__ import annotations

import json

import pytest
import torch

from nnunetv2_meddino.cli.main import main
from nnunetv2_meddino.errors import ConfigurationError
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
    ),
    few=(1,),
    seeds=2,
    low_px=32,
    high_px=48,
    batch_size=2,
    pretraining=PRETRAINING,
)


@pytest.mark.slow
def test_from_a_corpus_to_the_tables(tmp_path, monkeypatch, capsys):
    data, corpus, out = write_dataset(tmp_path / "data"), small_corpus(tmp_path / "c"), tmp_path / "out"
    monkeypatch.setenv("nnUNet_extTrainer", str(PROJECT / "tests/ext_trainers"))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    monkeypatch.setenv("nnUNet_def_n_proc", "1")
    monkeypatch.setitem(studies.STUDIES, "small", TINY)
    command = ["reproduce", "small", "--data", str(data), "--corpus", str(corpus), "-o", str(out), "-device", "cpu"]
    assert main(command) == 0, capsys.readouterr()

    results = out / "nnUNet_results" / data.name
    folds = {folder.name: sorted(f.name for f in folder.glob("fold_*")) for folder in results.iterdir()}
    assert folds == {
        f"{TRAINER}__ScratchPlans__2d_48": ["fold_0", "fold_1", "fold_2", "fold_3"],
        f"{TRAINER}__LowPlans__2d_32": ["fold_2", "fold_3"],  # with all cases only
    }
    low = torch.load(results / f"{TRAINER}__LowPlans__2d_32/fold_2/checkpoint_final.pth", weights_only=False)
    origin = low["init_args"]["meddino"]
    assert (origin["fine_tuning"]["name"], origin["weights"]["derived_from"]["configuration"]["stage"]) == (
        "frozen",
        "stage1",
    )
    report = (out / "report.md").read_text()
    for text in ("after stage 1, low", "1 case", "linear probe, Dice", "random weights"):
        assert text in report
    for label in ("1 case", ALL):
        summary = (out / f"{data.name}, {label}" / "report.md").read_text()
        assert "ScratchPlans" in summary
    splits = json.loads((out / "nnUNet_preprocessed" / data.name / "splits_final.json").read_text())
    assert [len(split["train"]) for split in splits[:2]] == [1, 1]

    before = {path: path.stat().st_mtime_ns for path in results.rglob("checkpoint_final.pth")}
    assert main(command) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before, "what is trained is not trained again"

    with pytest.raises(ConfigurationError, match="reproduction with other data"):
        reproduce(TINY, [data], tmp_path / "another", out, device="cpu")


def test_a_folder_that_is_no_dataset_is_refused(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    command = ["reproduce", "small", "--data", str(tmp_path / "empty"), "--corpus", "c", "-o", str(tmp_path / "out")]
    assert main(command) == 2
    assert "no dataset in nnU-Net's raw format" in capsys.readouterr().err
