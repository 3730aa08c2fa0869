"""What sbatch answers: a job's id, or an error that says why there is none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nnunetv2_meddino.errors import CommandError
from nnunetv2_meddino.slurm import run_sbatch, sbatch_command


def submit(folder: Path, monkeypatch: pytest.MonkeyPatch, answer: str) -> str:
    sbatch = folder / "sbatch"
    sbatch.write_text(f"#!/bin/sh\n{answer}\n")
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin")
    return run_sbatch(sbatch_command(folder / "train.sh", ["-A", "lab"]))


def test_the_id_is_read_from_what_sbatch_prints(tmp_path, monkeypatch):
    assert submit(tmp_path, monkeypatch, f'echo "$*" > {tmp_path}/called; echo "17;cluster"') == "17"
    assert (tmp_path / "called").read_text() == f"--parsable -A lab {tmp_path}/train.sh\n"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("echo 17; echo 'no such partition' >&2; exit 1", r"refused .*train.sh \(status 1\): no such partition"),
        ("echo 'Submitted batch job'", r"refused .*train.sh \(status 0\): Submitted batch job"),
    ],
)
def test_without_success_or_an_id_the_job_is_refused(tmp_path, monkeypatch, answer, message):
    with pytest.raises(CommandError, match=message):
        submit(tmp_path, monkeypatch, answer)


def test_without_slurm_the_error_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CommandError, match="sbatch is not on PATH"):
        run_sbatch(sbatch_command(tmp_path / "train.sh"))
