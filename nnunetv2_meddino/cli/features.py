"""The ``meddino features`` command."""

from __future__ import annotations

import argparse
import io
from pathlib import Path

from nnunetv2_meddino.command_line import add_command, add_out, add_theme
from nnunetv2_meddino.console import progress, say
from nnunetv2_meddino.errors import ConfigurationError
from nnunetv2_meddino.files import check_writable, replacing


def add_features(commands: argparse._SubParsersAction) -> None:
    """Add ``features`` to the sub-commands."""
    description = "draw an image's dense features: PCA and similarity of its patches; or write them as an array"
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
    add_out(
        command,
        "OUT",
        ".png, .svg or .pdf: a picture, one row per weights; .npy, of one: the features themselves, float32 (h, w, D)",
        required=True,
    )
    command.add_argument(
        "--size", type=int, default=896, metavar="PX", help="longer side of the input, a multiple of 16 (default: 896)"
    )
    command.add_argument(
        "--slice",
        type=int,
        metavar="Z",
        help="axial slice, from 1 at the feet (default: the one with most body)",
    )
    command.add_argument(
        "--point",
        nargs=2,
        type=int,
        metavar=("Y", "X"),
        help="pixel that others are compared with (default: the body's centre)",
    )
    add_theme(command)
    command.add_argument("--channel", type=int, metavar="C", help="channel, from 0 (default: all of a colour picture)")


def _features(options: argparse.Namespace) -> int:
    from nnunetv2_meddino.visualization.figure_files import FIGURE_ENDINGS

    ending = options.out.suffix.lower()
    if ending not in (*FIGURE_ENDINGS, ".npy") or options.out.is_dir():
        kinds = f"a picture ({', '.join(FIGURE_ENDINGS)}), or a .npy file for the features themselves"
        raise ConfigurationError(f"-o {options.out} must name {kinds}.")
    check_writable(options.out)
    (_write_array if ending == ".npy" else _write_picture)(options)
    say(str(options.out))
    return 0


def _index(options: argparse.Namespace) -> int | None:
    """Return the slice as Python counts: on the command line, as in titles and messages, the first one is 1."""
    return None if options.slice is None else options.slice - 1


def _write_picture(options: argparse.Namespace) -> None:
    from nnunetv2_meddino.visualization.feature_panels import feature_picture
    from nnunetv2_meddino.visualization.style import THEMES

    with progress() as show:
        feature_picture(
            options.image,
            options.weights,
            options.out,
            size=options.size,
            index=_index(options),
            point=options.point and tuple(options.point),
            channel=options.channel,
            theme=THEMES[options.theme],
            on_step=lambda step: show("features", 0, None, step),
        )


def _write_array(options: argparse.Namespace) -> None:
    """Write the features of one slice, and say what they are of: the file itself does not."""
    import numpy as np

    from nnunetv2_meddino.features import patch_features, read_encoder, read_slice
    from nnunetv2_meddino.features.dense import network_size

    if len(options.weights) != 1:
        raise ConfigurationError(f"{len(options.weights)} weights are given; -o {options.out} holds features with one.")
    if options.point is not None:
        raise ConfigurationError(f"--point is for pictures; -o {options.out} holds the features of all patches.")
    image = read_slice(options.image, _index(options), options.channel)
    network_size(image, options.size)  # refuses it before weights are fetched
    with progress() as show:
        show("features", 0, None, f"reading {options.weights[0]}")
        encoder = read_encoder(options.weights[0])
        show("features", 0, None, f"computing features of {encoder.name}")
        features, treatment = patch_features(image, encoder, options.size)
    content = io.BytesIO()  # np.save into a file on a full disk raises an error without a reason
    np.save(content, features.astype(np.float32))
    with replacing(options.out) as temporary:
        temporary.write_bytes(content.getvalue())
    say(f"note: float32 {features.shape} of {image.name}, {encoder.name}; input: {treatment}", stderr=True)
