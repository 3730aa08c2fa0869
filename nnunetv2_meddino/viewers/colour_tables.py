"""Names and colours of labels in the text files of 3D Slicer and ITK-SNAP.

Sources: https://slicer.readthedocs.io/en/5.6/developer_guide/modules/colors.html (color table file format); the header
that ITK-SNAP writes into its label description files says what their columns are.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunetv2_meddino.files import write_text
from nnunetv2_meddino.viewers.structures import Structure, structures_by_label

SLICER_TABLE = "labels.ctbl"
ITK_SNAP_TABLE = "labels_itksnap.txt"


def write_colour_tables(labels: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write ``labels.ctbl`` for 3D Slicer and ``labels_itksnap.txt`` for ITK-SNAP, each whole or not at all.

    Args:
        labels: The entry ``labels`` of ``dataset.json``.
        folder: Where; it is made if it is missing.

    Returns:
        The files.

    Raises:
        ConfigurationError: The labels contradict themselves.
        OSError: They cannot be written.
    """
    structures = structures_by_label(labels)
    tables = {folder / SLICER_TABLE: _slicer(structures), folder / ITK_SNAP_TABLE: _itk_snap(structures)}
    for path, lines in tables.items():
        write_text("\n".join(lines) + "\n", path)
    return list(tables)


def _slicer(structures: list[Structure]) -> list[str]:
    """Return the lines of a colour table; an underscore stands for a space, which Slicer shows."""
    lines = ["# Color table file", f"# {len(structures) + 1} values", "0 background 0 0 0 0"]
    for structure in structures:
        name = "_".join(structure.name.split())
        lines.append(f"{structure.labels[0]} {name} {_bytes(structure)} 255")
    return lines


def _itk_snap(structures: list[Structure]) -> list[str]:
    """Return the lines of a label description file; a name ends at the next quotation mark."""
    lines = [
        "################################################",
        "# ITK-SnAP Label Description File",
        "# File format:",
        "# IDX   -R-  -G-  -B-  -A--  VIS MSH  LABEL",
        "################################################",
        '0 0 0 0 0 0 0 "Clear Label"',
    ]
    for structure in structures:
        name = " ".join(structure.name.replace('"', "'").split())
        lines.append(f'{structure.labels[0]} {_bytes(structure)} 1 1 1 "{name}"')
    return lines


def _bytes(structure: Structure) -> str:
    return " ".join(str(round(255 * part)) for part in structure.colour)
