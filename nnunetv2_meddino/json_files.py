"""JSON files, read with clear errors and written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunetv2_meddino.errors import MedDINOError
from nnunetv2_meddino.files import replacing


def read_json(path: Path, error_type: type[MedDINOError], advice: str) -> dict[str, Any]:
    """Return the object in a JSON file.

    Args:
        path: The file.
        error_type: What to raise, whatever is wrong with it.
        advice: Sentences that end the message: what to do about this very file.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise error_type(f"{path} cannot be read as JSON: {error}. {advice}") from error
    if not isinstance(content, dict):
        raise error_type(f"{path} does not hold a JSON object. {advice}")
    return content


def write_json(content: Mapping[str, Any], path: Path) -> None:
    """Write a JSON file under a temporary name and rename it."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=4))  # the layout of nnU-Net's own plans files
