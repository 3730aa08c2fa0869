"""What ``meddino export`` prints is a command that stock nnU-Net runs, whichever folds are trained."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunetv2_meddino.cli.main import main
from tests.nnunet import make_trainer


@pytest.fixture(scope="module")
def fold_0(preprocessed_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished fold of a network that has not learnt anything, in the folder of its model."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("MEDDINO_WEIGHTS", "none")
        monkeypatch.setenv("MEDDINO_BACKBONE", "tiny")
        for name in ("raw", "preprocessed"):
            monkeypatch.setenv(f"nnUNet_{name}", str(preprocessed_home / name))
        monkeypatch.setenv("nnUNet_results", str(tmp_path_factory.mktemp("results")))
        monkeypatch.setenv("nnUNet_n_proc_DA", "0")
        trainer = make_trainer(preprocessed_home, fold=0)
        trainer.on_train_start()
        trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
    return Path(trainer.output_folder)


def trained(home: Path, fold_0: Path, folds: tuple[str, ...]) -> Path:
    """Write a model folder with finished folds."""
    model = home / "results" / fold_0.parent.parent.name / fold_0.parent.name
    shutil.copytree(fold_0.parent, model, ignore=shutil.ignore_patterns("fold_0"))
    for name in folds:
        shutil.copytree(fold_0, model / f"fold_{name}")
    return model


@pytest.mark.parametrize(
    ("folds", "printed"),
    [
        (("0",), " -f 0"),
        (("3",), " -f 3"),
        (("1", "0", "10"), " -f 0 1 10"),
        (("all",), " -f all"),
        (("0", "1", "2", "3", "4"), ""),
    ],
)
def test_the_printed_command_names_the_folds_that_are_there(nnunet_home, fold_0, capsys, folds, printed):
    model = trained(nnunet_home, fold_0, folds)
    (model / "fold_2").mkdir(exist_ok=True)  # begun, not finished, where it is not one of the folds
    capsys.readouterr()
    assert main(["export", str(model), "--stock"]) == 0
    out, line = capsys.readouterr().out.splitlines()[-2:]
    command = "nnUNetv2_predict -d Dataset998_Discs -c 2d -p nnUNetPlansMedDINOv3Trainer -i IMAGES -o OUT"
    assert line == f"predict with: {command}{printed}"
    # nnU-Net finds exactly these folds, in the way that -f, or its absence, makes it look for them
    chosen = [f if f == "all" else int(f) for f in printed.split()[1:]] or (0, 1, 2, 3, 4)
    predictor = nnUNetPredictor(device=torch.device("cpu"))
    predictor.initialize_from_trained_model_folder(out, chosen, "checkpoint_final.pth")
    assert len(predictor.list_of_parameters) == len(folds)


@pytest.mark.parametrize("place", ["a b/model", "nnUNetTrainer__PlansX__2d"])
def test_a_model_outside_of_nnunets_results_is_named_by_its_folder(nnunet_home, fold_0, capsys, place):
    model = trained(nnunet_home, fold_0, ("0",))
    capsys.readouterr()
    out = nnunet_home / place
    assert main(["export", str(model), "--stock", "-o", str(out)]) == 0
    quoted = f"'{out}'" if " " in place else out
    expected = f"predict with: nnUNetv2_predict_from_modelfolder -m {quoted} -i IMAGES -o OUT -f 0"
    assert capsys.readouterr().out.splitlines()[-1] == expected
