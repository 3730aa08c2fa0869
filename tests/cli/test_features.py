"""``meddino features``: which file is written, and that a ``.npy`` file holds the features, whole."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from nnunetv2_meddino.cli.main import main
from nnunetv2_meddino.features import dense_features, read_slice
from tests.features.images import write_ct


@pytest.fixture(autouse=True)
def tiny_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDDINO_BACKBONE", "tiny")


@pytest.fixture
def ct(tmp_path: Path) -> Path:
    return write_ct(tmp_path / "ct.nii.gz")


def test_array_holds_the_features_and_the_terminal_says_of_what(
    ct: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "ct.NPY"
    assert main(["features", str(ct), "--weights", "none", "-o", str(out), "--size", "64", "--slice", "5"]) == 0
    features = np.load(out)
    assert (features.dtype, features.shape, features.flags.c_contiguous) == (np.float32, (3, 4, 96), True)
    np.testing.assert_array_equal(features, dense_features(read_slice(ct, 4), "none", size=64))
    printed = capsys.readouterr()
    assert printed.out == f"{out}\n"
    assert printed.err == (
        "note: float32 (3, 4, 96) of ct.nii.gz, slice 5 of 10, random weights (tiny); input: HU clipped to "
        "-1000 .. 1000, 0.5 to 99.5 percentile stretched to 0 .. 1\n"
    )
    assert [file.name for file in out.parent.iterdir()] == ["ct.NPY"]


def test_array_is_written_whole_or_not_at_all(
    ct: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out" / "ct.npy"
    command = ["features", str(ct), "--weights", "none", "-o", str(out), "--size", "64"]
    assert main(command) == 0
    before, whole = out.read_bytes(), Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        whole(path, content[: len(content) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    assert main([*command, "--slice", "5"]) == 2
    assert f"{out}: No space left on device" in capsys.readouterr().err
    assert out.read_bytes() == before
    assert list(out.parent.iterdir()) == [out]


@pytest.mark.parametrize(
    ("out", "options", "message"),
    [
        ("o.npy", ["--weights", "none", "none"], "2 weights are given; -o {out} holds features with one"),
        ("o.npy", ["--weights", "none", "--point", "0", "0"], "--point is for pictures; -o {out} holds"),
        ("o.npy", ["--weights", "none", "--size", "100"], "--size 100 must be a multiple of 16"),
        ("o.npy", ["--weights", "none", "--slice", "11"], "1 to 10; there is no slice 11"),
        ("o.npy", ["--weights", "none", "--slice", "0"], "there is no slice 0"),
        ("o.npz", ["--weights", "none"], "-o {out} must name a picture (.png, .svg, .pdf), or a .npy file"),
        ("", ["--weights", "none"], "-o {out} must name a picture (.png, .svg, .pdf), or a .npy file"),
    ],
)
def test_what_cannot_be_written_is_refused(
    ct: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], out: str, options: list[str], message: str
) -> None:
    place = tmp_path / out
    assert main(["features", str(ct), *options, "-o", str(place)]) == 2
    assert message.format(out=place) in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [ct]
