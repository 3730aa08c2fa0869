"""nnU-Net homes and releases for the tests of the converters."""

from __future__ import annotations

import multiprocessing
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.datasets.releases import write_kits, write_lits


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An nnU-Net home without datasets; worker pools of nnU-Net are threads (a process imports it for seconds)."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: SimpleNamespace(Pool=ThreadPool))
    return tmp_path


@pytest.fixture
def kits(home: Path) -> Path:
    write_kits(home / "release")
    return home / "release"


@pytest.fixture
def lits(home: Path) -> Path:
    write_lits(home / "release")
    return home / "release"
