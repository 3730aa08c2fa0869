"""Predictions that are to be interrupted: what runs in other processes, without pytest, so that they start quickly."""

from __future__ import annotations

import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from nnunetv2_meddino.cli.main import main
from nnunetv2_meddino.inference import Predictor
from tests.pretraining.killing import die_before


def predict(model: Path, images: Path, out: Path, *arguments: str) -> int:
    """Run ``meddino predict`` on one core, whose sums do not depend on how many there are."""
    torch.set_num_threads(1)
    fixed = ("-m", model, "-i", images, "-o", out, "-device", "cpu", "--disable_tta")
    return main(["predict", *map(str, fixed), *arguments])


def predict_until(last: int, model: Path, images: Path, out: Path, *arguments: str) -> None:
    """Predict, and die right before the ``last``-th operation on a file of ``out``; write the number at the end."""
    operations = die_before(last, out)
    predict(model, images, out, *arguments)
    out.with_name("operations").write_text(str(operations()))


def predict_and_signal(number: int, model: Path, images: Path, out: Path, *arguments: str) -> None:
    """Predict, and get a signal while the second case is predicted; what is printed goes to ``out``'s neighbours."""
    sys.stdout = out.with_name("stdout").open("w")
    sys.stderr = out.with_name("stderr").open("w")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background are born with Ctrl-C ignored
    predict_slices, calls = Predictor.predict_slices, 0

    def signalled(self: Predictor, *given: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            os.kill(os.getpid(), number)
        return predict_slices(self, *given)

    with mock.patch.object(Predictor, "predict_slices", signalled):
        sys.exit(predict(model, images, out, *arguments))


def predict_to_full_disk(limit: int, model: Path, images: Path, out: Path, *arguments: str) -> None:
    """Predict where no file may become larger than ``limit`` bytes, which is what a full disk is to a program."""
    sys.stderr = out.with_name("stderr").open("w")
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    sys.exit(predict(model, images, out, *arguments))
