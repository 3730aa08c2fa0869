"""The ``meddino features`` command."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunetv2_meddino.command_line import add_command, add_out
from nnunetv2_meddino.console import progress, say
from nnunetv2_meddino.files import check_writable


def add_features(commands: argparse._SubParsersAction) -> None:
    """Add ``features`` to the sub-commands."""
    description = "draw an image's dense features: PCA and similarity of its patches, one row per weights"
    command = add_command(commands, "features", _features, description)
    command.add_argument(
        "image", metavar="IMAGE", type=Path, help="PNG, JPEG or any volume that SimpleITK or nibabel reads"
    )
    command.add_argument(
        "--weights",
        nargs="+",
        required=True,
        metavar="W",
        help="one or two of: a catalog name, a file, a hub id, or 'none' (random weights)",
    )
    add_out(command, "PNG", "picture to write", required=True)
    command.add_argument(
        "--size", type=int, default=896, metavar="PX", help="longer side of the input, a multiple of 16 (default: 896)"
    )
    command.add_argument(
        "--slice",
        dest="index",
        type=int,
        metavar="Z",
        help="axial slice, from 0 (default: the one with most body)",
    )
    command.add_argument(
        "--point",
        nargs=2,
        type=int,
        metavar=("Y", "X"),
        help="pixel that others are compared with (default: the body's centre)",
    )
    command.add_argument("--channel", type=int, metavar="C", help="channel, from 0 (default: all of a colour picture)")


def _features(options: argparse.Namespace) -> int:
    from nnunetv2_meddino.visualization.feature_panels import feature_picture

    check_writable(options.out)
    with progress() as show:
        out = feature_picture(
            options.image,
            options.weights,
            options.out,
            size=options.size,
            index=options.index,
            point=options.point and tuple(options.point),
            channel=options.channel,
            on_step=lambda step: show("features", 0, None, step),
        )
    say(str(out))
    return 0
