"""Variables are changed for a moment, and folders that are not set are named."""

from __future__ import annotations

import os

import pytest

from nnunetv2_meddino.environment import NNUNET_PATHS, changed_environment, nnunet_folders
from nnunetv2_meddino.errors import ConfigurationError


def test_variables_are_as_before_after_an_error(monkeypatch):
    monkeypatch.setenv("SET", "before")
    monkeypatch.setenv("UNSET", "before")
    monkeypatch.delenv("NEW", raising=False)
    before = dict(os.environ)
    with pytest.raises(KeyError), changed_environment({"SET": "now", "UNSET": None, "NEW": "now"}):
        assert (os.environ["SET"], os.environ.get("UNSET"), os.environ["NEW"]) == ("now", None, "now")
        raise KeyError
    assert dict(os.environ) == before


def test_folders_that_are_not_set_are_named(monkeypatch):
    for variable in NNUNET_PATHS:
        monkeypatch.setenv(variable.name, f"/{variable.name}")
    assert [str(folder) for folder in nnunet_folders(*NNUNET_PATHS[:2])] == ["/nnUNet_raw", "/nnUNet_preprocessed"]
    monkeypatch.setenv("nnUNet_preprocessed", " ")
    monkeypatch.delenv("nnUNet_results")
    with pytest.raises(ConfigurationError, match="Not set: nnUNet_preprocessed, nnUNet_results. Export"):
        nnunet_folders(*NNUNET_PATHS)
