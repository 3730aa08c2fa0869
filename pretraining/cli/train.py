"""The sub-commands of ``meddino-pretrain`` that train and export."""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunetv2_meddino.command_line import add_command, add_out, exit_code_of
from nnunetv2_meddino.console import progress, say
from nnunetv2_meddino.errors import ConfigurationError

if TYPE_CHECKING:
    from pretraining.engine.loop import Progress

STOPPED = 75
"""Exit code of a training that was asked to stop and saved its state (EX_TEMPFAIL of sysexits.h): run it again."""

ALL = "all"
LINE_EVERY_S = 30.0
EXPORT_FORMATS = {"meddino": "meddino", "timm": "timm", "meta": "meddinov3"}
"""Formats by their names here and in the plugin; ``meta`` is what the MedDINOv3 release's own loader accepts."""

_TRAIN_EPILOG = """Settings of the recipe are changed with --section.setting VALUE, for one stage with
--stage2.section.setting VALUE; STAGE --help explains them all, --show prints them as YAML. A training that was stopped
goes on where it was when the same command is run again. On several GPUs: torchrun --nproc-per-node 8 --no-python
meddino-pretrain train ...
exit code: 0 finished, 75 stopped on request (SIGTERM, SIGUSR1, a file RUN/stop) and saved, 2 an error."""


def add_train(commands: argparse._SubParsersAction) -> None:
    """Add ``train``."""
    description = "train one stage, or all three with the hand-over between them"
    command = add_command(
        commands,
        "train",
        _train,
        description,
        epilog=_TRAIN_EPILOG,
        usage="%(prog)s STAGE --corpus CORPUS --out RUN [--recipe NAME] [--section.setting VALUE ...]",
        add_help=False,
    )
    command.set_defaults(takes_settings=True)
    add_training_options(command)
    command.add_argument("-device", metavar="DEVICE", help="cpu or cuda (default: cuda if there is one)")
    command.add_argument("--show", action="store_true", help="print the settings as YAML and stop")


class _Help(argparse.Action):
    """Prints the help of a command and, after a stage, all settings with the values of the recipe."""

    def __call__(self, parser: argparse.ArgumentParser, options: argparse.Namespace, *_: Any) -> None:
        parser.exit(exit_code_of(lambda: self._print(parser, options)))

    def _print(self, parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
        parser.print_help()
        if options.stage is not None:
            from pretraining.config.parse import print_settings, stage_configurations

            (config,) = stage_configurations(stages_of(options)[:1], options.recipe, options.config)
            say("")
            print_settings(config, options.recipe)
        return 0


def add_training_options(command: argparse.ArgumentParser) -> None:
    """Add what says which training is meant."""
    add = command.add_argument
    add("-h", "--help", action=_Help, nargs=0, help="show this help; after STAGE, its settings too")
    add("stage", metavar="STAGE", help="stage1, stage2, stage3 or all")
    add("--corpus", type=Path, required=True, metavar="CORPUS", help="corpus made by meddino-pretrain curate")
    add_out(command, "RUN", "folder of the run", required=True)
    add("--recipe", default="meddinov3", metavar="NAME", help="settings to start from (default: %(default)s)")
    add("--config", type=Path, metavar="FILE", help="YAML file of settings that replace the recipe's")


def add_export(commands: argparse._SubParsersAction) -> None:
    """Add ``export``."""
    description = "write a run's teacher as weights"
    command = add_command(commands, "export", _export, description)
    command.add_argument(
        "run_folder", type=Path, metavar="RUN", help="folder of a run or of a stage, or a teacher's file"
    )
    command.add_argument("--format", choices=EXPORT_FORMATS, default="meddino", help="default: %(default)s")
    add_out(command, "FILE", "file to write: .safetensors; .pth for meta", required=True)
    command.add_argument("--step", type=int, metavar="N", help="the teacher after this step (default: the last)")


def stages_of(options: argparse.Namespace) -> list[str]:
    """Return the stages that the command line names.

    Raises:
        ConfigurationError: There is no such stage.
    """
    from pretraining.config import STAGES

    if options.stage not in (*STAGES, ALL):
        raise ConfigurationError(f"there is no stage {options.stage!r}; there are {', '.join(STAGES)} and {ALL}")
    return list(STAGES) if options.stage == ALL else [options.stage]


def _train(options: argparse.Namespace) -> int:
    from pretraining.config.parse import stage_configurations, to_yaml

    configs = stage_configurations(stages_of(options), options.recipe, options.config, options.settings)
    if options.show:
        for config in configs:
            say(f"# {config.stage}\n{to_yaml(config)}")
        return 0
    from pretraining.engine.distributed import init_distributed
    from pretraining.engine.stages import train_stages
    from pretraining.engine.stop import STOP, StopRequest

    timeout_s = max(config.engine.timeout_s for config in configs)
    with StopRequest(options.out / STOP).listening() as stop, init_distributed(options.device, timeout_s) as ranks:
        logging.basicConfig(level=logging.INFO if ranks.is_main else logging.ERROR, format="%(message)s")
        with _progress(shown=ranks.is_main) as report:
            finished = train_stages(configs, options.corpus, options.out, ranks, stop=stop, progress=report)
        if ranks.is_main:
            last = configs[-1].stage
            stage = shlex.quote(str(options.out / last))
            done = f"finished: meddino-pretrain export {stage} --out WEIGHTS.safetensors"
            say(done if finished else f"stopped by {stop.received}; the same command goes on")
    return 0 if finished else STOPPED


@contextmanager
def _progress(*, shown: bool) -> Iterator[Callable[[str], Progress]]:
    """Show a bar for each stage on a terminal, and a line now and then elsewhere."""
    lines = shown and not sys.stderr.isatty()
    with progress(shown=shown) as show:

        def of_stage(name: str) -> Progress:
            said, said_at = "", -LINE_EVERY_S

            def update(done: int, total: int, metrics: dict[str, float]) -> None:
                nonlocal said, said_at
                new = _in_words(metrics)
                said = new or said
                show(name, done, total, f"{done}/{total} {said}")
                now = time.monotonic()
                if lines and new and (now - said_at >= LINE_EVERY_S or done == total):
                    said_at = now
                    say(f"{name} {done}/{total} {new}", stderr=True)

            return update

        yield of_stage


def _in_words(metrics: dict[str, Any]) -> str:
    """Return loss, speed, memory and remaining time, where they were measured."""
    words = []
    for name, text in {
        "loss": "loss {:.3f}",
        "throughput/images_per_s": "{:.1f} images/s",
        "throughput/mfu": "MFU {:.0%}",
        "throughput/peak_memory_gib": "{:.1f} GiB",
    }.items():
        if name in metrics:
            words.append(text.format(metrics[name]))
    if "throughput/remaining_s" in metrics:
        minutes, seconds = divmod(round(metrics["throughput/remaining_s"]), 60)
        hours, minutes = divmod(minutes, 60)
        words.append(f"{hours}:{minutes:02d}:{seconds:02d} left")
    return ", ".join(words)


def _export(options: argparse.Namespace) -> int:
    from pretraining.engine.export import export_teacher, find_teacher

    teacher = find_teacher(options.run_folder, options.step)
    export_teacher(teacher, options.out, EXPORT_FORMATS[options.format])
    say(f"{teacher} -> {options.out}")
    return 0
