"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

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
