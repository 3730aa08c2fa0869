"""What ``meddino export`` prints is a command that stock nnU-Net runs, whichever folds are trained."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunetv2_meddino.cli.main import main
from tests.nnunet import make_trainer


def trained(home: Path, monkeypatch: pytest.MonkeyPatch, folds: tuple[str, ...]) -> Path:
    """Write a model folder with finished folds, of a network that has not learnt anything."""
    monkeypatch.setenv("MEDDINO_WEIGHTS", "none")
    monkeypatch.setenv("MEDDINO_BACKBONE", "tiny")
    trainer = make_trainer(home, fold=0)
    trainer.on_train_start()
    fold = Path(trainer.output_folder)
    trainer.save_checkpoint(str(fold / "checkpoint_final.pth"))
    for name in folds:
        if name != "0":
            shutil.copytree(fold, fold.parent / f"fold_{name}")
    if "0" not in folds:
        shutil.rmtree(fold)
    return fold.parent


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
def test_the_printed_command_names_the_folds_that_are_there(nnunet_home, monkeypatch, capsys, folds, printed):
    model = trained(nnunet_home, monkeypatch, folds)
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
def test_a_model_outside_of_nnunets_results_is_named_by_its_folder(nnunet_home, monkeypatch, capsys, place):
    model = trained(nnunet_home, monkeypatch, ("0",))
    capsys.readouterr()
    out = nnunet_home / place
    assert main(["export", str(model), "--stock", "-o", str(out)]) == 0
    quoted = f"'{out}'" if " " in place else out
    expected = f"predict with: nnUNetv2_predict_from_modelfolder -m {quoted} -i IMAGES -o OUT -f 0"
    assert capsys.readouterr().out.splitlines()[-1] == expected
