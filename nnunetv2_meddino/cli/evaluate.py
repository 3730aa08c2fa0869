"""The ``meddino evaluate`` command."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from nnunetv2_meddino.command_line import add_command, add_out, add_processes
from nnunetv2_meddino.console import print_table, progress, say
from nnunetv2_meddino.errors import ConfigurationError
from nnunetv2_meddino.files import check_writable, read_json_value, written_or_rescued

if TYPE_CHECKING:
    from nnunetv2_meddino.evaluation.cases import Evaluation
    from nnunetv2_meddino.evaluation.classes import LabelSet, Tolerances

SOME_FAILED = 1
NOTHING_EVALUATED = 2

_EPILOG = """exit code: 0 every case was evaluated, 1 some could not be (they are named, the rest is reported),
2 nothing was evaluated."""


def add_evaluate(commands: argparse._SubParsersAction) -> None:
    """Add ``evaluate`` to the sub-commands."""
    description = "DSC, NSD, ASSD and HD95 of segmentations against references"
    command = add_command(commands, "evaluate", _evaluate, description, epilog=_EPILOG)
    command.add_argument("-p", dest="prediction", type=Path, required=True, metavar="PRED", help="folder or file")
    command.add_argument("-r", dest="reference", type=Path, required=True, metavar="REF", help="folder or file")
    command.add_argument(
        "-l",
        dest="labels",
        type=Path,
        required=True,
        metavar="LABELS",
        help="dataset.json, or a JSON file with {name: id or [ids]} or [id or [ids]]",
    )
    add_out(command, "OUT", "JSON file to write; a CSV file is written beside it")
    command.add_argument(
        "--nsd-tolerance",
        nargs="+",
        default=[],
        metavar="MM",
        help="tolerances of NSD in mm, the one to report first (default: 1 2); NAME=MM for one class; or a JSON file "
        "with {name: mm or [mm]}",
    )
    command.add_argument(
        "--only-predicted",
        action="store_true",
        help="leave out references without a prediction: for the validation folder of a fold, which holds some cases",
    )
    add_processes(command)


def _evaluate(options: argparse.Namespace) -> int:
    from nnunetv2_meddino.evaluation.cases import evaluate_files
    from nnunetv2_meddino.evaluation.classes import LabelSet, tolerances_by_class
    from nnunetv2_meddino.evaluation.pairs import pair_files
    from nnunetv2_meddino.evaluation.reports import table

    _check_out(options.out)
    labels = LabelSet.read(options.labels)
    tolerances = tolerances_by_class(parse_tolerances(options.nsd_tolerance, labels), list(labels.classes))
    pairing = pair_files(options.reference, options.prediction, only_predicted=options.only_predicted)
    with progress() as show:
        show("evaluating", 0, len(pairing.pairs))
        evaluation = evaluate_files(
            pairing, labels, tolerances, processes=options.processes, on_case=partial(show, "evaluating")
        )
    for note in evaluation.notes:
        say(f"note: {note}", stderr=True)
    for failure in evaluation.failures:
        say(f"FAILED {failure.case}: {failure.message}", stderr=True)
    if not evaluation.results:
        say("No case was evaluated; nothing is written.", stderr=True)
        return NOTHING_EVALUATED
    print_table(table(evaluation), narrow=table(evaluation, stacked_heads=True))
    if options.out is not None:
        beside = _written(evaluation, options.out)
        say(f"{options.out}\n{beside}")
    if evaluation.failures:
        done = len(evaluation.results)
        say(f"{len(evaluation.failures)} of {done + len(evaluation.failures)} cases were not evaluated.", stderr=True)
        if pairing.failures and not options.only_predicted:
            say("--only-predicted leaves out references without a prediction.", stderr=True)
        return SOME_FAILED
    return 0


def _written(evaluation: Evaluation, out: Path) -> Path:
    """Write the reports; if they cannot be written anywhere, print the JSON."""
    from nnunetv2_meddino.evaluation.reports import summary_dict, write_reports

    try:
        return written_or_rescued(lambda path: write_reports(evaluation, path), out)
    except OSError:
        say(json.dumps(summary_dict(evaluation)))
        raise


def parse_tolerances(arguments: Sequence[str], labels: LabelSet) -> Tolerances:
    """Return the tolerances given on the command line: numbers for all classes, ``name=mm`` for one, or a file.

    Raises:
        ConfigurationError: An argument is none of these.
    """
    from nnunetv2_meddino.evaluation.classes import DEFAULT_TOLERANCES_MM

    if len(arguments) == 1 and arguments[0].lower().endswith(".json"):
        form = "the NSD tolerance of every class: {name: mm or [mm]}"
        content = read_json_value(Path(arguments[0]), ConfigurationError, f"It must hold {form}.")
        entries = list(content.values()) if isinstance(content, dict) else [None]
        values = [v for entry in entries for v in (entry if isinstance(entry, list) else [entry])]
        if not all(isinstance(v, (int, float)) for v in values):
            raise ConfigurationError(f"{arguments[0]} must hold {form}.")
        return content
    for_all: list[float] = []
    for_one: dict[str, list[float]] = {}
    for argument in arguments:
        name, equals, value = argument.rpartition("=")
        try:
            (for_one.setdefault(name, []) if equals else for_all).append(float(value))
        except ValueError as error:
            raise ConfigurationError(
                f"--nsd-tolerance {argument} is not a length in mm, NAME=MM or JSON file."
            ) from error
    default = for_all or ([] if for_one else list(DEFAULT_TOLERANCES_MM))
    return (dict.fromkeys(labels.classes, default) if default else {}) | for_one


def _check_out(out: Path | None) -> None:
    """Refuse a file that cannot be written before hours are spent on its content."""
    if out is None:
        return
    if out.is_dir() or out.suffix.lower() == ".csv":
        raise ConfigurationError(f"-o {out} must name a JSON file; the CSV file is written beside it.")
    check_writable(out)
