"""Colour tables, read as their formats are described: columns of numbers and a name."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from nnunetv2_meddino.viewers.colour_tables import write_colour_tables
from nnunetv2_meddino.visualization.style import COLOURS

Table = dict[int, tuple[str, str, float]]
"""Label -> name, colour as #RRGGBB, opacity."""


def tables(labels: dict[str, Any], folder: Path) -> tuple[Table, Table]:
    """Write both tables and return what is in Slicer's and in ITK-SNAP's."""
    slicer, itk_snap = write_colour_tables(labels, folder)
    assert slicer.read_text("utf-8").startswith("# Color table file")
    assert itk_snap.read_text("utf-8").splitlines()[1] == "# ITK-SnAP Label Description File"
    read: tuple[Table, Table] = {}, {}
    for line in slicer.read_text("utf-8").splitlines():
        if not line.startswith("#"):
            label, name, r, g, b, opacity = line.split(" ")
            read[0][int(label)] = (name, f"#{int(r):02X}{int(g):02X}{int(b):02X}", int(opacity) / 255)
    for line in itk_snap.read_text("utf-8").splitlines():
        if not line.startswith("#"):
            label, r, g, b, opacity, visible, mesh, name = shlex.split(line)
            assert visible == mesh == str(int(int(label) > 0))
            read[1][int(label)] = (name, f"#{int(r):02X}{int(g):02X}{int(b):02X}", float(opacity))
    return read


def test_labels_have_their_names_and_the_colours_of_the_pictures(tmp_path: Path) -> None:
    slicer, itk_snap = tables({"background": 0, "b": 7, "left kidney": 2, "ignore": 9}, tmp_path)
    assert slicer == {
        0: ("background", "#000000", 0),
        2: ("left_kidney", COLOURS[0], 1),
        7: ("b", COLOURS[1], 1),
        9: ("ignore", "#808080", 1),
    }
    assert itk_snap == {**slicer, 0: ("Clear Label", "#000000", 0), 2: ("left kidney", COLOURS[0], 1)}


def test_a_label_in_several_regions_bears_all_their_names(tmp_path: Path) -> None:
    slicer, itk_snap = tables({"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}, tmp_path)
    assert [itk_snap[label][0] for label in (1, 2, 3)] == ["whole", "whole + core", "whole + core + enhancing"]
    assert slicer[3][0] == "whole_+_core_+_enhancing"
    assert len({colour for _, colour, _ in slicer.values()}) == 4


def test_odd_names_stay_one_field(tmp_path: Path) -> None:
    slicer, itk_snap = tables({"background": 0, 'the "so called"\tliver': 1, "肝臓": 2}, tmp_path)
    assert [slicer[label][0] for label in (1, 2)] == ['the_"so_called"_liver', "肝臓"]
    assert [itk_snap[label][0] for label in (1, 2)] == ["the 'so called' liver", "肝臓"]
