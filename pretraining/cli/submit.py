"""The sub-command of ``meddino-pretrain`` that trains in a Slurm job."""

from __future__ import annotations

import argparse
import shlex

from nnunetv2_meddino.command_line import add_command
from nnunetv2_meddino.console import say
from nnunetv2_meddino.errors import CommandError, ConfigurationError
from pretraining.cli.train import add_training_options, stages_of

_EPILOG = """Settings are changed as for train, and checked before the job is queued. Five minutes before its time limit
a job is asked to stop; it saves its state and is queued again until the training is finished. What else the cluster
needs goes into --sbatch-arguments, which override the lines of the file."""


def add_submit(commands: argparse._SubParsersAction) -> None:
    """Add ``submit``."""
    description = "train in a Slurm job: write RUN/submit/train.sbatch, show it, and submit it"
    command = add_command(
        commands,
        "submit",
        _submit,
        description,
        epilog=_EPILOG,
        usage="%(prog)s STAGE --corpus CORPUS --out RUN [--nodes N] [--gpus-per-node G] [--section.setting VALUE ...]",
        add_help=False,
    )
    command.set_defaults(takes_settings=True)
    add_training_options(command)
    add = command.add_argument
    add("-device", choices=("cuda", "cpu"), default="cuda", help="default: %(default)s")
    add("--nodes", type=int, default=1, metavar="N", help="number of nodes (default: %(default)s)")
    add("--gpus-per-node", type=int, default=1, metavar="G", help="GPUs and processes of a node (default: %(default)s)")
    add("--sbatch-arguments", default="", metavar="ARGS", help="for sbatch, such as --sbatch-arguments='-A lab'")
    add("--setup", default="", metavar="LINE", help="bash to run first, such as 'module load cuda'")
    add("--print", dest="print_only", action="store_true", help="write and show the file, do not submit it")


def _submit(options: argparse.Namespace) -> int:
    from nnunetv2_meddino.slurm import run_sbatch, sbatch_command
    from pretraining.config.parse import stage_configurations
    from pretraining.corpus.case_ids import corpus_record
    from pretraining.engine.slurm import Job, write_job
    from pretraining.engine.stages import check_settings

    if options.nodes < 1 or options.gpus_per_node < 1:
        raise ConfigurationError("--nodes and --gpus-per-node must be at least 1")
    configs = stage_configurations(stages_of(options), options.recipe, options.config, options.settings)
    for config in configs:
        config.division(options.nodes * options.gpus_per_node)
    check_settings(configs, options.out, corpus_record(options.corpus))
    job = Job(
        nodes=options.nodes,
        processes=options.gpus_per_node,
        cpus=options.gpus_per_node * (1 + max(config.data.workers for config in configs)),
        gpus=options.device == "cuda",
        setup=options.setup,
    )
    script = write_job(job, options.out, _training_arguments(options))
    say(script.read_text().rstrip())
    command = sbatch_command(script, shlex.split(options.sbatch_arguments))
    if options.print_only:
        say(f"# not submitted: {shlex.join(command)}")
        return 0
    try:
        submitted = run_sbatch(command)
    except CommandError as error:
        raise CommandError(f"{error} To submit it where Slurm is: {shlex.join(command)}") from error
    say(f"# job {submitted}: {script}")
    return 0


def _training_arguments(options: argparse.Namespace) -> list[str]:
    """Return the same arguments for ``train``; relative paths are of this folder, which is the job's too."""
    config = [] if options.config is None else ["--config", str(options.config)]
    known = ["--corpus", str(options.corpus), "--out", str(options.out), "--recipe", options.recipe, *config]
    return [options.stage, *known, "-device", options.device, *options.settings]
