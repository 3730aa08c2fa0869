from __future__ import annotations

import csv
import errno
import json
import re
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from nnunetv2_meddino.cli.main import main

SPACING = (0.5, 1.0, 2.0)
CUBE = np.zeros((8, 10, 12), np.uint8)
CUBE[2:6, 2:6, 2:6] = 1
CUBE[6:, 8:, 8:] = 2


def meddino_evaluate(*arguments: object) -> int:
    """Run the command in this process; wrong usage ends as argparse ends it."""
    return main(["evaluate", *map(str, arguments)])


def write(path: Path, labels: np.ndarray = CUBE, *, spacing=SPACING, origin=(0, 0, 0), direction=None) -> Path:
    path.parent.mkdir(exist_ok=True)
    image = sitk.GetImageFromArray(labels)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    if direction:
        image.SetDirection(direction)
    sitk.WriteImage(image, path, True)
    return path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``ref`` and ``pred`` with a good case that is shifted by 2 voxels along x, and ``labels.json``."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "ref" / "good.nii.gz")
    write(tmp_path / "pred" / "good.nii.gz", np.roll(CUBE, 2, axis=2))
    (tmp_path / "labels.json").write_text('{"background": 0, "liver": 1, "spleen": 2}')
    return tmp_path


BASIC = ("-p", "pred", "-r", "ref", "-l", "labels.json")


def bad_values(value: float) -> np.ndarray:
    labels = CUBE.astype(np.float32)
    labels[3, 3, 3] = value
    return labels


def cut(path: Path, dropped: int = 30) -> None:
    path.write_bytes(path.read_bytes()[:-dropped])


BAD_INPUT: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "shape": (lambda r, p: write(p, CUBE[1:]), r"shape \(z, y, x\) \(8, 10, 12\) and \(7, 10, 12\)"),
    "broadcastable shape": (lambda r, p: write(p, CUBE[:1]), r"\(8, 10, 12\) and \(1, 10, 12\)"),
    "order of axes": (lambda r, p: write(p, CUBE.transpose()), r"shape \(z, y, x\) \(8, 10, 12\) and \(12, 10, 8\)"),
    "spacing": (lambda r, p: write(p, spacing=(0.5, 1, 2.1)), r"spacing \(z, y, x\) \(2, 1, 0.5\) and \(2.1, 1, 0.5\)"),
    "origin": (lambda r, p: write(p, origin=(0, 0, 4)), r"origin \(0, 0, 0\) and \(0, 0, 4\) mm"),
    "direction": (
        lambda r, p: write(p, direction=(-1, 0, 0, 0, 1, 0, 0, 0, 1)),
        r"direction .*\(1, 0, 0\).*\(-1, 0, 0\)",
    ),
    "missing prediction": (lambda r, p: p.unlink(), "has no prediction in pred"),
    "unknown label in the prediction": (lambda r, p: write(p, CUBE * 3), "not declared: 3, 6"),
    "unknown label in the reference": (lambda r, p: write(r, CUBE * 3), "not declared: 3, 6"),
    "probabilities": (lambda r, p: write(p, bad_values(0.25)), "value 0.25"),
    "NaN": (lambda r, p: write(p, bad_values(np.nan)), "value nan"),
    "truncated": (lambda r, p: cut(p), "cannot be read as a segmentation .*end-of-stream"),
    "truncated reference": (lambda r, p: cut(r), "cannot be read as a segmentation .*end-of-stream"),
    "empty file": (lambda r, p: p.write_bytes(b""), "cannot be read as a segmentation"),
    "no image": (lambda r, p: p.write_text("hello"), "no NIfTI header"),
    "a folder": (lambda r, p: (p.unlink(), p.mkdir()), "not a file"),
    "several channels": (
        lambda r, p: nibabel.save(nibabel.Nifti1Image(np.zeros((12, 10, 8, 2), np.uint8), np.eye(4)), p),
        "shape .*2 values per voxel.*one label is expected",
    ),
    "two predictions": (lambda r, p: write(p.with_name("bad.nrrd")), "Several files are named after one case"),
}


@pytest.mark.parametrize("kind", BAD_INPUT)
def test_wrong_input_is_named_and_the_rest_is_evaluated(home, capsys, kind):
    spoil, message = BAD_INPUT[kind]
    reference, prediction = write(home / "ref" / "bad.nii.gz"), write(home / "pred" / "bad.nii.gz")
    spoil(reference, prediction)
    assert meddino_evaluate(*BASIC, "-o", "out.json", "-np", 1) == 1
    printed = capsys.readouterr()
    lines = [line for line in printed.err.splitlines() if line.startswith("FAILED")]
    assert len(lines) == 1 and lines[0].startswith("FAILED bad: ")
    assert re.search(message, lines[0]), lines[0]
    at_fault = "ref" if "reference" in kind or kind == "missing prediction" else "pred"
    assert f"{at_fault}/bad.n" in lines[0]
    content = json.loads(Path("out.json").read_text())
    assert [case["case"] for case in content["metric_per_case"]] == ["good"]
    assert [failure["case"] for failure in content["failed"]] == ["bad"]
    assert "1 of 2 cases were not evaluated" in printed.err


def test_a_folder_with_some_cases_is_evaluated_without_failures_on_request(home, capsys):
    for name in ("other", "another"):
        write(home / "ref" / f"{name}.nii.gz")
    assert meddino_evaluate(*BASIC, "-np", 1) == 1
    printed = capsys.readouterr()
    assert (printed.err.count("FAILED"), printed.err.splitlines()[-1]) == (
        2,
        "--only-predicted leaves out references without a prediction.",
    )
    assert meddino_evaluate(*BASIC, "-np", 1, "--only-predicted") == 0
    again = capsys.readouterr()
    assert again.out == printed.out
    assert again.err == "note: 2 of 3 references have no prediction and are left out.\n"
    (home / "pred" / "good.nii.gz").rename(home / "pred" / "unknown.nii.gz")
    assert meddino_evaluate(*BASIC, "-np", 1, "--only-predicted") == 2
    assert "No case was evaluated" in capsys.readouterr().err


def test_the_table_names_definitions_and_tolerance_and_agrees_with_the_files(home, capsys):
    assert meddino_evaluate(*BASIC, "-o", "results/out.json", "-np", 2) == 0
    printed = capsys.readouterr()
    assert printed.err == "", "no progress bar where there is no terminal"
    words = " ".join(printed.out.split())
    for head in ("class", "NSD voxel 1 mm", "NSD surfel 1 mm", "DSC", "ASSD voxel (mm)", "HD95 voxel (mm)", "missed"):
        assert head in words
    content = json.loads((home / "results" / "out.json").read_text())
    liver = content["mean"]["1"]
    row = next(line for line in printed.out.splitlines() if "liver" in line)
    assert f"{liver['NSD_voxel_1mm']:.4f}" in row and f"{liver['NSD_surfel_1mm']:.4f}" in row
    assert "0.5000" in row and f"{liver['ASSD_voxel_mm']:.2f}" in row and "1.00" in row
    mean = next(line for line in printed.out.splitlines() if "mean" in line)
    assert f"{content['foreground_mean']['NSD_voxel_1mm']:.4f}" in mean
    with (home / "results" / "out.csv").open(newline="") as file:
        assert [row["class"] for row in csv.DictReader(file)] == ["liver", "spleen"]


def full_disk(monkeypatch: pytest.MonkeyPatch, everywhere: bool) -> None:
    """Let the disk become full while cases are evaluated, with that of temporary files where ``everywhere``."""
    write_text = Path.write_text

    def failing(path: Path, *arguments: object, **options: object) -> int:
        if everywhere or "meddino_" not in path.parent.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_text(path, *arguments, **options)

    monkeypatch.setattr(Path, "write_text", failing)


def test_scores_that_cannot_be_written_are_kept_elsewhere(home, capsys, monkeypatch):
    (home / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(home / "temporary"))
    full_disk(monkeypatch, everywhere=False)
    assert meddino_evaluate(*BASIC, "-o", "out.json", "-np", 1) == 2
    printed = capsys.readouterr()
    assert "liver" in printed.out
    (kept,) = (home / "temporary").rglob("out.json")
    assert printed.err == (
        "OutputError: out.json cannot be written: No space left on device. Nothing is lost: what was computed is in "
        f"{kept.parent}; copy it from there.\n"
    )
    assert json.loads(kept.read_text())["mean"].keys() == {"1", "2"}
    assert kept.with_suffix(".csv").is_file()


def test_scores_that_can_be_written_nowhere_are_printed(home, capsys, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(home))
    full_disk(monkeypatch, everywhere=True)
    assert meddino_evaluate(*BASIC, "-o", "out.json", "-np", 1) == 2
    printed = capsys.readouterr()
    assert json.loads(printed.out.splitlines()[-1])["mean"].keys() == {"1", "2"}
    assert printed.err == (
        "OSError: out.json: No space left on device. Make room there, or write to another place, and run the same "
        "command again.\n"
    )


def test_two_files_of_different_names_and_formats_are_one_case(home, capsys):
    write(home / "somewhere.nrrd")
    assert meddino_evaluate("-p", "somewhere.nrrd", "-r", "ref/good.nii.gz", "-l", "labels.json", "-o", "out.json") == 0
    assert json.loads(Path("out.json").read_text())["foreground_mean"]["NSD_surfel_1mm"] == 1


def test_an_extra_prediction_is_a_note(home, capsys):
    write(home / "pred" / "extra.nii.gz")
    assert meddino_evaluate(*BASIC) == 0
    assert "note: pred/extra.nii.gz has no reference in ref" in capsys.readouterr().err
    assert not Path("out.json").exists()


def test_nothing_evaluated_is_exit_code_2_and_writes_nothing(home, capsys):
    cut(home / "pred" / "good.nii.gz")
    assert meddino_evaluate(*BASIC, "-o", "out.json") == 2
    assert "FAILED good: pred/good.nii.gz cannot be read" in capsys.readouterr().err
    assert not Path("out.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-p", "absent", "-r", "ref", "-l", "labels.json"), "absent does not exist"),
        (("-p", "pred/good.nii.gz", "-r", "ref", "-l", "labels.json"), "two folders or two files"),
        (("-p", "pred", "-r", "ref", "-l", "absent.json"), "absent.json cannot be read as JSON"),
        (("-p", "pred", "-r", "ref", "-l", "pred/good.nii.gz"), "good.nii.gz cannot be read as JSON"),
        ((*BASIC, "-o", "pred"), "-o pred must name a JSON file"),
        ((*BASIC, "-o", "out.csv"), "-o out.csv must name a JSON file"),
        ((*BASIC, "-o", "labels.json/out.json"), "labels.json: File exists. Something of that name exists"),
        ((*BASIC, "--nsd-tolerance", "wide"), "--nsd-tolerance wide is not a length"),
        ((*BASIC, "--nsd-tolerance", "1", "kidney=2"), "unknown classes: kidney"),
        ((*BASIC, "--nsd-tolerance", "liver=2"), "No NSD tolerance is given for spleen"),
        ((*BASIC, "--nsd-tolerance", "-1"), "0 or more"),
        ((*BASIC, "--nsd-tolerance", "list.json"), "list.json must hold the NSD tolerance of every class"),
    ],
)
def test_wrong_usage_is_exit_code_2_with_advice(home, capsys, arguments, message):
    (home / "list.json").write_text("[1, 2]")
    assert meddino_evaluate(*arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], {"1": [1, 2], "2": [1, 2]}),
        (["3", "1.5"], {"1": [3, 1.5], "2": [3, 1.5]}),
        (["1", "liver=5"], {"1": [5], "2": [1]}),
        (["liver=5", "spleen=3", "liver=2"], {"1": [5, 2], "2": [3]}),
        (["tolerances.json"], {"1": [5, 2], "2": [3]}),
    ],
)
def test_tolerances_for_all_classes_or_for_one(home, capsys, arguments, expected):
    (home / "tolerances.json").write_text('{"liver": [5, 2], "spleen": 3}')
    assert meddino_evaluate(*BASIC, "-o", "out.json", *(["--nsd-tolerance", *arguments] if arguments else [])) == 0
    content = json.loads(Path("out.json").read_text())
    assert content["nsd_tolerances_mm"] == expected
    for key, values in expected.items():
        named = {name for name in content["mean"][key] if name.startswith("NSD_voxel") and name.endswith("mm")}
        assert named == {f"NSD_voxel_{value:g}mm" for value in values}
    printed = " ".join(capsys.readouterr().out.split())
    one = len({values[0] for values in expected.values()}) == 1
    assert (f"NSD voxel {expected['1'][0]:g} mm" if one else "NSD voxel at tol.") in printed


def test_names_of_classes_are_printed_as_they_are(home, capsys):
    (home / "labels.json").write_text('{"labels": {"background": 0, "[red]liver": 1, "spleen": 2}}')
    assert meddino_evaluate(*BASIC) == 0
    assert "[red]liver" in capsys.readouterr().out
