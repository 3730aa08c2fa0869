"""A training as a Slurm job: one ``torchrun`` a node, stopped in time, and queued again until it is finished."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2_meddino.environment import OMP_WAIT_POLICY
from nnunetv2_meddino.slurm import job_path, write_script
from pretraining.engine.stop import STOP, STOPPED

NOTICE_S = 300
"""Time between the request to stop and the time limit: for the step that runs, and for saving."""

FIRST_PORT, NUM_PORTS = 20_000, 10_000
"""The processes of a job meet at a port that its id chooses among these."""

# Bash answers a signal only between commands, hence srun in the background; `wait` returns at a signal, hence the loop.
# Slurm itself queues a preempted job again, and a cancelled one must not be: both are no longer RUNNING.
_SCRIPT = """
set +u
{setup}
set -u
run={run}
rm -f "$run/{stop}" "$run/{stopped}"
trap 'touch "$run/{stop}"' USR1 TERM
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
srun --kill-on-bad-exit=1 \\
  {launcher} \\
  {command} &
training=$!
while kill -0 "$training" 2> /dev/null; do wait "$training" || true; done
status=0
wait "$training" || status=$?
if [ -f "$run/{stopped}" ] && [ "$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)" = RUNNING ]; then
  exec scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
"""


@dataclass(frozen=True)
class Job:
    """What a job needs.

    Attributes:
        nodes: Number of nodes.
        processes: On each node; each has a GPU of its own, unless ``gpus`` is false.
        cpus: On each node.
        gpus: Whether the training runs on GPUs.
        setup: A line of bash that prepares the environment.
    """

    nodes: int
    processes: int
    cpus: int
    gpus: bool
    setup: str = ""


def job_options(job: Job) -> dict[str, Any]:
    """Return options of ``sbatch`` by their names, with underscores; True stands for one without a value."""
    return {
        "job_name": "meddino-pretrain",
        "nodes": job.nodes,
        "ntasks_per_node": 1,
        "cpus_per_task": job.cpus,
        **({"gpus_per_node": job.processes} if job.gpus else {}),
        "requeue": True,
        "chdir": str(Path.cwd()),
    }


def job_variables() -> dict[str, str]:
    """Return what a job needs in its environment; that of this call may be no other."""
    return {
        "PATH": job_path(),
        "PYTHONUNBUFFERED": "1",
        OMP_WAIT_POLICY.name: OMP_WAIT_POLICY.get() or "passive",
    }


def launcher(processes: int, *, nodes: int | str, endpoint: str, job_id: str) -> list[str]:
    """Return what starts the processes of a node, before the command that each of them runs.

    Args:
        processes: Of the node.
        nodes: Their number.
        endpoint: Host and port where all nodes meet.
        job_id: Tells them from those of another job.
    """
    meeting = ["--rdzv-backend=c10d", f"--rdzv-endpoint={endpoint}", f"--rdzv-id={job_id}"]
    size = [f"--nnodes={nodes}", f"--nproc-per-node={processes}"]
    return ["torchrun", *size, "--max-restarts=0", *meeting, "--no-python"]


def training_command(arguments: Sequence[str]) -> list[str]:
    """Return the command that each process runs."""
    return ["meddino-pretrain", "train", *arguments]


def write_job(job: Job, run: Path, arguments: Sequence[str]) -> Path:
    """Write ``RUN/submit/train.sbatch``.

    Args:
        job: What it needs.
        run: Folder of the run.
        arguments: Of ``meddino-pretrain train``.
    """
    run = run.absolute()
    folder = run / "submit"
    folder.mkdir(parents=True, exist_ok=True)
    options = [
        f"--{name.replace('_', '-')}" + ("" if value is True else f"={shlex.quote(str(value))}")
        for name, value in {
            **job_options(job),
            "signal": f"B:USR1@{NOTICE_S}",
            "open_mode": "append",
            "output": folder / "%x_%j.log",
        }.items()
    ]
    in_bash = launcher(
        job.processes,
        nodes='"$SLURM_JOB_NUM_NODES"',
        endpoint=f'"${{nodes[0]}}:$(({FIRST_PORT} + SLURM_JOB_ID % {NUM_PORTS}))"',
        job_id='"$SLURM_JOB_ID"',
    )
    commands = _SCRIPT.strip().format(
        setup=job.setup or ":",
        run=shlex.quote(str(run)),
        stop=STOP,
        stopped=STOPPED,
        launcher=" ".join(in_bash),
        command=shlex.join(training_command(arguments)),
    )
    script = folder / "train.sbatch"
    write_script(script, options, job_variables(), commands)
    return script
