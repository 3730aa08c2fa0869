"""JSON files, read with clear errors and written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunetv2_meddino.errors import MedDINOError
from nnunetv2_meddino.files import replacing


def read_json(path: Path, error_type: type[MedDINOError]) -> dict[str, Any]:
    """Return the object in a JSON file; whatever is wrong with it is raised as ``error_type``."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise error_type(f"{path} cannot be read as JSON: {error}. Restore the file, or plan anew.") from error
    if not isinstance(content, dict):
        raise error_type(f"{path} does not hold a JSON object. Restore the file, or plan anew.")
    return content


def write_json(content: Mapping[str, Any], path: Path) -> None:
    """Write a JSON file under a temporary name and rename it."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=4))  # the layout of nnU-Net's own plans files
