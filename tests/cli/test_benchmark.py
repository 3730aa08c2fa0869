"""``meddino benchmark``: what it measures, shows and refuses."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import pytest

from nnunetv2_meddino.cli.main import main
from nnunetv2_meddino.errors import CommandError
from nnunetv2_meddino.inference import benchmark
from nnunetv2_meddino.inference.benchmark import STEPS, Settings, Steps, Usage
from nnunetv2_meddino.trainers.benchmark import Throughput
from tests.inference.models import write_model


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def rows(printed: str) -> dict[str, list[str]]:
    """Return the cells behind the name of each row."""
    lines = [re.split(r"\s{2,}", line.strip()) for line in printed.splitlines()]
    return {cells[0]: cells[1:] for cells in lines}


@pytest.mark.slow
def test_measures_both_predictors_on_one_image(
    tmp_path: Path, scratch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two channels, two folds: everything that either command is given reaches it."""
    model = write_model(tmp_path / "model", channels=2, folds=(0, 2))
    command = ["benchmark", "predict", str(model), "--slices", "3", "--size", "40", "-device", "cpu", "--disable_tta"]
    assert main(command) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    table = rows(printed.out)
    assert [name for name in table if name in STEPS] == list(STEPS)
    assert all(len(table[step]) == 2 for step in STEPS)
    seconds = [float(cell.removesuffix(" s")) for cell in table["all"]]
    for speed, wall_s in zip(table["slices"], seconds[::2], strict=True):
        assert float(speed.removesuffix("/s")) == pytest.approx(3 / wall_s, abs=0.01)
    # torch alone takes 300 MiB
    assert all(float(cell.removesuffix(" MiB")) > 300 for cell in table["peak memory"])
    assert list(scratch.iterdir()) == []


def test_shows_what_was_measured_also_where_nnunet_fails(
    tmp_path: Path, scratch: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_model(tmp_path / "model")
    given = []

    def ours(settings: Settings, images: Path, folder: Path) -> tuple[Usage, Steps]:
        given.append(settings)
        assert [file.name for file in images.iterdir()] == ["case_0000.nii.gz"]
        times = dict.fromkeys(STEPS, 1.0)
        return Usage(7.0, 8.5, 900.4), Steps(times, times)

    def stock(settings: Settings, images: Path, folder: Path) -> Usage:
        assert settings == given[0]
        raise CommandError("killed, see the log")

    monkeypatch.setattr(benchmark, "predict_ours", ours)
    monkeypatch.setattr(benchmark, "predict_stock", stock)
    assert main(["benchmark", "predict", str(model), "--slices", "2", "--size", "8", "-device", "cpu"]) == 2
    printed = capsys.readouterr()
    assert printed.err == "CommandError: killed, see the log\n"
    table = rows(printed.out)
    assert table["start and end"] == ["2.00 s", "3.50 s"]
    assert [table[name] for name in ("all", "slices", "peak memory")] == [["7.00 s", "8.50 s"], ["0.29/s"], ["900 MiB"]]
    assert given == [Settings(str(model), ("0",), "checkpoint_final.pth", "cpu", mirroring=True)]
    assert len(list(scratch.iterdir())) == 1  # with the log


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"patch_size": [8, 64, 64]}, "predicts patches of 8 x 64 x 64, not slices"),
        ({"file_ending": ".png"}, r"reads \.png files; volumes to measure with are written as \.nii\.gz"),
    ],
)
def test_refuses_models_that_it_cannot_measure(
    tmp_path: Path, scratch: Path, capsys: pytest.CaptureFixture[str], model: dict, message: str
) -> None:
    folder = write_model(tmp_path / "model", **model)
    assert main(["benchmark", "predict", str(folder), "-device", "cpu"]) == 2
    assert re.match(f"ConfigurationError: .*{message}", capsys.readouterr().err)
    assert list(scratch.iterdir()) == []


@pytest.fixture
def tiny_training(nnunet_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEDDINO_WEIGHTS", "none")
    monkeypatch.setenv("MEDDINO_BACKBONE", "tiny")
    return nnunet_home


@pytest.mark.parametrize("augmentation", ["worker", "device"])
def test_measures_training_with_both_loaders_and_leaves_no_model(
    tiny_training: Path,
    scratch: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    augmentation: str,
) -> None:
    monkeypatch.setenv("MEDDINO_AUGMENT", augmentation)
    assert main(["benchmark", "train", "-d", "998", "-c", "2d", "-device", "cpu", "--steps", "2"]) == 0
    table = rows(capsys.readouterr().out)
    for loader in ("stock", "whole_slice"):
        samples, network, both, waiting, processes, needed = table[loader]
        assert float(samples) > 0
        assert float(network) > 0
        assert float(both) > 0
        assert 0 <= int(waiting.removesuffix("%")) <= 100
        assert int(processes) == 0  # nnUNet_n_proc_DA
        assert int(needed) >= 1
    assert list((tiny_training / "results").iterdir()) == []
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-c", "2d", "-tr", "nnUNetTrainer"], "no choice of loaders"),
        (["-c", "2d", "-tr", "NoTrainer"], "NoTrainer"),
        (["-c", "2d_896"], "Configuration 2d_896 is not in the plans"),
    ],
)
def test_training_that_cannot_be_measured_is_refused(
    tiny_training: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["benchmark", "train", "-d", "998", *options, "-device", "cpu"]) == 2
    assert message in capsys.readouterr().err


def test_processes_needed_are_those_that_feed_every_step() -> None:
    row = Throughput("stock", loader_s=0.081, step_s=0.010, both_s=0.02, wait_share=0.5, processes=4)
    assert row.processes_needed == 9
