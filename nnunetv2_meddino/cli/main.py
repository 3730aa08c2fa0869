"""The ``meddino`` command.

Each sub-command imports what it needs, so that help is quick and ``train`` can set the environment before torch is
loaded.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from nnunetv2_meddino.cli.compare import add_compare
from nnunetv2_meddino.cli.contamination import add_seen
from nnunetv2_meddino.cli.dataset import add_dataset
from nnunetv2_meddino.cli.evaluate import add_evaluate
from nnunetv2_meddino.cli.features import add_features
from nnunetv2_meddino.command_line import ended
from nnunetv2_meddino.environment import MEDDINO_BACKBONE, MEDDINO_WEIGHTS, NNUNET_WANDB, run_environment

WEIGHT_FORMATS = ("meddino", "meta", "meddinov3", "timm", "transformers")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one sub-command and return its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] in (["train"], ["predict"]):
        return ended(lambda: _run_nnunet(arguments[0], arguments[1:]), unwinds=False)
    options = _parser().parse_args(arguments)
    return ended(lambda: options.run(options))


def _parser() -> argparse.ArgumentParser:
    variables = "\n".join(f"  {v.name:18}{v.meaning}" for v in (MEDDINO_WEIGHTS, MEDDINO_BACKBONE))
    parser = argparse.ArgumentParser(
        prog="meddino",
        description="DINOv3 Vision Transformers inside stock nnU-Net v2.",
        epilog=f"environment variables:\n{variables}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_env(commands)
    _add_demo(commands)
    add_dataset(commands)
    _add_plan(commands)
    _add_weights(commands)
    _add_nnunet(commands)
    add_evaluate(commands)
    add_features(commands)
    add_compare(commands)
    _add_export(commands)
    return parser


def _command(
    commands: argparse._SubParsersAction, name: str, run: Callable[[argparse.Namespace], int], description: str
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=description, description=description)
    command.set_defaults(run=run)
    return command


def _add_env(commands: argparse._SubParsersAction) -> None:
    command = _command(
        commands,
        "env",
        _env,
        'print the lines that let stock nnU-Net commands find our trainers: eval "$(meddino env)"',
    )
    command.add_argument("--check", action="store_true", help="verify versions, trainer lookup, weights and device")


def _env(options: argparse.Namespace) -> int:
    if not options.check:
        for name, value in run_environment().items():
            print(f"export {name}={shlex.quote(value)}")
        return 0
    from rich.console import Console

    from nnunetv2_meddino.checks import Status, run_checks

    console = Console()
    colours = {Status.OK: "green", Status.NOTE: "yellow", Status.FAILED: "red"}
    failed = False
    for check in run_checks():
        failed |= check.status is Status.FAILED
        status = f"[{colours[check.status]}]{check.status.value:6}[/]"
        console.print(status, f"{check.name:20}", check.detail, highlight=False, soft_wrap=True)
    return 1 if failed else 0


def _add_demo(commands: argparse._SubParsersAction) -> None:
    command = _command(
        commands, "demo", _demo, "run the whole pipeline on a small phantom CT, on a CPU, in a few minutes"
    )
    command.add_argument("--work-dir", type=Path, metavar="DIR", help="folder for everything (default: ./meddino_demo)")
    command.add_argument(
        "--data", type=Path, metavar="DIR", help="an nnU-Net raw dataset (DatasetXXX_Name) to use instead"
    )


def _demo(options: argparse.Namespace) -> int:
    from nnunetv2_meddino.demo.run import run_demo

    run_demo(work_dir=options.work_dir, data=options.data)
    return 0


def _add_plan(commands: argparse._SubParsersAction) -> None:
    command = _command(commands, "plan", _plan, "add a high-resolution 2d configuration (2d_896) to a dataset's plans")
    command.add_argument("-d", dest="dataset", required=True, metavar="DATASET", help="dataset id or name")
    command.add_argument("--patch-size", type=int, default=896, metavar="PX", help="side of the patch (default: 896)")
    command.add_argument(
        "-p", dest="plans", default="nnUNetPlans", metavar="PLANS", help="plans (default: nnUNetPlans)"
    )
    command.add_argument(
        "--gpu-memory", type=float, default=24.0, metavar="GB", help="memory to plan the batch size for (default: 24)"
    )
    command.add_argument("--overlay", metavar="NAME", help="settings: amos22, btcv, kits23, lits, mixed512 or a file")
    command.add_argument("--overwrite", action="store_true", help="replace a configuration of this name that differs")


def _plan(options: argparse.Namespace) -> int:
    from nnunetv2_meddino.planning.planner import plan_dataset

    result = plan_dataset(
        options.dataset,
        patch_size=options.patch_size,
        plans_name=options.plans,
        gpu_memory_gb=options.gpu_memory,
        overlay=options.overlay,
        overwrite=options.overwrite,
    )
    print(result)
    return 0


def _add_weights(commands: argparse._SubParsersAction) -> None:
    weights = commands.add_parser("weights", help="list, fetch, convert and inspect pretrained weights")
    actions = weights.add_subparsers(required=True, metavar="ACTION")
    _command(actions, "list", _weights_list, "the weights this package knows by name")
    fetch = _command(actions, "fetch", _weights_fetch, "download weights, or say where they already are")
    fetch.add_argument("name", help="a catalog name or a hub id (org/name)")
    convert = _command(actions, "convert", _weights_convert, "write weights in another format")
    convert.add_argument("source", metavar="IN", help="a file, a catalog name or a hub id")
    convert.add_argument("target", metavar="OUT", type=Path, help="file to write")
    convert.add_argument(
        "--format", required=True, choices=WEIGHT_FORMATS, help="meddinov3 is the layout of the published release"
    )
    inspect = _command(actions, "inspect", _weights_inspect, "say what is in a weights file, without executing it")
    inspect.add_argument("file", type=Path)
    add_seen(actions)


def _weights_list(options: argparse.Namespace) -> int:
    from nnunetv2_meddino.weights.catalog import CATALOG

    for entry in CATALOG.values():
        print(f"{entry.name}  ({entry.backbone})")
        paragraph = textwrap.fill(f"{entry.description}. {entry.note}".strip(), 110)
        print(
            textwrap.indent(f"{paragraph}\n{entry.homepage}\nlicence: {entry.licence}, {entry.licence_url}\n", "    ")
        )
    return 0


def _weights_fetch(options: argparse.Namespace) -> int:
    from nnunetv2_meddino.weights.hub import fetch

    print(fetch(options.name))
    return 0


def _weights_convert(options: argparse.Namespace) -> int:
    from nnunetv2_meddino.weights.load import convert_file

    weights = convert_file(options.source, options.target, options.format)
    print(f"{options.target}: {len(weights.tensors)} tensors")
    _print_dropped(weights.dropped)
    return 0


def _weights_inspect(options: argparse.Namespace) -> int:
    from nnunetv2_meddino.weights.load import inspect_file

    summary = inspect_file(options.file)
    print(f"{summary.path}  ({summary.size_bytes} bytes, sha256 {summary.sha256})")
    print(f"format      {summary.format}")
    print(f"backbone    {summary.backbone or 'none of the named ones'}: {summary.architecture}")
    print(f"tensors     {summary.tensor_count}, {summary.parameters} parameters")
    for name, value in summary.metadata.items():
        print(f"header      {name}: {value}")
    if summary.provenance is not None:
        _print_provenance(summary.provenance)
    _print_dropped(summary.dropped)
    return 0


def _print_provenance(provenance: Mapping[str, Any]) -> None:
    from nnunetv2_meddino.weights.contamination import history, listed_cases, unlisted

    for _, group in groupby(history(provenance), key=lambda weights: weights.get("name")):
        weights = next(group)  # the others of its name are copies
        what = ", ".join(f"{key} {weights[key]}" for key in ("epochs", "source", "licence") if weights.get(key))
        label = "name" if weights is provenance else "made from"
        print(f"{label:12}{weights.get('name')}{f' ({what})' if what else ''}")
    listed = [f"{len(ids)} of {source}" for source, ids in listed_cases(provenance).items()]
    print(f"seen cases  {', '.join(listed) or 'none listed'}")
    if unknown := unlisted(provenance):
        print(f"            cases not listed of {', '.join(unknown)}")


def _print_dropped(dropped: Mapping[str, str]) -> None:
    names: dict[str, list[str]] = {}
    for name, reason in dropped.items():
        names.setdefault(reason, []).append(name)
    for reason, group in names.items():
        more = f" and {len(group) - 1} more" if len(group) > 1 else ""
        print(f"not used    {group[0]}{more}: {reason}")


def _add_nnunet(commands: argparse._SubParsersAction) -> None:
    for name in ("train", "predict"):
        commands.add_parser(
            name, help=f"nnUNetv2_{name} with the environment set; takes the same arguments", add_help=False
        )


def _run_nnunet(name: str, arguments: list[str]) -> int:
    """Call nnU-Net's own entry point. The environment is read when torch is loaded, so it is set first."""
    os.environ.update(run_environment())
    if name == "train" and "--val" in arguments and NNUNET_WANDB.get() in ("1", "True", "true"):
        os.environ[NNUNET_WANDB.name] = "0"
        note = "note: Weights & Biases is off for --val: nnU-Net would delete the training's curves in fold_X/wandb.\n"
        sys.stderr.write(note)
    sys.argv = [f"nnUNetv2_{name}", *arguments]
    if name == "train":
        from nnunetv2.run.run_training import run_training_entry as entry
    else:
        from nnunetv2.inference.predict_from_raw_data import predict_entry_point as entry
    entry()
    return 0


def _add_export(commands: argparse._SubParsersAction) -> None:
    command = _command(commands, "export", _export, "make a trained model usable without our environment variable")
    command.add_argument("model_folder", type=Path, help="nnUNet_results/DatasetXXX_Name/Trainer__Plans__configuration")
    command.add_argument("--stock", action="store_true", required=True, help="for stock nnUNetv2_predict")
    command.add_argument("-o", dest="out", type=Path, metavar="DIR", help="folder to write (default: beside the model)")


def _export(options: argparse.Namespace) -> int:
    from nnunetv2_meddino.export import export_stock, predict_command

    out = export_stock(options.model_folder, options.out)
    print(out)
    print(f"predict with: {predict_command(out)}")
    return 0
