"""Stand-ins for Slurm's commands, and a cluster of two nodes that are this machine."""

from __future__ import annotations

import os
import subprocess
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.pretraining.launched import BIN, LIMIT_S, launched

STAND_INS = {
    "sbatch": """printf '%s\\n' "$@" > "$SLURM_STATE/sbatch"; echo "4711;cluster" """,
    "scontrol": """
case $1 in
  show) echo localhost; echo localhost ;;
  requeue) echo "$2" >> "$SLURM_STATE/requeued" ;;
esac""",
    "squeue": """cat "$SLURM_STATE/state" """,
    # Two nodes on this machine. Where a signal is set for the job, the batch shell gets it, as by --signal=B: of sbatch
    "srun": """
while [[ $1 == --* ]]; do shift; done
if [ -f "$SLURM_STATE/signal" ]; then kill -s "$(cat "$SLURM_STATE/signal")" $PPID; rm "$SLURM_STATE/signal"; fi
SLURM_PROCID=0 SLURM_NODEID=0 setsid "$@" & one=$!
SLURM_PROCID=1 SLURM_NODEID=1 setsid "$@" & other=$!
status=0
wait $one || status=$?
wait $other || status=$?
exit $status""",
}


class Slurm:
    """A cluster of two nodes that are this machine.

    Args:
        folder: of the stand-ins and of what they remember.
    """

    def __init__(self, folder: Path) -> None:
        self.bin, self.state = folder / "bin", folder / "state"
        self.bin.mkdir()
        self.state.mkdir()
        for name, body in STAND_INS.items():
            self.command(name, body)
        self.set(state="RUNNING")

    def command(self, name: str, body: str) -> None:
        (self.bin / name).write_text(f"#!/bin/bash\n{body}\n")
        (self.bin / name).chmod(0o755)

    def set(self, **values: str) -> None:
        for name, value in values.items():
            (self.state / name).write_text(value)

    def lines(self, name: str) -> list[str]:
        return (self.state / name).read_text().splitlines() if (self.state / name).exists() else []

    def start(self, script: Path, job: int) -> AbstractContextManager[subprocess.Popen[bytes]]:
        """Start a job from a bare environment."""
        variables = {
            **{"SLURM_JOB_ID": str(job), "SLURM_JOB_NODELIST": "localhost,localhost", "SLURM_JOB_NUM_NODES": "2"},
            **{"SLURM_CPUS_PER_TASK": "1", "SLURM_STATE": str(self.state)},
        }
        return launched(["bash", str(script)], self.state / "log", **variables)

    def run(self, script: Path, job: int = 4711) -> int:
        """Run a job to its end, and return its exit code."""
        with self.start(script, job) as process:
            return process.wait(LIMIT_S)


def on_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    """Return a cluster whose commands are first on ``PATH``."""
    slurm = Slurm(folder)
    monkeypatch.setenv("PATH", f"{slurm.bin}{os.pathsep}{BIN}{os.pathsep}/usr/bin{os.pathsep}/bin")
    monkeypatch.setenv("SLURM_STATE", str(slurm.state))
    return slurm
