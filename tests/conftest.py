"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from filelock import FileLock

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is loaded; processes share the cores

PROJECT = Path(__file__).resolve().parent.parent


def shared_path(relative: str) -> Path:
    """Return a file or folder of the shared reference data.

    It is looked for in the folder that ``MEDDINO_SHARED`` names, else beside the checkout. Where it is absent the
    test is skipped with the reason, or fails under ``CI=true``.
    """
    root = Path(os.environ.get("MEDDINO_SHARED", PROJECT.parent / "shared"))
    path = root / relative
    if not path.exists():
        message = f"shared reference data not found: {path} (set MEDDINO_SHARED to the folder that holds it)"
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(message)
        pytest.skip(message)
    return path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the slow files: one that is begun last leaves the other processes without work."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def preprocessed_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with raw, preprocessed and results; Dataset998_Discs planned and preprocessed by stock nnU-Net.

    Made once for all worker processes of a run; nothing may be written to it.
    """
    from tests.nnunet import command, nnunet_environment, write_dataset

    of_the_run = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        of_the_run = of_the_run.parent
    home, complete = of_the_run / "nnunet", of_the_run / "nnunet.complete"
    with FileLock(of_the_run / "nnunet.lock"):
        if not complete.exists():
            for name in ("raw", "preprocessed", "results"):
                (home / name).mkdir(parents=True, exist_ok=True)
            write_dataset(home / "raw")
            env = nnunet_environment(home)
            command(env, "nnUNetv2_plan_and_preprocess", "-d", 998, "-c", "2d", "-np", 1, "-npfp", 1, threads=True)
            complete.touch()
    return home


@pytest.fixture
def nnunet_home(preprocessed_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``preprocessed_home`` with a results folder of the test's own, set in this process' environment."""
    for name in ("raw", "preprocessed"):
        (tmp_path / name).symlink_to(preprocessed_home / name)
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    (tmp_path / "results").mkdir()
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    monkeypatch.delenv("MEDDINO_WEIGHTS", raising=False)
    monkeypatch.delenv("MEDDINO_BACKBONE", raising=False)
    monkeypatch.delenv("MEDDINO_FINETUNE", raising=False)
    monkeypatch.delenv("MEDDINO_LOADER", raising=False)
    monkeypatch.delenv("MEDDINO_AUGMENT", raising=False)
    return tmp_path
