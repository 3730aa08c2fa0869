"""The ``meddino`` command: one file for each sub-command, which imports what it needs only when it runs.

So help is quick, and ``train`` can set the environment before torch is loaded.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence

from nnunetv2_meddino.cli.benchmark import add_benchmark
from nnunetv2_meddino.cli.compare import add_compare
from nnunetv2_meddino.cli.dataset import add_dataset
from nnunetv2_meddino.cli.demo import add_demo
from nnunetv2_meddino.cli.env import add_env
from nnunetv2_meddino.cli.evaluate import add_evaluate
from nnunetv2_meddino.cli.export import add_export
from nnunetv2_meddino.cli.features import add_features
from nnunetv2_meddino.cli.fetch import add_fetch
from nnunetv2_meddino.cli.nnunet import HELP, add_train, train
from nnunetv2_meddino.cli.plan import add_plan
from nnunetv2_meddino.cli.predict import STOCK, add_predict, predict_stock
from nnunetv2_meddino.cli.push import add_push
from nnunetv2_meddino.cli.reproduce import add_reproduce
from nnunetv2_meddino.cli.viewers import add_viewers
from nnunetv2_meddino.cli.weights import add_weights
from nnunetv2_meddino.command_line import add_version, exit_code_of
from nnunetv2_meddino.environment import TRAINING_SETTINGS


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one sub-command and return its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["train"] or (arguments[:1] == ["predict"] and STOCK in arguments):
        work = train if arguments[0] == "train" else predict_stock
        checked = None if HELP.intersection(arguments) else parser().parse_known_args(arguments)[0]
        return exit_code_of(lambda: work(arguments[1:], checked), unwinds=False)
    options = parser().parse_args(arguments)
    options.words = ("meddino", *arguments)
    return exit_code_of(lambda: options.run(options), interrupted=options.interrupted)


def parser() -> argparse.ArgumentParser:
    """Return the parser of all sub-commands; programs that write shell completions read it, too."""
    variables = [f"{v.name:18}{v.meaning}" for v in TRAINING_SETTINGS]
    lines = [textwrap.fill(text, 79, initial_indent="  ", subsequent_indent=" " * 20) for text in variables]
    meddino = argparse.ArgumentParser(
        prog="meddino",
        description="DINOv3 Vision Transformers inside stock nnU-Net v2.",
        epilog="\n".join(["environment variables:", *lines]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_version(meddino)
    meddino.set_defaults(interrupted="")
    commands = meddino.add_subparsers(required=True, metavar="COMMAND")
    add_env(commands)
    add_demo(commands)
    add_dataset(commands)
    add_plan(commands)
    add_weights(commands)
    add_train(commands)
    add_predict(commands)
    add_benchmark(commands)
    add_evaluate(commands)
    add_features(commands)
    add_compare(commands)
    add_viewers(commands)
    add_reproduce(commands)
    add_export(commands)
    add_push(commands)
    add_fetch(commands)
    return meddino
