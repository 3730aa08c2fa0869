"""The ``meddino-pretrain`` command: from downloaded volumes to a corpus, and from a corpus to weights.

Each sub-command imports what it needs only when it runs, so that help is quick.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from nnunetv2_meddino.command_line import add_version, exit_code_of
from pretraining.cli.corpus import add_curate, add_inspect, add_merge, add_seen, add_sources
from pretraining.cli.submit import add_submit
from pretraining.cli.train import add_export, add_train


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one sub-command and return its exit code."""
    pretrain = parser()
    options, settings = pretrain.parse_known_args(sys.argv[1:] if arguments is None else list(arguments))
    if settings and not getattr(options, "takes_settings", False):
        pretrain.error(f"unrecognized arguments: {' '.join(settings)}")
    options.settings = settings
    return exit_code_of(lambda: options.run(options), interrupted="The same command continues from here.")


def parser() -> argparse.ArgumentParser:
    """Return the parser of all sub-commands; programs that write shell completions read it, too."""
    pretrain = argparse.ArgumentParser(
        prog="meddino-pretrain", description="Self-supervised pretraining of DINOv3 Vision Transformers on CT slices."
    )
    add_version(pretrain)
    commands = pretrain.add_subparsers(required=True, metavar="COMMAND")
    add_sources(commands)
    add_curate(commands)
    add_merge(commands)
    add_inspect(commands)
    add_seen(commands)
    add_train(commands)
    add_submit(commands)
    add_export(commands)
    return pretrain


if __name__ == "__main__":
    sys.exit(main())
