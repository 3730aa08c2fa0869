"""The ``meddino compare`` command."""

from __future__ import annotations

import argparse
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunetv2_meddino.command_line import add_command, add_out, add_processes
from nnunetv2_meddino.console import progress, say
from nnunetv2_meddino.errors import ConfigurationError, DataError
from nnunetv2_meddino.files import written_or_rescued
from nnunetv2_meddino.locks import locked

if TYPE_CHECKING:
    from nnunetv2_meddino.comparison.folders import Folders
    from nnunetv2_meddino.comparison.results import Selection

SOME_FAILED = 1

_EPILOG = """exit code: 0 the report is written (or all jobs are submitted), 1 a step of --run failed (it is named, the
others ran, and the same command continues), 2 an argument or a dataset cannot be used."""


def add_compare(commands: argparse._SubParsersAction) -> None:
    """Add ``compare`` to the sub-commands."""
    description = "compare trained methods: scores with intervals and tests, costs, pictures of the worst cases"
    command = add_command(commands, "compare", _compare, description, epilog=_EPILOG)
    command.add_argument(
        "-d", dest="datasets", nargs="+", required=True, metavar="D", help="datasets, by number or name"
    )
    command.add_argument("--trainers", nargs="+", default=[], metavar="T", help="default: all with results")
    command.add_argument("--configurations", nargs="+", default=[], metavar="C", help="default: all with results")
    command.add_argument("--folds", nargs="+", default=[], metavar="F", help="default: all numbered ones with results")
    command.add_argument("-p", dest="plans", metavar="PLANS", help="default: all with results; nnUNetPlans for --run")
    command.add_argument(
        "--reference",
        metavar="METHOD",
        help="the method that others are compared with: a trainer, or Trainer__Plans__configuration (default: "
        "nnUNetTrainer, else the first row)",
    )
    add_out(command, "OUT", "folder for the report (default: %(default)s)", default=Path("meddino_compare"))
    work = command.add_mutually_exclusive_group()
    work.add_argument(
        "--run", dest="run_missing", action="store_true", help="first plan, preprocess and train what is missing"
    )
    work.add_argument("--submit", action="store_true", help="do that in Slurm jobs, which end with the report")
    command.add_argument(
        "--sbatch-arguments", default="", metavar="ARGS", help="further arguments of sbatch for every job, in quotes"
    )
    command.add_argument("-device", choices=("cuda", "cpu"), default="cuda", help="for training (default: %(default)s)")
    add_processes(command)


def _compare(options: argparse.Namespace) -> int:
    _check(options)
    with locked(options.out):
        return _compare_alone(options)


def _compare_alone(options: argparse.Namespace) -> int:
    from nnunetv2_meddino.comparison.folders import Folders
    from nnunetv2_meddino.comparison.results import Selection

    selection = Selection(
        datasets=tuple(options.datasets),
        trainers=tuple(dict.fromkeys(options.trainers)),
        configurations=tuple(dict.fromkeys(options.configurations)),
        folds=tuple(dict.fromkeys(options.folds)),
        plans=options.plans,
    )
    folders = Folders.from_environment()
    failed = 0
    if options.run_missing or options.submit:
        from nnunetv2_meddino.comparison.analysis import choose_reference
        from nnunetv2_meddino.comparison.jobs.steps import STOCK_PLANS, plan_steps

        selection = replace(selection, plans=selection.plans or STOCK_PLANS)
        steps = plan_steps(selection, folders, device=options.device, processes=options.processes)
        choose_reference(options.reference, selection.methods(str(selection.plans)))  # or the report fails, days later
        if options.submit and steps:
            return _submit(options, selection, steps)
        from nnunetv2_meddino.comparison.jobs.run import run_missing

        if not steps:
            say("Everything is trained and validated.")
        failed = len(run_missing(steps, options.out))
        if failed:
            say(f"{failed} of {len(steps)} steps did not succeed; the same command continues with them.")
    try:
        _report(options, selection, folders)
    except DataError as error:
        if not failed:
            raise
        say(f"No report: {error}")
    return SOME_FAILED if failed else 0


def _check(options: argparse.Namespace) -> None:
    """Refuse arguments that would fail only after hours of work."""
    if wrong := [fold for fold in options.folds if not re.fullmatch(r"\d+|all", fold)]:
        raise ConfigurationError(f"--folds takes numbers or 'all', not {', '.join(wrong)}.")
    if options.sbatch_arguments and not options.submit:
        raise ConfigurationError("--sbatch-arguments is for --submit.")
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        msg = f"-o {options.out} is not a folder and cannot be made one ({error}). Name another."
        raise ConfigurationError(msg) from error


def _report(options: argparse.Namespace, selection: Selection, folders: Folders) -> None:
    from nnunetv2_meddino.comparison.analysis import choose_reference
    from nnunetv2_meddino.comparison.fairness import notices
    from nnunetv2_meddino.comparison.report.report import write_report
    from nnunetv2_meddino.comparison.results import collect

    with progress() as show:

        def report(what: str) -> None:
            show("report", 0, None, what)

        datasets = collect(selection, folders, processes=options.processes, report=report)
        reference = choose_reference(options.reference, [row.method for d in datasets for row in d.rows])
        report("writing")
        written = written_or_rescued(lambda out: write_report(datasets, reference, folders, out), options.out)
    for notice in notices(datasets):
        if notice.is_warning:
            say(f"warning: {notice.dataset}: {notice.text}")
    say(f"{sum(len(dataset.rows) for dataset in datasets)} rows, reference method {reference.name}: {written}")


def _submit(options: argparse.Namespace, selection: Selection, steps: Any) -> int:
    from nnunetv2_meddino.comparison.jobs.slurm import submit, write_jobs

    command = ["meddino", "compare", "-d", *selection.datasets, "--trainers", *selection.trainers]
    command += ["--configurations", *selection.configurations, "--folds", *selection.folds]
    command += ["-p", str(selection.plans), "-o", str(options.out.absolute()), "-np", str(options.processes)]
    command += ["--reference", options.reference] if options.reference else []
    jobs = write_jobs(steps, command, options.out, device=options.device)
    for line in submit(jobs, options.sbatch_arguments):
        say(line)
    return 0
