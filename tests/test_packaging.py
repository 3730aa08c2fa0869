"""An installed wheel finds all that a checkout finds, wherever it is installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import PROJECT

PACKAGES = ("nnunetv2_meddino", "pretraining")
LOADED = """
import json, sys
from nnunetv2_meddino.planning import presets
from nnunetv2_meddino.environment import ext_trainer_folder
loaded = {name: presets.load_overlay(name).configuration for name in sys.argv[1:]}
print(json.dumps([presets.__file__, str(ext_trainer_folder()), loaded]))
"""


def files_in(folder: Path) -> set[str]:
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {str(path) for path in files if "__pycache__" not in path.parts}


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The packages as pip installs them with ``--target``, from a wheel built of a copy of the checkout."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("target")
    for name in ("setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(PROJECT / name, source)
    for name in (*PACKAGES, "plans"):
        shutil.copytree(PROJECT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--target", target, source],
        check=True,
    )
    return target


@pytest.mark.slow
def test_all_files_of_the_packages_are_installed(installed):
    for package in PACKAGES:
        expected = files_in(PROJECT / package)
        if package == "nnunetv2_meddino":
            expected |= {f"plans/{path.name}" for path in (PROJECT / "plans").glob("*.json")}
        assert files_in(installed / package) == expected
    assert not (installed / "plans").exists()


@pytest.mark.slow
def test_overlays_and_trainers_are_found_where_the_packages_are_installed(installed, tmp_path):
    names = sorted(path.stem for path in (PROJECT / "plans").glob("*.json"))
    done = subprocess.run(
        [sys.executable, "-c", LOADED, *names],
        env={**os.environ, "PYTHONPATH": str(installed)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    file, trainers, loaded = json.loads(done.stdout.splitlines()[-1])
    assert Path(file).is_relative_to(installed)
    assert (Path(trainers), len(list(Path(trainers).glob("*.py")))) == (installed / "nnunetv2_meddino/nnunet_ext", 1)
    stated = {name: json.loads((PROJECT / f"plans/{name}.json").read_text())["configuration"] for name in names}
    assert loaded == stated
