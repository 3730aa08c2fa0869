"""A training as a Slurm job: one ``torchrun`` a node, stopped in time, and queued again until it is finished."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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
  torchrun --nnodes="$SLURM_JOB_NUM_NODES" --nproc-per-node={processes} --max-restarts=0 --rdzv-backend=c10d \\
    --rdzv-endpoint="${{nodes[0]}}:$(({port}))" --rdzv-id="$SLURM_JOB_ID" --no-python \\
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
    """What a job needs."""

    nodes: int
    """Number of nodes."""
    processes: int
    """Processes on each node, each with a GPU of its own, unless ``gpus`` is false."""
    cpus: int
    """CPUs on each node."""
    gpus: bool
    """Whether the training runs on GPUs."""
    setup: str = ""
    """A line of bash that prepares the environment."""


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
    options = {
        "job-name": "meddino-pretrain",
        "nodes": job.nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": job.cpus,
        **({"gpus-per-node": job.processes} if job.gpus else {}),
        "requeue": None,
        "chdir": Path.cwd(),
        "signal": f"B:USR1@{NOTICE_S}",
        "open-mode": "append",
        "output": folder / "%x_%j.log",
    }
    lines = [f"--{name}" + ("" if value is None else f"={shlex.quote(str(value))}") for name, value in options.items()]
    # a job starts from a bare shell
    variables = {
        "PATH": job_path(),
        "PYTHONUNBUFFERED": "1",
        OMP_WAIT_POLICY.name: OMP_WAIT_POLICY.get() or "passive",
    }
    commands = _SCRIPT.strip().format(
        setup=job.setup or ":",
        run=shlex.quote(str(run)),
        stop=STOP,
        stopped=STOPPED,
        processes=job.processes,
        port=f"{FIRST_PORT} + SLURM_JOB_ID % {NUM_PORTS}",
        command=shlex.join(["meddino-pretrain", "train", *arguments]),
    )
    script = folder / "train.sbatch"
    write_script(script, lines, variables, commands)
    return script
