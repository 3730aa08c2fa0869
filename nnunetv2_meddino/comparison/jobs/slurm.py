"""Writes Slurm jobs for what is missing, and submits them: prepare, then an array of trainings, then the report."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunetv2_meddino.comparison.jobs.steps import Step
from nnunetv2_meddino.environment import (
    NNUNET_N_PROC_DA,
    NNUNET_PATHS,
    NNUNET_WANDB,
    TRAINING_SETTINGS,
    run_environment,
)
from nnunetv2_meddino.errors import CommandError
from nnunetv2_meddino.files import write_text
from nnunetv2_meddino.slurm import job_path, run_sbatch, sbatch_command, write_script

_TRAIN = """
line=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" {tasks})
IFS=$'\\t' read -r dataset configuration fold trainer plans folder <<< "$line"
arguments=("$dataset" "$configuration" "$fold" -tr "$trainer" -p "$plans" -device {device})
if [ -f "$folder/checkpoint_final.pth" ]; then
  [ -f "$folder/validation/summary.json" ] && exit 0
  arguments+=(--val)
  export {wandb}=0  # nnU-Net would delete the training's curves
elif compgen -G "$folder/checkpoint_*.pth" > /dev/null; then
  arguments+=(--c)
fi
exec nnUNetv2_train "${{arguments[@]}}"
"""


@dataclass(frozen=True)
class Jobs:
    """The scripts, in the order of submission; ``prepare`` and ``train`` are None where there is nothing to do."""

    prepare: Path | None
    train: Path | None
    report: Path


def write_jobs(steps: Sequence[Step], report_command: Sequence[str], out: Path, *, device: str) -> Jobs:
    """Write ``prepare.sh``, ``train.sh`` with its task list, and ``report.sh`` to ``out/slurm``.

    Each script sets the environment of this call. A training that is requeued continues from its checkpoint, and one
    that has finished ends at once.

    Args:
        steps: From ``plan_steps``.
        report_command: The command that makes the report.
        out: The report's folder.
        device: ``-device`` of the trainings; for ``cuda`` each asks for a GPU.
    """
    folder = (out / "slurm").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    data = [step for step in steps if step.training is None]
    trainings = [step.training for step in steps if step.training is not None]
    prepare, train, report = (folder / f"{name}.sh" for name in ("prepare", "train", "report"))
    commands = "\n".join(shlex.join(step.command) for step in data)
    _script(prepare, ["--job-name=meddino-prepare", "--requeue"], f"unset {NNUNET_N_PROC_DA.name}\n{commands}")
    tasks = folder / "tasks.tsv"
    lines = [
        "\t".join(
            (t.dataset, t.method.configuration, t.fold, t.method.trainer, t.method.plans, str(t.folder.absolute()))
        )
        for t in trainings
    ]
    write_text("".join(f"{line}\n" for line in lines), tasks)
    options = ["--job-name=meddino-train", f"--array=0-{max(len(trainings) - 1, 0)}", "--requeue"]
    options += ["--gres=gpu:1"] if device == "cuda" else []
    commands = _TRAIN.strip().format(tasks=shlex.quote(str(tasks)), device=device, wandb=NNUNET_WANDB.name)
    _script(train, options, commands, log="%x_%A_%a.log")
    _script(report, ["--job-name=meddino-report"], shlex.join(report_command))
    return Jobs(prepare if data else None, train if trainings else None, report)


def _script(path: Path, options: Sequence[str], commands: str, *, log: str = "%x_%j.log") -> None:
    write_script(path, [*options, f"--output={path.parent / log}"], _environment(), commands)


def _environment() -> Mapping[str, str]:
    """Return what a job needs that starts from a bare shell."""
    kept = (*NNUNET_PATHS, *TRAINING_SETTINGS, NNUNET_N_PROC_DA)
    own = {v.name: v.get() for v in kept}
    values = {name: value for name, value in own.items() if value is not None} | run_environment()
    return values | {"PATH": job_path(), "PYTHONUNBUFFERED": "1"}


def submit(jobs: Jobs, sbatch_arguments: str) -> list[str]:
    """Submit the jobs, each after those before it have succeeded; return one line for each.

    Args:
        jobs: From ``write_jobs``.
        sbatch_arguments: Further arguments of ``sbatch``, as they would be typed; they go to every job and win over
            those in the scripts.

    Raises:
        CommandError: There is no ``sbatch``, or it refuses a job; the message says what was submitted already and
            how to submit the rest by hand.
    """
    extra = shlex.split(sbatch_arguments)
    scripts = [script for script in (jobs.prepare, jobs.train, jobs.report) if script is not None]
    ids: list[str] = []
    lines = []
    for script in scripts:
        try:
            job = run_sbatch(_sbatch(script, ids, extra))
        except CommandError as error:
            msg = f"{error}\nSubmitted before it: {', '.join(ids) or 'nothing'}. Submit the rest with:"
            raise CommandError("\n  ".join([msg, *_by_hand(scripts, ids, extra)])) from error
        ids.append(job)
        lines.append(f"job {job}: {script}")
    return lines


def _sbatch(script: Path, after: Sequence[str], extra: Sequence[str]) -> list[str]:
    dependency = [f"--dependency=afterok:{':'.join(after)}", "--kill-on-invalid-dep=yes"] if after else []
    return sbatch_command(script, [*dependency, *extra])


def _by_hand(scripts: Sequence[Path], ids: Sequence[str], extra: Sequence[str]) -> list[str]:
    """Return shell commands for the scripts that have no job yet; each takes the ids of those before it."""
    known = list(ids)
    lines = []
    for script in scripts[len(ids) :]:
        name = script.stem
        line = shlex.join(_sbatch(script, [], extra))
        if known:
            line = line.replace("--parsable", f"--parsable --dependency=afterok:{':'.join(known)}", 1)
        lines.append(f"{name}=$({line})")
        known.append(f"${name}")
    return lines
