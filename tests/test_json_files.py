"""Broken JSON files end with the advice of whoever reads them."""

from __future__ import annotations

import pytest

from nnunetv2_meddino.errors import DataError, PlanError
from nnunetv2_meddino.json_files import read_json, write_json


@pytest.mark.parametrize("error_type", [DataError, PlanError])
@pytest.mark.parametrize("content", [None, b"", b"{", b"[1, 2]", b"\xff\xfe{}"])
def test_whatever_is_wrong_is_told_with_the_callers_advice(tmp_path, error_type, content):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error_type) as caught:
        read_json(path, error_type, "Curate it anew.")
    assert str(caught.value).startswith(f"{path} ")
    assert str(caught.value).endswith(" Curate it anew.")
    assert "plan" not in str(caught.value).replace(str(path), "")


def test_what_is_written_is_read(tmp_path):
    write_json({"a": [1, {"b": None}]}, tmp_path / "a.json")
    assert read_json(tmp_path / "a.json", DataError, "") == {"a": [1, {"b": None}]}
