"""The ``meddino weights`` command."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from nnunetv2_meddino.cli.contamination import add_seen
from nnunetv2_meddino.command_line import add_command
from nnunetv2_meddino.console import say

_LABEL = 12
"""Columns of the labels of ``inspect``."""

_LONGEST_VALUE = 200
"""Characters of a header's value that are shown."""

_SAID_ELSEWHERE = {"format", "architecture", "provenance"}
"""Values of our own headers that ``inspect`` shows in other lines."""

WEIGHT_FORMATS = ("meddino", "meta", "meddinov3", "timm", "transformers")


def add_weights(commands: argparse._SubParsersAction) -> None:
    """Add ``weights`` and its actions to the sub-commands."""
    weights = commands.add_parser("weights", help="list, fetch, convert and inspect pretrained weights")
    actions = weights.add_subparsers(required=True, metavar="ACTION")
    add_command(actions, "list", _list, "list the weights that can be given by name")
    fetch = add_command(actions, "fetch", _fetch, "download weights, unless they are here, and print where they are")
    fetch.add_argument("name", help="a catalog name or a hub id (org/name)")
    convert = add_command(actions, "convert", _convert, "write weights in another format")
    convert.add_argument("source", metavar="IN", help="a file, a catalog name or a hub id")
    convert.add_argument("target", metavar="OUT", type=Path, help="file to write")
    convert.add_argument(
        "--format", required=True, choices=WEIGHT_FORMATS, help="meddinov3 is the layout of the published release"
    )
    inspect = add_command(actions, "inspect", _inspect, "show what is in a weights file, without running code from it")
    inspect.add_argument("file", type=Path)
    add_seen(actions)


def _list(options: argparse.Namespace) -> int:
    from nnunetv2_meddino.weights.catalog import CATALOG

    for entry in CATALOG.values():
        say(f"{entry.name}  ({entry.backbone})")
        paragraph = textwrap.fill(f"{entry.description}. {entry.note}".strip(), 110)
        say(textwrap.indent(f"{paragraph}\n{entry.homepage}\nlicence: {entry.licence}, {entry.licence_url}\n", "    "))
    return 0


def _fetch(options: argparse.Namespace) -> int:
    from nnunetv2_meddino.weights.hub import fetch

    say(str(fetch(options.name)))
    return 0


def _convert(options: argparse.Namespace) -> int:
    from nnunetv2_meddino.weights.load import convert_file

    weights = convert_file(options.source, options.target, options.format)
    say(f"{options.target}: {len(weights.tensors)} tensors")
    _say_dropped(weights.dropped)
    return 0


def _inspect(options: argparse.Namespace) -> int:
    from nnunetv2_meddino.weights.load import inspect_file

    summary = inspect_file(options.file)
    say(f"{summary.path}  ({summary.size_bytes / 1e6:.1f} MB, sha256 {summary.sha256})")
    _say_field("format", summary.format)
    architecture = ", ".join(f"{name} {value}" for name, value in summary.architecture.to_dict().items())
    _say_field("backbone", f"{summary.backbone or 'no named one'}: {architecture}")
    _say_field("tensors", f"{summary.tensor_count}, {summary.parameters:,} parameters")
    for name, value in summary.metadata.items():
        shown = value if len(value) <= _LONGEST_VALUE else f"{len(value):,} characters"
        if name not in _SAID_ELSEWHERE:
            _say_field("header", f"{name}: {shown}")
    if summary.provenance is not None:
        _say_provenance(summary.provenance)
    _say_dropped(summary.dropped)
    return 0


def _say_field(label: str, text: str) -> None:
    """Write a line, or several where it would be too long, beside a label."""
    indent = " " * _LABEL
    say(textwrap.fill(text, 100, initial_indent=f"{label:{_LABEL}}", subsequent_indent=indent, break_long_words=False))


def _say_provenance(provenance: Mapping[str, Any]) -> None:
    from nnunetv2_meddino.weights.contamination import history, listed_cases, unlisted

    for _, group in groupby(history(provenance), key=lambda weights: weights.get("name")):
        weights = next(group)  # the others of its name are copies
        what = ", ".join(f"{key} {weights[key]}" for key in ("epochs", "source", "licence") if weights.get(key))
        label = "name" if weights is provenance else "made from"
        _say_field(label, f"{weights.get('name')}{f' ({what})' if what else ''}")
    listed = [f"{len(ids)} of {source}" for source, ids in listed_cases(provenance).items()]
    _say_field("seen cases", ", ".join(listed) or "none listed")
    if unknown := unlisted(provenance):
        _say_field("", f"cases not listed of {', '.join(unknown)}")


def _say_dropped(dropped: Mapping[str, str]) -> None:
    names: dict[str, list[str]] = {}
    for name, reason in dropped.items():
        names.setdefault(reason, []).append(name)
    for reason, group in names.items():
        more = f" and {len(group) - 1} more" if len(group) > 1 else ""
        _say_field("not used", f"{group[0]}{more}: {reason}")
