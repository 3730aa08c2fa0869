"""The ``meddino reproduce`` command."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunetv2_meddino.command_line import add_command, add_out
from nnunetv2_meddino.console import say
from nnunetv2_meddino.errors import BusyError

SOME_FAILED = 1
STUDIES = ("small",)

_EPILOG = """The same command continues where it was stopped. Once the preparation is done, in another terminal or on
another machine with the same folder it takes trainings that nobody works on; the report is written anew whenever
a seed or a row is complete. exit code: 0 the whole report is written, 1 a step failed or runs elsewhere, 2 an
argument or a dataset cannot be used."""


def add_reproduce(commands: argparse._SubParsersAction) -> None:
    """Add ``reproduce`` to the sub-commands."""
    description = "the paper's ablation at small scale: pretrain, fine-tune every row on few and many labels, report"
    command = add_command(commands, "reproduce", _reproduce, description, epilog=_EPILOG)
    command.add_argument("study", choices=STUDIES, help="small: a tiny ViT, hours on a CPU")
    command.add_argument(
        "--data", type=Path, nargs="+", required=True, metavar="DATASET", help="labelled, in nnU-Net's raw format"
    )
    command.add_argument(
        "--corpus", type=Path, required=True, help="of meddino-pretrain curate; without the cases of the datasets"
    )
    add_out(command, "DIR", "folder for everything (default: %(default)s)", default=Path("meddino_reproduction"))
    command.add_argument("-device", choices=("cuda", "cpu"), help="for training (default: cuda if there is one)")


def _reproduce(options: argparse.Namespace) -> int:
    import torch

    from nnunetv2_meddino.reproduction.run import reproduce
    from nnunetv2_meddino.reproduction.study import STUDIES as STUDIES_BY_NAME

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    study = STUDIES_BY_NAME[options.study]
    try:
        failed = reproduce(study, options.data, options.corpus, options.out, device=device)
    except BusyError as error:
        say(str(error), stderr=True)
        return SOME_FAILED
    return SOME_FAILED if failed else 0
