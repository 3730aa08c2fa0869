"""``meddino predict`` as a command: its flags, what it prints, and what it says where something is wrong."""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
import torch
from PIL import Image as Pillow

from nnunetv2_meddino.cli.main import main
from nnunetv2_meddino.inference import Predictor
from tests.inference.models import write_model
from tests.inference.test_folders import noise, write_simpleitk
from tests.nnunet import command, nnunet_environment

HALF_PRECISION = 2e-3
"""Error of probabilities where nnU-Net keeps logits in half precision."""

MODEL = "nnUNetTrainer__nnUNetPlans__2d"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``results`` with a model of two channels of Dataset998_Discs, and ``images`` of two cases."""
    home = tmp_path_factory.mktemp("home")
    write_model(home / "results" / "Dataset998_Discs" / MODEL, channels=2, folds=(0, 1))
    (home / "images").mkdir()
    for name in ("a", "b"):
        write_case(home / "images", name)
    return home


def write_case(folder: Path, name: str) -> list[Path]:
    """Write an image of two channels."""
    files = [folder / f"{name}_{channel:04d}.nii.gz" for channel in range(2)]
    for seed, file in enumerate(files):
        write_simpleitk(file, noise((2, 48, 40), seed))
    return files


def predict(home: Path, *arguments: object, model: Path | None = None, images: Path | None = None) -> int:
    """Run the command in this process."""
    model = model or home / "results" / "Dataset998_Discs" / MODEL
    words = ("predict", "-m", model, "-i", images or home / "images", "-device", "cpu", *arguments)
    return main([str(word) for word in words])


def test_takes_what_nnunetv2_predict_takes_and_writes_what_it_writes(home: Path, tmp_path: Path) -> None:
    """The two commands as they are."""
    env = nnunet_environment(home)
    model = (
        "-d",
        998,
        "-tr",
        "nnUNetTrainer",
        "-p",
        "nnUNetPlans",
        "-c",
        "2d",
        "-f",
        0,
        1,
        "-chk",
        "checkpoint_final.pth",
    )
    flags = ("-step_size", 0.7, "--disable_tta", "--verbose", "-npp", 0, "-nps", 0, "-device", "cpu", "--not_on_device")
    arguments = (*model, *flags, "--disable_progress_bar", "--save_probabilities", "--c", "-i", home / "images", "-o")
    command(env, "nnUNetv2_predict", *arguments, tmp_path / "stock")
    printed = command(env, "meddino", "predict", *arguments, tmp_path / "ours", "-num_parts", 1, "-part_id", 0)
    assert printed == f"{tmp_path / 'ours'}\n"
    assert same_files(tmp_path / "ours", tmp_path / "stock")
    printed = command(env, "meddino", "predict", "--stock", *arguments, tmp_path / "again")
    assert "Running in non-multiprocessing mode" in printed
    assert same_files(tmp_path / "again", tmp_path / "stock")


def same_files(mine: Path, stock: Path) -> bool:
    """Whether names are the same, and voxels but those whose two best classes are equal in half precision."""
    for file in stock.glob("*.nii.gz"):
        labels, expected = (sitk.GetArrayFromImage(sitk.ReadImage(folder / file.name)) for folder in (mine, stock))
        assert len(np.unique(expected)) > 1
        probabilities = np.load(file.with_name(file.name.replace(".nii.gz", ".npz")))["probabilities"]
        low, high = np.sort(probabilities[:, labels != expected], axis=0)[-2:]
        assert (high - low < HALF_PRECISION).all()
    return {file.name for file in mine.iterdir()} == {file.name for file in stock.iterdir()}


@pytest.mark.parametrize(
    ("arguments", "entry"),
    [
        (["-d", "998", "-c", "2d"], "predict_entry_point"),
        (["-m", MODEL], "predict_entry_point_modelfolder"),
    ],
)
def test_stock_calls_nnunets_command_with_the_other_arguments(
    home: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], entry: str
) -> None:
    monkeypatch.chdir(home / "results" / "Dataset998_Discs")
    called = []
    module: Any = types.ModuleType("nnunetv2.inference.predict_from_raw_data")
    for name in ("predict_entry_point", "predict_entry_point_modelfolder"):
        setattr(module, name, lambda name=name: called.append((name, sys.argv[1:])))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setenv("nnUNet_results", str(home / "results"))
    others = ["-f", "0", "-device", "cpu", "--verbose"]
    assert main(["predict", "-i", "in", "-o", "out", "--stock", *arguments, *others]) == 0
    assert called == [(entry, ["-i", "in", "-o", "out", *arguments, *others])]


def test_a_terminal_gets_a_bar_and_a_pipe_the_folder_alone(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert predict(home, "-o", tmp_path) == 0
    assert capsys.readouterr() == (f"{tmp_path}\n", "")
    for name, value in (("FORCE_COLOR", "1"), ("TERM", "xterm"), ("COLUMNS", "100")):
        monkeypatch.setenv(name, value)
    assert predict(home, "-o", tmp_path) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{tmp_path}\n"
    assert "predicting" in printed.err
    assert "b, " in printed.err and "slices/s" in printed.err
    assert predict(home, "-o", tmp_path, "--disable_progress_bar") == 0
    assert capsys.readouterr() == (f"{tmp_path}\n", "")


def test_what_nnunets_readers_print_does_not_get_among_the_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model(tmp_path / "model", file_ending=".tif", reader="Tiff3DIO")
    (tmp_path / "images").mkdir()
    tifffile.imwrite(tmp_path / "images" / "a_0000.tif", noise((2, 48, 40)))
    assert predict(tmp_path, "-o", tmp_path / "out", model=tmp_path / "model") == 0
    printed = capsys.readouterr()
    assert printed.out == f"{tmp_path / 'out'}\n"
    assert "WARNING no spacing file" in printed.err


def cut(files: list[Path]) -> None:
    files[1].write_bytes(files[1].read_bytes()[:-200])


def holed(files: list[Path]) -> None:
    values = noise((2, 48, 40))
    values[1, 20, 20] = np.nan
    write_simpleitk(files[0], values)


DAMAGE: dict[str, tuple[Callable[[list[Path]], object], str]] = {
    "truncated": (cut, "truncated_0001.nii.gz cannot be read as an image"),
    "empty": (lambda files: files[0].write_bytes(b""), "empty_0000.nii.gz cannot be read as an image"),
    "holed": (holed, "holed_0000.nii.gz holds values that are not finite: 1 of 3840"),
    "lacking": (lambda files: files[1].unlink(), "1 channels, the network was trained on 2"),
    "headless": (lambda files: files[0].unlink(), "headless_0000.nii.gz is not"),
    "extra": (
        lambda files: shutil.copy(files[0], files[0].with_name("extra_0002.nii.gz")),
        "3 channels, the network was trained on 2",
    ),
    "gap": (lambda files: files[1].rename(files[1].with_name("gap_0002.nii.gz")), "gap_0001.nii.gz is not"),
    "smaller": (
        lambda files: write_simpleitk(files[1], noise((2, 40, 40))),
        "smaller_0001.nii.gz and .*smaller_0000.nii.gz are channels of one case but differ in size",
    ),
    "finer": (
        lambda files: write_simpleitk(files[1], noise((2, 48, 40)), spacing=(0.5, 1.1, 3.0)),
        "finer_0001.nii.gz and .* differ in size or voxel size",
    ),
    "tiny": (
        lambda files: [write_simpleitk(file, noise((2, 48, 40)), spacing=(0.001, 0.001, 3.0)) for file in files],
        "Voxels of 3 x 0.001 x 0.001 mm are so small",
    ),
    "a_folder": (lambda files: (files[1].unlink(), files[1].mkdir()), "a_folder_0001.nii.gz does not exist or is not"),
}


def test_cases_that_cannot_be_predicted_are_named_and_the_others_written(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for name, (spoil, _) in DAMAGE.items():
        spoil(write_case(images, name))
    for name in ("aa", "zz"):
        write_case(images, name)
    assert predict(home, "-o", tmp_path / "out", "--save_probabilities", images=images) == 1
    printed = capsys.readouterr()
    assert printed.out == f"{tmp_path / 'out'}\n"
    lines = dict(line.removeprefix("FAILED ").split(": ", 1) for line in printed.err.splitlines())
    assert lines.keys() == DAMAGE.keys()
    for name, (_, message) in DAMAGE.items():
        assert re.search(message, lines[name]), lines[name]
        assert lines[name].count(str(images / f"{name}_0000.nii.gz")) <= 1
    assert {file.name for file in (tmp_path / "out").iterdir() if file.suffix != ".json"} == {
        f"{name}{ending}" for name in ("aa", "zz") for ending in (".nii.gz", ".npz", ".pkl")
    }


def test_a_case_that_is_mended_is_completed(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    write_case(images, "a")
    cut(write_case(images, "b"))
    assert predict(home, "-o", out, images=images) == 1
    assert predict(home, "-o", out, "--continue_prediction", images=images) == 1, "it still fails"
    write_case(images, "b")
    assert predict(home, "-o", out, "--continue_prediction", images=images) == 0
    assert (out / "b.nii.gz").read_bytes() == (out / "a.nii.gz").read_bytes()


@pytest.mark.parametrize("reader", ["SimpleITKIOWithReorient", "NibabelIO", "NibabelIOWithReorient"])
def test_every_reader_names_channels_that_do_not_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], reader: str
) -> None:
    write_model(tmp_path / "model", channels=2, reader=reader)
    (tmp_path / "images").mkdir()
    write_simpleitk(write_case(tmp_path / "images", "smaller")[1], noise((2, 40, 40)))
    assert predict(tmp_path, "-o", tmp_path / "out", model=tmp_path / "model") == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("FAILED")]
    assert re.search("smaller_0001.nii.gz and .*smaller_0000.nii.gz are channels of one case but differ in size", line)


@pytest.mark.parametrize(
    ("ending", "reader"),
    [
        (".nii.gz", "SimpleITKIO"),
        (".nii", "SimpleITKIO"),
        (".nrrd", "SimpleITKIO"),
        (".mha", "SimpleITKIO"),
        (".gipl", "SimpleITKIO"),
        (".nii.gz", "SimpleITKIOWithReorient"),
        (".mha", "SimpleITKIOWithReorient"),
        (".nii.gz", "NibabelIO"),
        (".nii", "NibabelIOWithReorient"),
        (".tif", "Tiff3DIO"),
        (".png", "NaturalImage2DIO"),
    ],
)
def test_every_reader_names_a_truncated_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ending: str, reader: str
) -> None:
    """SimpleITK itself reads a NIfTI or GIPL file that ends too early."""
    write_model(tmp_path / "model", file_ending=ending, reader=reader)
    (tmp_path / "images").mkdir()
    file = tmp_path / "images" / f"case_0000{ending}"
    if ending == ".png":
        Pillow.fromarray(np.clip(noise((48, 40)), 0, 255).astype(np.uint8)).save(file)
    elif ending == ".tif":
        tifffile.imwrite(file, noise((3, 48, 40)))
    else:
        write_simpleitk(file, noise((3, 48, 40)))
    assert predict(tmp_path, "-o", tmp_path / "out", model=tmp_path / "model") == 0
    file.write_bytes(file.read_bytes()[:-200])
    assert predict(tmp_path, "-o", tmp_path / "again", model=tmp_path / "model") == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("FAILED")]
    assert line.startswith(f"FAILED case: {file} cannot be read")
    assert not (tmp_path / "again" / f"case{ending}").exists()


def unusable(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "unnumbered").mkdir()
    write_simpleitk(tmp_path / "unnumbered" / "case.nii.gz", noise((2, 48, 40)))
    (tmp_path / "file").touch()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-i", "nowhere"], "nowhere does not exist or is not a folder"),
        (["-i", "empty"], "empty holds neither images called NAME_0000.nii.gz .* nor DICOM series. Rename the images"),
        (["-i", "unnumbered"], "unnumbered holds neither images called NAME_0000.nii.gz .* Rename the images"),
        (["-o", "file"], "file: File exists. Something of that name exists"),
        (["-o", "file/out"], "file/out: Not a directory. A part of the path is a file"),
        (["-num_parts", "2", "-part_id", "2"], "no -part_id 2 of -num_parts 2: the first part is 0, the last 1"),
        (["-part_id", "-1"], "no -part_id -1 of -num_parts 1"),
        (["-num_parts", "0"], "-num_parts must be 1 or more, not 0"),
        (["-f", "4"], "no checkpoint_final.pth of fold 4; trained folds: 0, 1. Choose among them with -f"),
        (["-f", "x"], "of fold x; trained folds: 0, 1"),
        (["-chk", "checkpoint_best.pth"], "no checkpoint_best.pth of any fold; trained folds: none"),
        (["-step_size", "2"], "above 0 and at most 1, not 2"),
        (["-m", "empty"], "empty is no trained model.*Trainer__Plans__configuration"),
        (["-prev_stage_predictions", "empty"], "for cascades, which only --stock can predict"),
    ],
)
def test_wrong_usage_is_one_message_that_says_what_to_do(
    home: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    unusable(tmp_path)
    assert predict(home, "-o", "out", *arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.search(message, printed.err), printed.err
    first, *following = printed.err.splitlines()
    assert all(line.startswith("  meddino predict -m ") for line in following)
    assert first.endswith("Next:") == bool(following)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_device_that_is_not_there_is_told(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], device: str
) -> None:
    if getattr(torch, device).is_available():
        pytest.skip(f"there is {device}")
    assert predict(home, "-o", tmp_path / "out", "-device", device) == 2
    printed = capsys.readouterr().err
    assert f"Device {device} cannot be used" in printed
    assert printed.endswith("-device cpu\n")
    with pytest.raises(SystemExit) as stop:
        predict(home, "-o", tmp_path / "out", "-device", "gpu")
    assert stop.value.code == 2
    assert "choose from" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_3d_model_is_refused_with_advice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_model(tmp_path / "model", patch_size=[16, 64, 64])
    (tmp_path / "images").mkdir()
    assert predict(tmp_path, "-o", tmp_path / "out", model=tmp_path / "model") == 2
    message = "predicts patches of 16 x 64 x 64, not slices.*meddino predict --stock"
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-d", "998", "-c", "2d"], ""),
        (["-d", "Dataset998_Discs", "-c", "2d"], ""),
        (["-d", "998"], "-d needs -c"),
        (
            ["-d", "998", "-c", "2d_896"],
            "nnUNetTrainer__nnUNetPlans__2d_896 does not exist. Without -tr .* Trained are: nnUNetTrainer__",
        ),
        (["-d", "998", "-c", "2d", "-tr", "Other"], "Other__nnUNetPlans__2d does not exist"),
        (["-d", "998", "-c", "2d", "-p", "Plans"], "nnUNetTrainer__Plans__2d does not exist"),
        (["-d", "7", "-c", "2d"], "Dataset 7 is not in .* There are: Dataset998_Discs"),
        (["-d", "Discs", "-c", "2d"], "Dataset Discs is not in .* There are: Dataset998_Discs"),
    ],
)
def test_a_trained_model_is_found_as_nnunet_finds_it(
    home: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.setenv("nnUNet_results", str(home / "results"))
    words = ["predict", *arguments, "-i", str(home / "images"), "-o", str(tmp_path / "out"), "-device", "cpu"]
    assert main(words) == (2 if message else 0)
    assert re.search(message, capsys.readouterr().err)
    assert (tmp_path / "out").exists() == (not message)
    monkeypatch.delenv("nnUNet_results")
    assert main(words) == 2
    assert "Not set: nnUNet_results" in capsys.readouterr().err or message.startswith("-d needs")


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_predicted(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    write_text = Path.write_text

    def read_only(path: Path, *arguments: Any, **options: Any) -> int:
        if path.parent == out:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return write_text(path, *arguments, **options)

    monkeypatch.setattr(Path, "write_text", read_only)
    monkeypatch.setattr(Predictor, "predict_slices", lambda *_: pytest.fail("predicted"))
    assert predict(home, "-o", out) == 2
    assert capsys.readouterr().err == (
        f"OSError: {out / 'dataset.json'}: Read-only file system. Name a place that can be written to, and run the "
        "same command again.\n"
    )
