"""The ``meddino weights seen`` command."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from nnunetv2_meddino.command_line import add_command
from nnunetv2_meddino.console import say
from nnunetv2_meddino.errors import ConfigurationError, DataError, WeightsError

SEEN, UNKNOWN = 1, 2
_IMAGE = re.compile(r"(.+)_\d{4}(\.nii\.gz|\.[A-Za-z0-9]+)")
_EPILOG = """Only ids are compared, also those of datasets made by 'meddino dataset'. They cannot prove that a scan was
not seen, since collections hold each other's scans under other names; with the corpus, meddino-pretrain seen CORPUS
IMAGE compares the voxels. exit code: 0 no id is listed, 1 some are, 2 an error, or none is listed but the list of what
the weights were pretrained on is incomplete."""


def add_seen(actions: argparse._SubParsersAction) -> None:
    """Add ``seen`` to the actions of ``weights``."""
    description = "check by id whether cases are in the corpus that weights were pretrained on"
    command = add_command(actions, "seen", _seen, description, epilog=_EPILOG)
    command.add_argument("weights", metavar="WEIGHTS", help="a file, a catalog name or a hub id")
    command.add_argument("cases", metavar="CASE", nargs="*", help="case id, or collection/case for one collection only")
    command.add_argument(
        "--images", type=Path, metavar="DIR", help="all cases of an imagesTr folder (case_0000.nii.gz)"
    )


def _seen(options: argparse.Namespace) -> int:
    from nnunetv2_meddino.weights.contamination import seen_cases, unlisted
    from nnunetv2_meddino.weights.load import read_weights
    from nnunetv2_meddino.weights.resolve import resolve

    cases = list(dict.fromkeys([*options.cases, *(_cases_of(options.images) if options.images else [])]))
    if not cases:
        raise ConfigurationError("No case is given. Give case ids, or a folder of images with --images.")
    _, entry = resolve(options.weights)
    provenance = {"name": entry.name} if entry else read_weights(options.weights).provenance
    sources, unknown = seen_cases(provenance, cases), unlisted(provenance)
    if sources is None:
        msg = (
            f"{options.weights} does not list the cases that it was pretrained on.{_collections(unknown)} With the "
            "corpus, meddino-pretrain seen CORPUS IMAGE compares the voxels."
        )
        raise WeightsError(msg)
    lines = [f"{case}: {'seen in ' + ', '.join(sources[case]) if sources[case] else 'not listed'}" for case in cases]
    say("\n".join(lines))
    if unknown:
        text = f"Made from {', '.join(unknown)}, of which the cases are not listed.{_collections(unknown)}"
        say(text, stderr=True)
    if not all(sources.values()):
        say("'not listed' is not proof: meddino-pretrain seen CORPUS IMAGE compares the voxels.", stderr=True)
    return SEEN if any(sources.values()) else UNKNOWN if unknown else 0


def _collections(names: tuple[str, ...]) -> str:
    """Say which collections the publishers of weights name."""
    from nnunetv2_meddino.weights.catalog import CATALOG

    known = [CATALOG[name] for name in names if name in CATALOG]
    return "".join(f" The publisher of {e.name} names the collections {', '.join(e.collections)}." for e in known)


def _cases_of(folder: Path) -> list[str]:
    """Return the ids of the cases whose images are in a folder, under nnU-Net's names.

    Raises:
        DataError: There is none, or their names are those of other images in the dataset's imagesTr.
    """
    from nnunetv2_meddino.datasets.names import check_names

    if folder.is_dir():
        check_names(folder)
    matches = (_IMAGE.fullmatch(path.name) for path in sorted(folder.glob("*")))
    cases = list(dict.fromkeys(match.group(1) for match in matches if match))
    if not cases:
        raise DataError(f"{folder} holds no images of nnU-Net (case_0000.nii.gz). Give the imagesTr of a dataset.")
    return cases
