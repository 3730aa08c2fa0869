"""Reading a model: which network is built, and what is imported for it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_meddino.networks.vit import BACKBONES
from nnunetv2_meddino.trainers import TRAINERS, find_trainer
from tests.forked import run_code
from tests.inference.models import write_model


@pytest.mark.parametrize("name", TRAINERS)
def test_our_trainers_build_what_the_plans_say(name: str) -> None:
    """Reading a model relies on it: it does not ask them."""
    assert find_trainer(name).build_network_architecture is nnUNetTrainer.build_network_architecture  # type: ignore[attr-defined]


OURS = {
    "network_class_name": "nnunetv2_meddino.networks.meddinov3.MedDINOv3",
    "arch_kwargs": {"vit": replace(BACKBONES["tiny"], depth=1).to_dict(), "blocks": [0]},
    "_kw_requires_import": [],
}


@pytest.mark.parametrize("model", [{}, {"trainer": "MedDINOv3Trainer", "architecture": OURS}])
def test_neither_trainers_nor_what_is_for_dicom_only_are_imported(tmp_path: Path, model: dict[str, Any]) -> None:
    """A trainer takes 140 MiB and a second (seaborn, statistics, evaluation), DICOM segmentations 80 MiB."""
    folder = write_model(tmp_path / "model", **model)
    code = f"""
import sys
from pathlib import Path
from nnunetv2_meddino.inference import folders
from nnunetv2_meddino.inference.model import read_model
assert len(read_model(Path({str(folder)!r}), None).networks) == 1
print([name for name in sys.modules if "trainer" in name.lower() or name.endswith(".dicom_seg")])
"""
    exit_code, printed = run_code(code, dict(os.environ))
    assert (exit_code, printed.strip().splitlines()[-1]) == (0, "[]")


def test_a_trainer_that_is_not_ours_builds_its_own_network(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", trainer="nnUNetTrainerNoDeepSupervision")
    code = f"""
from pathlib import Path
from unittest import mock
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2_meddino.inference.model import read_model
with mock.patch.object(nnUNetTrainer, "build_network_architecture", side_effect=LookupError("asked")):
    try:
        read_model(Path({str(folder)!r}), None)
    except LookupError as error:
        print(error)
"""
    exit_code, printed = run_code(code, dict(os.environ))
    assert (exit_code, printed.strip().splitlines()[-1]) == (0, "asked")
