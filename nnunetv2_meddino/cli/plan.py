"""The ``meddino plan`` command."""

from __future__ import annotations

import argparse

from nnunetv2_meddino.command_line import add_command
from nnunetv2_meddino.console import say


def add_plan(commands: argparse._SubParsersAction) -> None:
    """Add ``plan`` to the sub-commands."""
    description = "add a high-resolution 2d configuration (2d_896) to a dataset's plans"
    command = add_command(commands, "plan", _plan, description)
    command.add_argument("-d", dest="dataset", required=True, metavar="DATASET", help="dataset id or name")
    command.add_argument("--patch-size", type=int, default=896, metavar="PX", help="side of the patch (default: 896)")
    command.add_argument(
        "-p", dest="plans", default="nnUNetPlans", metavar="PLANS", help="name of the plans (default: nnUNetPlans)"
    )
    command.add_argument(
        "--gpu-memory", type=float, default=24.0, metavar="GB", help="memory that the batch must fit (default: 24)"
    )
    command.add_argument(
        "--overlay", metavar="NAME", help="settings to apply: amos22, btcv, kits23, lits, mixed512 or a JSON file"
    )
    command.add_argument(
        "--overwrite", action="store_true", help="replace a configuration of the same name with other settings"
    )
    command.add_argument(
        "--lazy-resample",
        action="store_true",
        help="store no slices of this size: MEDDINO_LOADER=whole_slice enlarges those of 2d as it reads them",
    )


def _plan(options: argparse.Namespace) -> int:
    from nnunetv2_meddino.planning.planner import plan_dataset

    result = plan_dataset(
        options.dataset,
        patch_size=options.patch_size,
        plans_name=options.plans,
        gpu_memory_gb=options.gpu_memory,
        overlay=options.overlay,
        overwrite=options.overwrite,
        lazy_resample=options.lazy_resample,
    )
    say(str(result))
    return 0
