"""A training as a job of submitit, for those who follow their jobs with it.

submitit pickles a ``TrainingJob`` and writes a job script of its own, whose tasks, one a node, load and call it. Before
the time limit, and where the cluster is so configured before a preemption, each task gets a signal: the first one's
``checkpoint`` is called, and the job queued again.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from nnunetv2_meddino.commands import supervised
from nnunetv2_meddino.errors import ConfigurationError, TrainingError
from pretraining.engine.slurm import (
    FIRST_PORT,
    NOTICE_S,
    NUM_PORTS,
    Job,
    job_options,
    job_variables,
    launcher,
    training_command,
)
from pretraining.engine.stop import STOP, STOPPED

STOP_S = 60.0
"""For a training whose task was ended: ``torchrun`` gives its processes 30 s to save."""
LEFT_S = 30
"""Kept of the notice for queueing the job again, if the training has not stopped by then."""
LOOK_EVERY_S = 0.5
TIME = "time"


class TrainingJob:
    """What the task of each node does.

    Args:
        run: Folder of the run.
        processes: To start on the node.
        arguments: Of ``meddino-pretrain train``.
    """

    def __init__(self, run: Path, processes: int, arguments: Sequence[str]) -> None:
        self.run, self.processes, self.arguments = run.absolute(), processes, list(arguments)
        self._launched: subprocess.Popen[bytes] | None = None

    def __call__(self) -> bool:
        """Train.

        Returns:
            Whether the training is finished; if not, it was stopped by the file ``RUN/stop`` and is saved.

        Raises:
            TrainingError: It failed.
        """
        environment = submitit.JobEnvironment()
        if environment.global_rank == 0:
            for name in (STOP, STOPPED):
                (self.run / name).unlink(missing_ok=True)
        number = environment.raw_job_id
        endpoint = f"{environment.hostnames[0]}:{FIRST_PORT + int(number) % NUM_PORTS}"
        start = launcher(self.processes, nodes=environment.num_nodes, endpoint=endpoint, job_id=number)
        command = supervised([*start, *training_command(self.arguments)], STOP_S)
        # in a session of its own, since Slurm's signals to a task go to its process group, and torchrun dies of them
        self._launched = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        status = self._launched.wait()
        if status and not (self.run / STOPPED).exists():
            raise TrainingError(f"The training ended with {status}; its log says why.")
        return status == 0

    def checkpoint(self) -> submitit.helpers.DelayedSubmission | None:
        """Ask the training to stop, and wait for it; called in the midst of ``__call__``.

        Returns:
            What the job shall do when its turn comes again; None if the training has failed.
        """
        (self.run / STOP).touch()
        end = time.monotonic() + NOTICE_S - LEFT_S
        while self._launched is not None and not (self.run / STOPPED).exists() and time.monotonic() < end:
            # the process that __call__ waits for must be left to it
            ended = os.waitid(os.P_PID, self._launched.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is not None:
                if ended.si_status and not (self.run / STOPPED).exists():
                    return None
                break
            time.sleep(LOOK_EVERY_S)
        return submitit.helpers.DelayedSubmission(TrainingJob(self.run, self.processes, self.arguments))


def submit(job: Job, run: Path, arguments: Sequence[str], sbatch_arguments: Sequence[str]) -> str:
    """Submit a training through submitit, whose files go to ``RUN/submit``.

    Args:
        job: What it needs.
        run: Folder of the run.
        arguments: Of ``meddino-pretrain train``.
        sbatch_arguments: Further ones, ``--name=value`` or ``--name``; they win. ``--time`` must be among them, since
            submitit would take 5 minutes.

    Returns:
        The job's id.

    Raises:
        ConfigurationError: An argument is of another form, there is no Slurm, or it refuses.
    """
    further = _options(sbatch_arguments)
    if TIME not in further:
        raise ConfigurationError("submitit needs a time limit: --sbatch-arguments=--time=1-00:00:00")
    minutes = _minutes(str(further[TIME]))
    exports = [f"export {name}={shlex.quote(value)}" for name, value in job_variables().items()]
    try:
        executor = submitit.SlurmExecutor(run.absolute() / "submit", max_num_timeout=sys.maxsize)
        executor.update_parameters(
            time=minutes,
            nodes=job.nodes,
            ntasks_per_node=1,
            setup=[*exports, *([job.setup] if job.setup else [])],
            signal_delay_s=NOTICE_S,
            stderr_to_stdout=True,
            srun_args=[f"--cpus-per-task={job.cpus}"],
            additional_parameters=job_options(job) | further | {TIME: minutes},
        )
        return executor.submit(TrainingJob(run, job.processes, arguments)).job_id
    except (RuntimeError, OSError, FailedJobError, FailedSubmissionError) as error:
        raise ConfigurationError(f"submitit could not submit the job: {error}") from error


def _options(arguments: Sequence[str]) -> dict[str, str | bool]:
    """Return ``--name=value`` and ``--name`` as submitit takes them."""
    options: dict[str, str | bool] = {}
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not name.startswith("--") or len(name) < 3:
            raise ConfigurationError(
                f"submitit takes arguments of sbatch as --name=value or --name, in full, not {argument!r}"
            )
        options[name[2:].replace("-", "_")] = value if equals else True
    return options


def _minutes(text: str) -> int:
    """Return a time limit of Slurm in whole minutes, rounded up: M, M:S, H:M:S, D-H, D-H:M or D-H:M:S."""
    days, dash, rest = text.rpartition("-")
    parts = rest.split(":")
    try:
        numbers = [int(part) for part in parts]
        whole_days = int(days) if dash else 0
    except ValueError:
        numbers = []
    if not 1 <= len(numbers) <= 3:
        raise ConfigurationError(f"--time={text} is no time limit of Slurm, such as 90 (minutes), 12:00:00 or 2-00")
    if dash or len(numbers) == 3:
        hours, minutes, seconds = (numbers + [0, 0])[:3]
    else:
        hours, minutes, seconds = 0, numbers[0], sum(numbers[1:])
    return (whole_days * 24 + hours) * 60 + minutes + -(-seconds // 60)
